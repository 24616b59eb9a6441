"""Records and their versions, unique keys, and all-or-nothing changes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import Locator
from dynamics_sync.simulator.records import Backup, Change, Deletion, Message, Record
from dynamics_sync.simulator.tables import JsonObject, SystemTable, Table

KeyValues = tuple[str, tuple[Any, ...]]
"""Name of an alternate key, and its columns' values in the key's order."""

Step = tuple[Callable[[], None], Callable[[], None]]
"""How to do a change, and how to undo it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Changes that were made and undone again."""

    changes: list[Change]
    steps: list[Step]

    def redo(self) -> None:
        """Make them hold. Nothing may have changed since."""
        for do, _ in self.steps:
            do()


class Store:
    """All records of an environment. Versions grow over all tables, as Dataverse's row versions do."""

    def __init__(self, tables: tuple[Table, ...], now: Callable[[], float]) -> None:
        self.tables = {table.entity_set: table for table in tables}
        self.system_tables: Mapping[str, SystemTable] = {}
        """By entity set, like the others."""
        self.version = 900_000
        self._now = now
        self._records: dict[str, dict[str, Record]] = {table.entity_set: {} for table in tables}
        self._keys: dict[str, dict[KeyValues, str]] = {table.entity_set: {} for table in tables}
        self._deletions: dict[str, list[Deletion]] = {table.entity_set: [] for table in tables}
        self._steps: list[Step] | None = None
        self._changes: list[Change] | None = None

    def table(self, entity_set: str) -> Table:
        """The table of an entity set; DataverseError 404 if there is none."""
        table = self.tables.get(entity_set)
        if table is None:
            raise errors.no_such_segment(entity_set)
        return table

    def all(self, table: Table) -> list[Record]:
        """Every record of a table, oldest first."""
        return list(self._records[table.entity_set].values())

    def deletions(self, table: Table) -> list[Deletion]:
        """What went, oldest first."""
        return self._deletions[table.entity_set]

    def find(self, table: Table, where: Locator) -> Record | None:
        """The record that a locator names, if it is there."""
        records = self._records[table.entity_set]
        if where.id is not None:
            return records.get(where.id)
        key = next(key for key in table.alternate_keys if key.name == where.key)
        values = where.values or {}
        record_id = self._keys[table.entity_set].get((key.name, tuple(_fold(values[name]) for name in key.columns)))
        return None if record_id is None else records[record_id]

    def must_find(self, table: Table, where: Locator) -> Record:
        """The record, or DataverseError 404."""
        record = self.find(table, where)
        if record is None and where.id is None:
            raise errors.no_record_with_key(table.logical_name)
        if record is None:
            raise errors.no_such_record(table.logical_name, where.id or "")
        return record

    def create(self, table: Table, attributes: Mapping[str, Any], record_id: str | None = None) -> Record:
        """A new record; DataverseError 412 if its id or a key is taken."""
        new_id = record_id or str(uuid4())
        records = self._records[table.entity_set]
        if new_id in records:
            raise errors.id_exists()
        values: JsonObject = dict.fromkeys(table.columns_by_read_name)
        values |= {"statecode": 0, "statuscode": 1, "createdon": self._timestamp()} | dict(attributes)
        self._check_keys(table, values, new_id)
        record = records[new_id] = Record(new_id, {}, 0)
        if self._steps is not None:
            self._steps.append((partial(records.__setitem__, new_id, record), partial(records.__delitem__, new_id)))
        self._write(Message.CREATE, table, record, values, attributes)
        return record

    def update(self, table: Table, record: Record, attributes: Mapping[str, Any]) -> Record:
        """Change some attributes; DataverseError 412 if a key is taken."""
        values = record.attributes | dict(attributes)
        self._check_keys(table, values, record.id)
        self._write(Message.UPDATE, table, record, values, attributes)
        return record

    def delete(self, table: Table, record: Record) -> None:
        """Let a record go."""
        self._remove(table, record)
        if self._steps is not None:
            self._steps.append((partial(self._remove, table, record), partial(self._put_back, table, record)))
        self._tell(Message.DELETE, table, record.id, {}, record.attributes, {})

    def back_up(self) -> Backup:
        """Everything as it is now."""
        records = {name: {one.id: _copy(one) for one in held.values()} for name, held in self._records.items()}
        return Backup(self.version, records, {name: list(went) for name, went in self._deletions.items()})

    def restore(self, backup: Backup) -> None:
        """Everything as it was, row versions too: what is written next gets versions that were given before."""
        self.version = backup.version
        for name, table in self.tables.items():
            self._records[name] = {one.id: _copy(one) for one in backup.records[name].values()}
            self._deletions[name] = list(backup.deletions[name])
            self._keys[name] = {}
            for record in self._records[name].values():
                self._note_keys(table, record)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes within hold, or none. A transaction within another one is part of it."""
        if self._steps is not None:
            yield
            return
        steps = self._steps = []
        try:
            yield
        except BaseException:
            _undo(steps)
            raise
        finally:
            self._steps = None

    @contextmanager
    def recording(self) -> Iterator[list[Change]]:
        """The changes that are made within."""
        changes = self._changes = []
        try:
            yield changes
        finally:
            self._changes = None

    @contextmanager
    def trial(self) -> Iterator[Trial]:
        """Changes within are undone at the end, so that nobody sees them until they are done again."""
        with self.recording() as changes:
            trial = Trial(changes, [])
            self._steps = trial.steps
            try:
                yield trial
            finally:
                self._steps = None
                _undo(trial.steps)

    def _write(
        self, message: Message, table: Table, record: Record, values: JsonObject, given: Mapping[str, Any]
    ) -> None:
        before, version = record.attributes, record.version
        values["modifiedon"] = self._timestamp()
        values["versionnumber"] = self.version + 1
        self._advance(table, record, values, self._now())
        if self._steps is not None:
            do = partial(self._advance, table, record, values, self._now())
            self._steps.append((do, partial(self._set_back, table, record, before, version)))
        self._tell(message, table, record.id, given, before, values)

    def _advance(self, table: Table, record: Record, values: JsonObject, at: float) -> None:
        self._forget_keys(table, record)
        self.version += 1
        record.attributes, record.version = values, self.version
        record.versions.append({"at": at, "etag": record.etag, "attributes": values})
        self._note_keys(table, record)

    def _set_back(self, table: Table, record: Record, values: JsonObject, version: int) -> None:
        self._forget_keys(table, record)
        self.version -= 1
        record.attributes, record.version = values, version
        record.versions.pop()
        self._note_keys(table, record)

    def _remove(self, table: Table, record: Record) -> None:
        self._forget_keys(table, record)
        del self._records[table.entity_set][record.id]
        self.version += 1
        self._deletions[table.entity_set].append(Deletion(record.id, self.version))

    def _put_back(self, table: Table, record: Record) -> None:
        self._deletions[table.entity_set].pop()
        self.version -= 1
        self._records[table.entity_set][record.id] = record
        self._note_keys(table, record)

    def _check_keys(self, table: Table, values: Mapping[str, Any], record_id: str) -> None:
        taken = self._keys[table.entity_set]
        for key in key_values(table, values):
            if taken.get(key, record_id) != record_id:
                columns = next(known.columns for known in table.alternate_keys if known.name == key[0])
                raise errors.key_violated(key[0], ", ".join(columns))

    def _note_keys(self, table: Table, record: Record) -> None:
        for key in key_values(table, record.attributes):
            self._keys[table.entity_set][key] = record.id

    def _forget_keys(self, table: Table, record: Record) -> None:
        for key in key_values(table, record.attributes):
            self._keys[table.entity_set].pop(key, None)

    def _tell(
        self,
        message: Message,
        table: Table,
        record_id: str,
        given: Mapping[str, Any],
        before: Mapping[str, Any],
        after: Mapping[str, Any],
    ) -> None:
        if self._changes is not None:
            self._changes.append(Change(message, table, record_id, given, before, after, self._now()))

    def _timestamp(self) -> str:
        return datetime.fromtimestamp(self._now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _undo(steps: list[Step]) -> None:
    for _, undo in reversed(steps):
        undo()


def _copy(record: Record) -> Record:
    """Attributes are never changed in place."""
    return replace(record, versions=list(record.versions))


def key_values(table: Table, values: Mapping[str, Any]) -> Iterator[KeyValues]:
    """Each alternate key of which every column has a value; text in the form in which keys are compared."""
    for key in table.alternate_keys:
        parts = tuple(_fold(values.get(table.columns_by_name[name].read_name)) for name in key.columns)
        if None not in parts:
            yield key.name, parts


def _fold(value: Any) -> Any:
    """Key values are compared as the database collates text: without regard to case."""
    return value.casefold() if isinstance(value, str) else value
