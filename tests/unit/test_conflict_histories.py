"""People change a record on both sides while requests and webhooks are under way, in any order: where all have come to
rest, both sides say the same, and what is not the latest change stands in the conflicts.

The record here is a model of what `postgres/inbox_apply.py` and the outbox do around `resolve`.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from dynamics_sync.core.conflicts import Incoming, Order, RecordNeededError, Sides, _Case, resolve
from dynamics_sync.core.incoming import Message, RecordChange
from dynamics_sync.core.mapping import Owner, parse_mapping

EPOCH = datetime(2026, 11, 25, 12, tzinfo=UTC)
LATE_SECONDS = 20.0
HISTORIES = 3_000


def people(owner: str) -> Incoming:
    table = {
        "source": "public.people",
        "key": "id",
        "entity_set": "contacts",
        "logical_name": "contact",
        "alternate_key": "ext",
        "columns": {"name": {"to": "fullname", "owner": owner}, "city": "new_city"},
    }
    return Incoming(parse_mapping({"tables": [table]}, "test").tables[0], {"name": "text", "city": "text"})


OWNED = {owner: people(owner) for owner in Owner}


@dataclass
class Waiting:
    """The record's row in the outbox."""

    version: int
    columns: set[str]
    is_leased: bool = False


@dataclass
class Request:
    """One of ours, with the row as it was read."""

    row: dict[str, str]
    version: int
    has_landed: bool = False


@dataclass
class Delivery:
    change: RecordChange
    claimed_at: float | None = None
    held: dict[str, Any] | None = None


@dataclass
class History:
    """One record, and all that happens to it."""

    random: Random
    owner: Owner
    images: bool
    in_order: bool
    edits_here: bool
    loses: bool

    now: float = 0.0
    row: dict[str, str] = field(default_factory=lambda: {"name": "0", "city": "0"})
    there: dict[str, str] = field(default_factory=lambda: {"fullname": "0", "new_city": "0"})
    modified_at: float = -3600.0
    waiting: Waiting | None = None
    request: Request | None = None
    late: Request | None = None
    late_until: float = 0.0
    told: list[Delivery] = field(default_factory=list)
    applied: tuple[int, float] = (0, -3600.0)
    version: int = 0
    newest: dict[str, datetime] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    taken_version: int | None = None
    written_at: float | None = None
    conflicts: list[tuple[str, Owner]] = field(default_factory=list)
    latest: str = "0"
    """The name as somebody, here or there, set it last."""
    lines: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        waiting = self.waiting and (self.waiting.version, sorted(self.waiting.columns))
        self.lines.append(f"{self.now:7.2f} {what:50} {self.row} {self.there} waiting {waiting} taken {self.taken}")

    def capture(self, columns: set[str]) -> None:
        self.version += 1
        if self.waiting is None:
            self.waiting = Waiting(self.version, set(columns))
        else:
            self.waiting.version = self.version
            self.waiting.columns |= columns

    def told_of(self, seed: int) -> str:
        return f"seed {seed}, {wrong(self)}\n" + "\n".join(self.lines)

    def columns_waiting(self) -> frozenset[str]:
        """All of them where it is not known which."""
        return frozenset() if self.waiting is None else frozenset(self.waiting.columns or self.row)

    def edit_here(self, column: str) -> None:
        value = str(self.random.randrange(10**9))
        self.row[column] = value
        self.capture({column})
        if column == "name":
            self.latest = value
        self.note(f"here: {column} = {value}")

    def edit_there(self) -> None:
        value, before = str(self.random.randrange(10**9)), dict(self.there)
        self.there["fullname"] = self.latest = value
        self.modified_at = self.now
        at = EPOCH + timedelta(seconds=int(self.now))
        images = {"before": before} if self.images else {}
        change = RecordChange(Message.UPDATE, "contact", "7", at, None, {"fullname": value}, **images)
        self.told.append(Delivery(change))
        self.note(f"there: name = {value}")

    def claim(self) -> None:
        if self.waiting is not None and not self.waiting.is_leased:
            self.waiting.is_leased = True
            self.request = Request(dict(self.row), self.waiting.version)
            self.note("a request leaves")

    def land(self) -> None:
        if self.request is not None and not self.request.has_landed:
            self.request.has_landed = True
            self.write(self.request)
            self.note("it lands")

    def write(self, request: Request) -> None:
        self.there = {"fullname": request.row["name"], "new_city": request.row["city"]}
        self.modified_at = self.now

    def settle(self) -> None:
        if self.request is None or not self.request.has_landed or self.waiting is None:
            return
        self.applied = (self.request.version, self.now)
        if self.waiting.version == self.request.version:
            self.taken -= self.columns_waiting()
            self.waiting = None
        else:
            self.waiting.is_leased = False
        self.request = None
        self.note("it is settled")

    def lose_answer(self) -> None:
        """It has landed, nobody knows, and the record is sent once more."""
        if self.request is not None and self.request.has_landed and self.waiting is not None:
            self.waiting.is_leased, self.request = False, None
            self.note("its answer is lost")

    def lose_request(self) -> None:
        """Nobody knows what becomes of it, and the record is sent once more."""
        if self.request is not None and not self.request.has_landed and self.waiting is not None and not self.late:
            self.late, self.late_until = self.request, self.now + LATE_SECONDS
            self.waiting.is_leased, self.request = False, None
            self.note("a request is lost")

    def land_late(self) -> None:
        if self.late is not None and not self.late.has_landed and self.now < self.late_until:
            self.late.has_landed = True
            self.write(self.late)
            self.note("it lands late")

    def resend(self) -> None:
        """What may have taken effect late is written over."""
        if self.late is not None and self.now >= self.late_until:
            self.late = None
            self.capture(set())
            self.note("the record is sent once more")

    def deliver(self) -> None:
        if not self.told:
            return
        # One after the other, in the order in which they came: which is any, as steps are asynchronous.
        begun = [delivery for delivery in self.told if delivery.claimed_at is not None]
        delivery = (begun or self.told)[0] if self.in_order or begun else self.random.choice(self.told[:3])
        if delivery.held is None:
            delivery.claimed_at = self.now
        place_is_ours = self.waiting is None
        recent = self.applied[0] != self.taken_version
        written_at = self.applied[1] if recent else self.written_at
        if delivery.held is not None and recent and self.applied[1] >= (delivery.claimed_at or 0):
            delivery.held = None  # it may be older than what was written meanwhile
            return
        sides = Sides(
            dict(self.row),
            self.columns_waiting(),
            None if written_at is None else EPOCH + timedelta(seconds=written_at),
            self.newest,
            frozenset(self.taken),
            unanswered=self.late is not None,
        )
        try:
            resolution = resolve(OWNED[self.owner], delivery.change, delivery.held, sides)
        except RecordNeededError:
            at = EPOCH + timedelta(seconds=int(self.modified_at))
            delivery.held = dict(self.there) | {"statecode": 0, "statuscode": 1, "modifiedon": at.isoformat()}
            self.note("a look at the record")
            return
        self.told.remove(delivery)
        self.written_at = written_at
        self.newest = self.newest | resolution.newest
        self.conflicts += [(clash.name, clash.winner) for clash in resolution.clashes]
        self.taken = (self.taken | set(resolution.writes)) - resolution.kept
        columns = None if self.waiting is None else set(self.waiting.columns)
        if resolution.writes:
            self.row |= {name: str(value) for name, value in resolution.writes.items()}
            self.capture(set(resolution.writes))
        elif resolution.send:
            self.capture(set())
        if place_is_ours and not resolution.send and self.waiting is not None:
            self.taken_version = self.waiting.version
            self.applied = (self.waiting.version, self.now)
            self.waiting = None
        elif self.waiting is not None:
            self.waiting.columns = (resolution.kept or {"id"}) if columns is None else columns
        self.note(f"told: {delivery.change.attributes} {resolution.clashes}")

    def happen(self) -> None:
        """Anything, and then until nothing is left to happen."""
        actions = [self.edit_there, self.claim, self.land, self.settle, self.lose_answer, self.deliver, self.deliver]
        actions += [self.lose_request, self.land_late, self.resend] * self.loses
        actions += [lambda: self.edit_here("city")] + [lambda: self.edit_here("name")] * self.edits_here
        for _ in range(self.random.randrange(5, 40)):
            self.now += self.random.choice([0, 0.01, 0.1, 1, 3])
            self.random.choice(actions)()
        for _ in range(5_000):
            if self.waiting is None and self.late is None and not self.told:
                return
            self.now += 0.2
            self.random.choice([self.claim, self.land, self.settle, self.deliver, self.land_late, self.resend])()
        pytest.fail("it does not come to rest:\n" + "\n".join(self.lines[-20:]))


def history(seed: int, **kinds: Any) -> History:
    random = Random(seed)
    chosen = {
        "owner": random.choice(list(Owner)),
        "images": random.random() < 0.7,
        "in_order": random.random() < 0.5,
        "edits_here": random.random() < 0.5,
        "loses": random.random() < 0.5,
    }
    done = History(random, **chosen | kinds)
    done.happen()
    return done


def wrong(done: History) -> str | None:
    """What must never be, where all has come to rest."""
    if (done.row["name"], done.row["city"]) != (done.there["fullname"], done.there["new_city"]):
        return "the sides differ"
    if done.row["name"] != done.latest and "name" not in {name for name, _ in done.conflicts}:
        return "the latest change is lost, and no conflict tells"
    return None


def test_both_sides_end_alike_and_what_is_not_the_latest_change_stands_in_the_conflicts() -> None:
    for seed in range(HISTORIES):
        done = history(seed)
        assert wrong(done) is None, done.told_of(seed)


def test_where_nobody_changes_it_here_the_latest_change_made_there_is_taken_whoever_owns_it() -> None:
    for seed in range(HISTORIES):
        done = history(seed, edits_here=False, in_order=True, images=True, loses=False)
        assert done.row["name"] == done.there["fullname"] == done.latest, done.told_of(seed)
        assert all(winner is Owner.DYNAMICS for _, winner in done.conflicts), done.told_of(seed)


@pytest.mark.parametrize(
    ("place", "name", "mistake"),
    [
        (_Case, "_is_theirs", lambda self, is_as_here: True),
        (_Case, "_is_theirs", lambda self, is_as_here: not self.sides.waiting),
        (_Case, "_changed_here", lambda self, name, column: False),
        (_Case, "_restore", lambda self, name, column, attribute, told: None),
        (_Case, "_make_certain", lambda self, attribute: None),
        (_Case, "_order", lambda self, attribute: Order.NEWER),
        (Sides, "under_way", property(lambda self: bool(self.waiting))),
        (Sides, "may_have_written_since", lambda self, change: False),
    ],
)
def test_a_deliberate_mistake_is_found(
    monkeypatch: pytest.MonkeyPatch, place: type, name: str, mistake: object
) -> None:
    monkeypatch.setattr(place, name, mistake)
    assert any(wrong(history(seed)) for seed in range(HISTORIES))
