"""Does Dynamics hold what the mapping would send? A row, or its absence, beside a record as it is read back.

Names of attributes may be shown and stored, values never (R14). What Dynamics writes in another way than it was sent
is equal: padded numbers, moments in whole seconds and of another zone, days as moments at midnight, ids with capitals,
an empty text as null, and a lookup as the id of the record that it refers to.
"""

import json
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from hashlib import blake2b
from uuid import UUID

from dynamics_sync.core.mapping import Column, ColumnKind, DeleteRule, JsonValue, TableMapping, UnsendableError

GONE = "gone"
"""The fingerprint of a record whose row is gone, and which Dynamics holds as the mapping's rule for deletions says."""

Row = MappingOf[str, object]
"""The mapped columns of a row."""

Attributes = MappingOf[str, object]
"""The properties of a record, as an answer of the Web API has them."""


class FindingKind(StrEnum):
    """In what a record differs."""

    MISSING = "missing"
    """The row is there, the record is not."""
    DIFFERENT = "different"
    """Both are there, and some attributes are not as the row says."""
    EXTRA = "extra"
    """The record is there, the row is not, and the mapping's rule for deletions does not want it so."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One record that differs: metadata only."""

    record_key: str
    kind: FindingKind
    attributes: tuple[str, ...] = ()
    """The names, as the mapping has them, of those that differ."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Row and record agree. The fingerprint changes when the row does."""

    fingerprint: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A lookup's value: a record of another table, by its alternate key."""

    entity_set: str
    alternate_key: str
    value: str


ReferredIds = MappingOf[Reference, str]
"""The ids in Dynamics of records that lookups refer to; one that is not there has none."""


def folded(key: str) -> str:
    """Two keys of which this is the same are one record in Dynamics: it ignores case and blanks at the end."""
    return key.rstrip(" ").casefold()


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the rows of one table are compared."""

    table: TableMapping
    lookups: MappingOf[str, str]
    """The property that each lookup reads back as (`_hlf_team_value`), by navigation property."""

    @property
    def properties(self) -> tuple[str, ...]:
        """What has to be read of each record, besides its id and key."""
        return self.table.properties(self.lookups)

    def references(self, row: Row) -> set[Reference]:
        """What the row's lookups by alternate key refer to."""
        found = (_reference(column, row[name]) for name, column in self.table.columns.items())
        return {reference for reference in found if reference is not None}

    def fingerprint(self, record_key: str, row: Row | UnsendableError | None) -> str | None:
        """A digest of all that the mapping would send for the row; None if it has no form in Dynamics."""
        if row is None:
            return GONE
        if isinstance(row, UnsendableError):
            return None
        try:
            body = self.table.body(row)
        except UnsendableError:
            return None
        return blake2b(json.dumps([record_key, body], sort_keys=True).encode(), digest_size=16).hexdigest()

    def compare(
        self,
        record_key: str,
        row: Row | UnsendableError | None,
        held: Attributes | None,
        ids: ReferredIds,
    ) -> Agreement | Finding:
        """A row beside the record with its key; None for what is not there."""
        if row is None:
            return self._without_row(record_key, held)
        if held is None:
            return Finding(record_key, FindingKind.MISSING)
        fingerprint = self.fingerprint(record_key, row)
        names = () if isinstance(row, UnsendableError) else self._differing(row, held, ids)
        if fingerprint is None or names:
            return Finding(record_key, FindingKind.DIFFERENT, names)
        return Agreement(fingerprint)

    def _without_row(self, record_key: str, held: Attributes | None) -> Agreement | Finding:
        if held is None or self.table.on_delete is DeleteRule.IGNORE:
            return Agreement(GONE)
        if self.table.on_delete is DeleteRule.DELETE:
            return Finding(record_key, FindingKind.EXTRA)
        wrong = _wrong_states(self.table.inactive, held)
        return Finding(record_key, FindingKind.EXTRA, wrong) if wrong else Agreement(GONE)

    def _differing(self, row: Row, held: Attributes, ids: ReferredIds) -> tuple[str, ...]:
        columns = self.table.columns.items()
        held_in = {name: held.get(column.property_name(self.lookups)) for name, column in columns}
        wrong = [column.to for name, column in columns if not _holds(column, name, row[name], held_in[name], ids)]
        return (*wrong, *_wrong_states(self.table.states, held))


def _reference(column: Column, value: object) -> Reference | None:
    lookup = column.lookup
    if lookup is None or lookup.alternate_key is None or value is None:
        return None
    return Reference(lookup.entity_set, lookup.alternate_key, str(value))


def _wrong_states(wanted: MappingOf[str, bool | int], held: Attributes) -> tuple[str, ...]:
    return tuple(name for name, value in wanted.items() if not _same(value, held.get(name)))


def _holds(column: Column, name: str, value: object, held: object, ids: ReferredIds) -> bool:
    """Whether Dynamics holds in one attribute what would be sent; never where that has no form."""
    try:
        sent = column.encode(name, value)
    except UnsendableError:
        return False
    if sent is None or sent == "":
        return held is None or held == ""
    if column.lookup is not None:
        reference = _reference(column, value)
        wanted = str(UUID(str(value))) if reference is None else ids.get(reference)
        return wanted is not None and _same_id(wanted, held)
    if column.choices is not None or not isinstance(sent, str):
        return _same(sent, held)
    if isinstance(value, UUID):
        return _same_id(sent, held)
    if isinstance(value, datetime) and column.kind is not ColumnKind.DATE:
        return _same_second(sent, held)
    return sent == held or (isinstance(value, date) and _same_moment(f"{sent}T00:00:00Z", held))


def _same(sent: JsonValue, held: object) -> bool:
    """Numbers by value; a boolean is none."""
    return sent is held if isinstance(sent, bool) or isinstance(held, bool) else sent == held


def _same_id(sent: str, held: object) -> bool:
    return isinstance(held, str) and sent.lower() == held.lower()


def _same_second(sent: str, held: object) -> bool:
    """Dynamics keeps whole seconds."""
    seconds = _seconds_between(sent, held)
    return seconds is not None and abs(seconds) < 1


def _same_moment(sent: str, held: object) -> bool:
    return _seconds_between(sent, held) == 0


def _seconds_between(sent: str, held: object) -> float | None:
    try:
        there = datetime.fromisoformat(str(held))
    except ValueError:
        return None
    there = there if there.tzinfo else there.replace(tzinfo=UTC)
    return (datetime.fromisoformat(sent) - there).total_seconds()
