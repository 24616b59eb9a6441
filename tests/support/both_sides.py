"""A record that people change on both sides while requests and webhooks are under way, in any order.

`Record` is a model of what `postgres/inbox_apply.py` does around `core.conflicts.resolve`, over the simulation's model
of the outbox and the queue. `tests/contracts/test_both_sides.py` holds it against PostgreSQL. Dynamics is a part of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from itertools import chain, count
from random import Random
from typing import Any

from dynamics_sync.core.conflicts import Incoming, RecordNeededError, Resolution, Sides, resolve
from dynamics_sync.core.incoming import Message, RecordChange
from dynamics_sync.core.mapping import Owner, parse_mapping
from dynamics_sync.core.operation import Applied, FailureReason, SyncOperation
from dynamics_sync.core.outcome import LATE_SECONDS
from dynamics_sync.sync.ports import Failure
from simulation.stores import EPOCH, Database, Entry, Row
from support.orders import fork
from support.outbox import LEASE_SECONDS

KEY = "7"
LONG_AGO = -86_400.0
RECORD_ID = "6d81597f-0f9f-4711-8122-000d3aa2331c"


@cache
def people(owner: Owner) -> Incoming:
    table = {
        "source": "public.people",
        "key": "id",
        "entity_set": "contacts",
        "logical_name": "contact",
        "alternate_key": "ext",
        "columns": {"name": {"to": "fullname", "owner": str(owner)}, "city": "new_city"},
    }
    types = {"id": "text", "name": "text", "city": "text"}
    return Incoming(parse_mapping({"tables": [table]}, "test").tables[0], types)


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


@dataclass
class Request:
    """One of ours, with the row as it was read."""

    operation: SyncOperation
    row: dict[str, str]
    ends_at: float = 0.0
    """When it can no longer take effect, once nobody waits for its answer."""
    has_landed: bool = False


@dataclass
class Told:
    """A delivery, on its way or in the inbox."""

    change: RecordChange
    claimed_at: float | None = None
    held: dict[str, Any] | None = None


@dataclass(frozen=True)
class Step:
    """Something that happens, and when."""

    at: float
    name: str
    words: tuple[Any, ...] = ()


@dataclass
class Record:
    """It begins as a record that both sides have agreed on for long."""

    owner: Owner = Owner.POSTGRES
    images: bool = True

    now: float = 0.0
    row: dict[str, str] = field(default_factory=lambda: {"name": "0", "city": "0"})
    there: dict[str, str] = field(default_factory=lambda: {"fullname": "0", "new_city": "0"})
    modified_at: float = LONG_AGO
    latest: str = "0"
    """The name as somebody, here or there, set it last."""
    request: Request | None = None
    lost: list[Request] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    applied: tuple[int, float] = (0, LONG_AGO)
    newest: dict[str, datetime] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    taken_version: int | None = None
    written_at: float | None = None
    conflicts: list[tuple[str, Owner]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._database = Database(lambda: self.now, LATE_SECONDS)
        self._names = count()

    @property
    def waiting(self) -> Row | None:
        """Its row in the outbox."""
        return self._database.outbox.get(KEY)

    @property
    def changes(self) -> list[list[str]]:
        """The columns of what is not gathered yet."""
        return [[*change.columns] for change in self._database.changes]

    @property
    def queued(self) -> Entry | None:
        """Its open entry in the queue."""
        return self._database.open_entries.get(KEY)

    @property
    def is_unanswered(self) -> bool:
        return KEY in self._database.unanswered

    def do(self, step: Step) -> None:
        self.now = step.at
        getattr(self, step.name)(*step.words)
        waiting = self.waiting and (self.waiting.changed_columns, self.waiting.lease_owner is not None)
        words = " ".join(map(str, step.words))
        self.lines.append(
            f"{step.at:8.2f} {step.name:10} {words:16} here {self.row} there {self.there} waiting {waiting}"
            f" queued {self.queued and str(self.queued.status)} taken {sorted(self.taken)}"
            f" conflicts {len(self.conflicts)}"
        )

    def edit_here(self, column: str, value: str) -> None:
        self.row[column] = value
        self._database.note(KEY, columns=[column])
        if column == "name":
            self.latest = value

    def edit_there(self, value: str) -> None:
        before = {"before": dict(self.there)} if self.images else {}
        whole_second = at(int(self.now))
        change = RecordChange(Message.UPDATE, "contact", RECORD_ID, whole_second, None, {"fullname": value}, **before)
        self.there["fullname"] = self.latest = value
        self.modified_at = self.now
        self.told.append(Told(change))

    @property
    def can_be_claimed(self) -> bool:
        return KEY in self._database.waiting and (self.waiting is None or self.waiting.lease_owner is None)

    def claim(self) -> None:
        if self.can_be_claimed:
            (operation,) = self._database.claim(1, self._name(), LEASE_SECONDS)
            self.request = Request(operation, dict(self.row))

    def land(self) -> None:
        if self.request is not None and not self.request.has_landed:
            self._write(self.request)

    def settle(self) -> None:
        if self.request is None or not self.request.has_landed:
            return
        operation, self.request = self.request.operation, None
        self.applied = (operation.version, self.now)
        (outcome,) = self._database.settle([(operation, Applied(1))]).values()
        if outcome == "gone":
            self._note_changed_here(operation)

    def refuse(self) -> None:
        """Dynamics wants no such request, and a person is told."""
        if self.request is None or self.request.has_landed:
            return
        operation, self.request = self.request.operation, None
        self._database.add(Failure(operation, FailureReason.REJECTED, "http_400", 1), self._name())
        if self.waiting is None:
            self._note_changed_here(operation)

    def replay(self) -> None:
        if self.queued is not None:
            self._database.replay(self.queued.id)

    def lose(self) -> None:
        """Nobody knows what becomes of the request, and the record is sent once more."""
        if self.request is not None:
            self._database.release(self.request.operation, 1, [], unanswered=True)
            self.request.ends_at = round(self.now + LATE_SECONDS, 2)
            self.lost.append(self.request)
            self.request = None

    def land_late(self) -> None:
        for request in self.lost:
            if not request.has_landed and self.now < request.ends_at:
                self._write(request)
                return

    def resend(self) -> None:
        """What may have taken effect late is written over."""
        self._database.resend_unanswered()

    def deliver(self, which: int) -> None:
        told = self.next_told(which)
        if told is None:
            return
        if told.held is None:
            told.claimed_at = self.now
        written_at = self.applied[1] if self.applied[0] != self.taken_version else self.written_at
        if told.held is not None and written_at is not None and written_at >= (told.claimed_at or 0):
            told.held = None  # it may be older than what was written meanwhile
            return
        before = self._database
        self._database = fork(before)
        self._database.gather()
        sides = Sides(
            dict(self.row),
            self._columns_waiting(),
            None if written_at is None else at(written_at),
            self.newest,
            frozenset(self.taken),
            unanswered=self.is_unanswered,
        )
        try:
            resolution = resolve(people(self.owner), told.change, told.held, sides)
        except RecordNeededError:
            self._database = before
            told.held = self.properties()
            return
        self.told.remove(told)
        self.written_at = written_at
        self.newest = self.newest | resolution.newest
        self.conflicts += [(clash.name, clash.winner) for clash in resolution.clashes]
        self.taken = (self.taken | set(resolution.writes)) - resolution.kept
        self.row |= {name: str(value) for name, value in resolution.writes.items()}
        self._leave_outbox(resolution)

    def _leave_outbox(self, resolution: Resolution) -> None:
        columns = None if self.waiting is None else self.waiting.changed_columns
        if resolution.writes or resolution.send:
            self._database.mark_dirty(KEY, columns=list(resolution.writes))
        if self.waiting is None:
            return
        if columns is not None:
            self.waiting.changed_columns = columns
        elif resolution.send:
            queued = () if self.queued is None else self.queued.failure.operation.changed_columns
            self.waiting.changed_columns = tuple(sorted({*resolution.kept, *queued})) or ("id",)
        else:
            self.taken_version, self.applied = self.waiting.version, (self.waiting.version, self.now)
            del self._database.outbox[KEY]

    def next_told(self, which: int) -> Told | None:
        """One after the other, in the order in which they came: which is any, as steps are asynchronous."""
        begun = [told for told in self.told if told.claimed_at is not None]
        return begun[0] if begun else self.told[which % len(self.told)] if self.told else None

    def properties(self) -> dict[str, Any]:
        """The record as the Web API shows it."""
        active = {"statecode": 0, "statuscode": 1, "modifiedon": at(int(self.modified_at)).isoformat()}
        return {**self.there, **active}

    @property
    def is_at_rest(self) -> bool:
        return not self._database.waiting and self.queued is None and not self.is_unanswered and not self.told

    @property
    def wrong(self) -> str | None:
        """What must never be, where all has come to rest."""
        if (self.row["name"], self.row["city"]) != (self.there["fullname"], self.there["new_city"]):
            return "the sides differ"
        if self.row["name"] != self.latest and "name" not in {name for name, _ in self.conflicts}:
            return "the latest change is lost, and no conflict tells"
        return None

    def _write(self, request: Request) -> None:
        request.has_landed = True
        self.there = {"fullname": request.row["name"], "new_city": request.row["city"]}
        self.modified_at = self.now

    def _note_changed_here(self, operation: SyncOperation) -> None:
        self.taken -= set(operation.changed_columns or self.row)

    def _columns_waiting(self) -> frozenset[str]:
        """All of them where it is not known which."""
        told = [] if self.waiting is None else [self.waiting.changed_columns]
        if self.queued is not None:
            told.append(self.queued.failure.operation.changed_columns)
        return frozenset(self.row if () in told else chain.from_iterable(told))

    def _name(self) -> str:
        return f"{next(self._names)}"


@dataclass
class History:
    """Random steps of one record, and then those that bring it to rest."""

    record: Record
    random: Random
    in_order: bool = True
    edits_here: bool = True
    loses: bool = True

    @classmethod
    def of(cls, seed: int, **kinds: Any) -> "History":
        """
        Args:
            kinds: what is not left to chance.
        """
        random = Random(seed)
        chosen = {name: random.random() < 0.5 for name in ("in_order", "edits_here", "loses")}
        record = Record(random.choice(list(Owner)), kinds.pop("images", random.random() < 0.7))
        return cls(record, random, **chosen | kinds)

    def steps(self) -> Iterator[Step]:
        """Each is done by the record before the next one is chosen."""
        now = 0.0
        names = ["edit_there", "claim", "land", "settle", "deliver", "deliver", "edit_city"]
        names += ["edit_name"] * self.edits_here + ["lose", "land_late", "resend", "refuse", "replay"] * self.loses
        for _ in range(self.random.randrange(5, 40)):
            now = round(now + self.random.choice([0, 0.01, 0.1, 1, 3]), 2)
            yield self._step(now, self.random.choice(names))
        while not self.record.is_at_rest:
            now = round(now + self.random.choice([0.2, 10]), 2)
            names = ["claim", "land", "settle", "deliver", "land_late", "resend", "replay"]
            yield self._step(now, self.random.choice(names))

    def happen(self) -> Record:
        for step in self.steps():
            self.record.do(step)
        return self.record

    def _step(self, now: float, name: str) -> Step:
        value = str(self.random.randrange(10**9))
        match name:
            case "edit_there":
                return Step(now, name, (value,))
            case "edit_name" | "edit_city":
                return Step(now, "edit_here", (name.removeprefix("edit_"), value))
            case "deliver":
                return Step(now, name, (0 if self.in_order else self.random.randrange(3),))
            case _:
                return Step(now, name)
