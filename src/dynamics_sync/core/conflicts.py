"""What a change from Dynamics does to the row here: pure decisions, column by column (R19).

Three things can be in the way. The message may be old: a newer one was applied before. The row may have changed too,
and wait to be sent: then the column's owner is right, unless it is known that this column was not changed here. And we
may have written to Dynamics since, so that nobody knows by the message alone what Dynamics holds now: then the record
has to be looked at. What it holds is believed only if nothing of ours is, or may be, under way; otherwise it may be an
older state of the row, and what was told is taken.

`tests/unit/test_conflict_histories.py` lets all of that happen at random.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

from dynamics_sync.core.decoding import UndecodableError, agrees, decode
from dynamics_sync.core.incoming import RecordChange, moment
from dynamics_sync.core.mapping import Column, Owner, TableMapping

UNCLEAR = timedelta(seconds=2)
"""Two changes of which the times differ by less may have been made in either order: Dynamics tells whole seconds."""

CLOCKS_DIFFER = timedelta(seconds=60)
"""By how much the database's clock and Dynamics' may disagree."""

MODIFIED_ON = "modifiedon"


@dataclass(frozen=True, slots=True)
class Incoming:
    """How the attributes of one Dynamics table become columns."""

    table: TableMapping
    types: Mapping[str, str]
    """The type of each column, as PostgreSQL's `format_type` writes it."""
    lookups: Mapping[str, str] = field(default_factory=dict)
    """The property that each lookup reads back as (`_hlf_team_value`), by navigation property."""

    @property
    def properties(self) -> tuple[str, ...]:
        """What has to be read of a record to see how it is now."""
        return tuple(dict.fromkeys((*self.table.properties(self.lookups), MODIFIED_ON)))

    def attribute(self, column: Column) -> str:
        """Its logical name, which messages have."""
        if column.lookup is None:
            return column.to.lower()
        return column.property_name(self.lookups).removeprefix("_").removesuffix("_value")


@dataclass(frozen=True, slots=True)
class Sides:
    """What is known here of one record, all in one moment."""

    row: Mapping[str, object] = field(repr=False)
    waiting: frozenset[str] = frozenset()
    """Columns of which Dynamics lacks a change made here."""
    written_at: datetime | None = None
    """When Dynamics was last given a state of ours, by the database's clock."""
    newest: Mapping[str, datetime] = field(default_factory=dict)
    """When the newest change of Dynamics was made that is applied here, by attribute."""
    taken: frozenset[str] = frozenset()
    """Columns that the row has from Dynamics, and that were not changed here since, unless they wait."""
    unanswered: bool = False
    """A request of ours may still take effect late."""

    @property
    def under_way(self) -> bool:
        """A request of ours may be under way, with an older state than the row has now."""
        return bool(self.waiting) or self.unanswered

    def may_have_written_since(self, change: RecordChange) -> bool:
        return self.written_at is not None and self.written_at >= change.at - CLOCKS_DIFFER


@dataclass(frozen=True, slots=True)
class Clash:
    """Both sides have changed."""

    name: str
    """The column; or an attribute that the mapping writes of itself."""
    winner: Owner


class Order(Enum):
    """A change beside the newest that is known."""

    NEWER = "newer"
    UNCLEAR = "unclear"
    OLDER = "older"


@dataclass(slots=True)
class Resolution:
    """What is to be done, all of it or nothing."""

    writes: dict[str, object] = field(default_factory=dict, repr=False)
    clashes: list[Clash] = field(default_factory=list)
    send: bool = False
    """Dynamics holds, or may hold, something else than the row will: the record must be sent."""
    newest: dict[str, datetime] = field(default_factory=dict)
    """What is known afterwards, by attribute."""
    older: int = 0
    """Attributes of which a newer change was applied before."""

    @property
    def kept(self) -> set[str]:
        """Columns, or attributes, of which the row is right."""
        return {clash.name for clash in self.clashes if clash.winner is Owner.POSTGRES}

    @property
    def is_superseded(self) -> bool:
        return self.older > 0 and not self.newest

    @property
    def is_about_nothing(self) -> bool:
        """The change touches nothing that is mapped."""
        return self.older == 0 and not self.newest


class RecordNeededError(Exception):
    """The message alone does not tell how the record is: Dynamics must be asked."""


def resolve(incoming: Incoming, change: RecordChange, held: Mapping[str, object] | None, sides: Sides) -> Resolution:
    """Decide.

    Args:
        held: the record's properties as the Web API gives them, if they were asked for after the change was told.

    Raises:
        RecordNeededError: they must be, and were not.
        UndecodableError: a value has no form here.
    """
    if change.attributes is None and held is None:
        raise RecordNeededError
    case = _Case(incoming, change, held, sides)
    for name, column in incoming.table.columns.items():
        if case.counts(incoming.attribute(column)):
            case.resolve_column(name, column)
    for attribute, active in incoming.table.states.items():
        if case.counts(attribute.lower()):
            case.resolve_state(attribute, active)
    return case.resolution


@dataclass(frozen=True, slots=True)
class _Case:
    """One change beside one record."""

    incoming: Incoming
    change: RecordChange
    held: Mapping[str, object] | None
    sides: Sides
    resolution: Resolution = field(default_factory=Resolution)

    def counts(self, attribute: str) -> bool:
        """Whether the change has something to say of the attribute that is not known to be outdated."""
        if self.change.attributes is not None and attribute not in self.change.attributes:
            return False
        if self._order(attribute) is Order.OLDER:
            self.resolution.older += 1
            return False
        return True

    def resolve_column(self, name: str, column: Column) -> None:
        here, type_name = self.sides.row[name], self.incoming.types[name]
        attribute, property = self.incoming.attribute(column), column.property_name(self.incoming.lookups)
        told = decode(name, column, type_name, self._told(attribute, property))
        if self.held is None:
            if not agrees(name, column, here, told):
                self._make_certain(attribute)
            self._know(attribute)
            self._take(name, column, told)
            return
        now = decode(name, column, type_name, self.held.get(property))
        if self._is_theirs(agrees(name, column, here, now)):
            self._know(attribute, moment(self.held.get(MODIFIED_ON)))
            self._take(name, column, now)
        elif self.change.at < self.sides.newest.get(attribute, self.change.at):
            self.resolution.older += 1
        else:
            self._know(attribute)
            bring = self._take if agrees(name, column, now, told) else self._restore
            bring(name, column, told, is_certain=self._is_next(name, column, attribute))

    def resolve_state(self, attribute: str, active: bool | int) -> None:
        """A row that is there means an active record: whoever made it inactive is overruled."""
        if self._told(attribute.lower(), attribute) != active:
            self._make_certain(attribute.lower())
            if self.held is None or self.held.get(attribute) != active:
                self._clash(attribute, Owner.POSTGRES)
                self.resolution.send = True
        self._know(attribute.lower())

    def _is_theirs(self, is_as_here: bool) -> bool:
        """Whether what Dynamics holds was surely set there: what we wrote, if no request is under way, is what the row
        has."""
        return not self.sides.under_way and not (is_as_here and self.sides.may_have_written_since(self.change))

    def _know(self, attribute: str, as_of: datetime | None = None) -> None:
        """The change is dealt with, and all that was made there until then."""
        self.resolution.newest[attribute] = max(self.change.at, as_of or self.change.at)

    def _take(self, name: str, column: Column, there: object, *, is_certain: bool = True) -> None:
        """Dynamics holds this: the row gets it, unless it was changed here and Dynamics has not been told so."""
        if agrees(name, column, self.sides.row[name], there):
            return
        if name in self.sides.waiting and self._changed_here(name, column):
            self._clash(name, column.owner)
            self.resolution.send = True
            if column.owner is Owner.POSTGRES:
                return
        elif not is_certain:
            self._clash(name, Owner.DYNAMICS)
        self.resolution.writes[name] = there

    def _restore(self, name: str, column: Column, told: object, *, is_certain: bool = True) -> None:
        """Dynamics no longer holds what it was told to: we may have written over it, also with a request that is still
        under way. Had it been changed there once more, that is told too."""
        if self._changed_here(name, column):
            self._clash(name, column.owner)
            if column.owner is Owner.POSTGRES:
                return
        elif not is_certain:
            self._clash(name, Owner.DYNAMICS)
        if not agrees(name, column, self.sides.row[name], told):
            self.resolution.writes[name] = told
        self.resolution.send = True

    def _changed_here(self, name: str, column: Column) -> bool:
        """Not if the row has it from Dynamics, nor if it still has what Dynamics had before: each request sends all
        columns, also those that did not change. Without an image of before, it must be taken for changed."""
        return name not in self.sides.taken - self.sides.waiting and not self._follows(name, column)

    def _follows(self, name: str, column: Column) -> bool:
        """Whether it is known that what the row has was changed there into what is told."""
        attribute = self.incoming.attribute(column)
        if attribute not in self.change.before:
            return False
        try:
            before = decode(name, column, self.incoming.types[name], self.change.before[attribute])
        except UndecodableError:  # then it is nothing that the row could have
            return False
        return agrees(name, column, self.sides.row[name], before)

    def _is_next(self, name: str, column: Column, attribute: str) -> bool:
        """Whether it is certain that what is told is later than what the row has. What was left out is not told."""
        if self.change.attributes is None:
            return False
        return self._order(attribute) is Order.NEWER or self._follows(name, column)

    def _clash(self, name: str, winner: Owner) -> None:
        self.resolution.clashes.append(Clash(name, winner))

    def _told(self, attribute: str, property: str) -> object:
        told = self.change.attributes
        return (self.held or {}).get(property) if told is None else told[attribute]

    def _order(self, attribute: str) -> Order:
        known = self.sides.newest.get(attribute)
        if known is None or self.change.at - known >= UNCLEAR:
            return Order.NEWER
        return Order.OLDER if known - self.change.at >= UNCLEAR else Order.UNCLEAR

    def _make_certain(self, attribute: str) -> None:
        """RecordNeededError where only the record can tell what it holds now."""
        unclear = self._order(attribute) is Order.UNCLEAR or self.sides.may_have_written_since(self.change)
        if self.held is None and unclear:
            raise RecordNeededError
