"""What is to happen in one history, drawn from its seed: who changes what, and what breaks when.

A plan is data. Shrinking a failing history means leaving actions out of its plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random

from simulation.stores import TAKEN_FROM

END_OF_TROUBLE = 18.0
"""Seconds after which everything is repaired."""


class Kind(StrEnum):
    """What can happen."""

    CHANGE = "change"
    DELETE = "delete"
    UNDO = "undo"
    """The last change is taken back: the record is as it was, or goes again. Without a key, that of every record."""
    TRANSACTION = "transaction"
    """A user's transaction that holds a record's lock for a while."""
    DYNAMICS = "dynamics"
    """Dynamics, or the way to it, is in a mood for a while."""
    DATABASE = "database"
    """The database, or the way to it, is in a mood for a while."""
    CRASH = "crash"
    PAUSE = "pause"
    CANCEL = "cancel"
    SHUT_DOWN = "shut down"
    CLOCK = "clock"
    """A worker's wall clock is set."""
    REPLAY = "replay"
    DISCARD = "discard"
    FORCE_OPEN = "force open"
    FORCE_CLOSED = "force closed"


TO_WORKERS = (Kind.CRASH, Kind.PAUSE, Kind.CANCEL, Kind.SHUT_DOWN, Kind.CLOCK)
CHANGES = (Kind.CHANGE, Kind.DELETE, Kind.UNDO, Kind.TRANSACTION)


class Mood(StrEnum):
    """What Dynamics or the database does with a share of what reaches it."""

    DOWN = "down"
    """503; no connection."""
    REFUSES = "refuses"
    """400; for the database no such thing."""
    THROTTLES = "throttles"
    SILENT = "silent"
    """Takes the request, and neither does it nor answers."""
    LATE = "late"
    """Takes the request, answers too late, and does it at some time."""
    SLOW = "slow"
    RESETS = "resets"
    """Cuts the connection before it does anything."""
    LOSES_ANSWERS = "loses answers"
    """Does it and cuts the connection."""
    GARBLES = "garbles"
    UNAUTHORIZED = "unauthorized"
    TOO_MUCH = "too much"
    """413 to a request for more than one record."""
    CUT_OFF = "cut off"
    """Cannot be reached from one worker."""
    SLOW_INSERTS = "slow inserts"
    """Queue entries take longer than the 500 ms that they may take."""


DYNAMICS_MOODS = (
    *(Mood.DOWN, Mood.DOWN, Mood.REFUSES, Mood.REFUSES, Mood.THROTTLES, Mood.THROTTLES, Mood.SILENT, Mood.LATE),
    *(Mood.LATE, Mood.SLOW, Mood.RESETS, Mood.LOSES_ANSWERS, Mood.LOSES_ANSWERS, Mood.GARBLES),
    *(Mood.UNAUTHORIZED, Mood.CUT_OFF, Mood.TOO_MUCH),
)
DATABASE_MOODS = (
    *(Mood.DOWN, Mood.SLOW, Mood.SLOW, Mood.RESETS, Mood.LOSES_ANSWERS, Mood.LOSES_ANSWERS, Mood.CUT_OFF),
    Mood.SLOW_INSERTS,
)
TROUBLES: tuple[tuple[Kind, Mood | None], ...] = (
    *((Kind.DYNAMICS, mood) for mood in DYNAMICS_MOODS),
    *((Kind.DATABASE, mood) for mood in DATABASE_MOODS),
    *((Kind.CRASH, None), (Kind.CRASH, None), (Kind.PAUSE, None), (Kind.PAUSE, None), (Kind.PAUSE, None)),
    *((Kind.CANCEL, None), (Kind.SHUT_DOWN, None), (Kind.CLOCK, None), (Kind.FORCE_OPEN, None)),
    *((Kind.FORCE_CLOSED, None), (Kind.REPLAY, None), (Kind.REPLAY, None), (Kind.DISCARD, None)),
)


class Point(StrEnum):
    """Moments in a worker's work at which something can happen to it."""

    CLAIM = "claim"
    READ_ROWS = "read rows"
    READ_CIRCUIT = "read circuit"
    PERMIT = "permit"
    """The same, with a request that is ready to leave."""
    SET_CIRCUIT = "set circuit"
    REQUEST = "request"
    REQUEST_FOR_MANY = "request for many"
    PROBE = "probe"
    ANSWER = "answer"
    SETTLE = "settle"
    RELEASE = "release"
    QUEUE_INSERT = "queue insert"


AT_REQUESTS = (Point.REQUEST, Point.REQUEST_FOR_MANY, Point.REQUEST_FOR_MANY, Point.PROBE)
"""Where a mood of Dynamics makes a difference."""

MEETINGS: tuple[tuple[tuple[Kind, Mood | None], tuple[Kind, Mood | None], tuple[Point | None, ...]], ...] = (
    ((Kind.CRASH, None), (Kind.DYNAMICS, Mood.LATE), (Point.REQUEST,)),
    ((Kind.CRASH, None), (Kind.DYNAMICS, Mood.DOWN), (None, Point.PROBE, Point.SET_CIRCUIT)),
    ((Kind.PAUSE, None), (Kind.DYNAMICS, Mood.DOWN), (None, Point.PERMIT, Point.CLAIM)),
    ((Kind.PAUSE, None), (Kind.DYNAMICS, Mood.DOWN), (Point.ANSWER, Point.SET_CIRCUIT)),
    ((Kind.PAUSE, None), (Kind.FORCE_OPEN, None), (Point.PERMIT,)),
    ((Kind.PAUSE, None), (Kind.DYNAMICS, Mood.SLOW), (Point.CLAIM, Point.REQUEST, Point.READ_ROWS)),
    ((Kind.PAUSE, None), (Kind.FORCE_OPEN, None), (Point.PERMIT, Point.PERMIT, Point.CLAIM)),
    ((Kind.FORCE_OPEN, None), (Kind.DATABASE, Mood.SLOW), (Point.READ_CIRCUIT, Point.PERMIT)),
    ((Kind.DATABASE, Mood.SLOW), (Kind.DYNAMICS, Mood.DOWN), (None,)),
    ((Kind.DATABASE, Mood.SLOW_INSERTS), (Kind.DYNAMICS, Mood.REFUSES), (None,)),
    ((Kind.DATABASE, Mood.LOSES_ANSWERS), (Kind.DYNAMICS, Mood.LATE), (None,)),
    ((Kind.CANCEL, None), (Kind.DYNAMICS, Mood.DOWN), (Point.PROBE, Point.REQUEST, Point.READ_CIRCUIT)),
    ((Kind.CANCEL, None), (Kind.DYNAMICS, Mood.LATE), (Point.REQUEST,)),
    ((Kind.DYNAMICS, Mood.REFUSES), (Kind.DYNAMICS, Mood.DOWN), (Point.REQUEST_FOR_MANY,)),
    ((Kind.DYNAMICS, Mood.DOWN), (Kind.UNDO, None), (Point.REQUEST_FOR_MANY,)),
    ((Kind.DYNAMICS, Mood.LOSES_ANSWERS), (Kind.UNDO, None), (Point.REQUEST,)),
)
"""Two kinds of trouble that are worse together, and where the first one strikes. A mood just lasts; else the second
one mostly follows at the same place."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that happens."""

    at: float
    kind: Kind
    key: str = ""
    worker: int = 0
    seconds: float = 0.0
    """How long it lasts; of a clock, how far it is set."""
    mood: Mood | None = None
    share: float = 1.0
    commits: bool = True
    point: Point | None = None
    """It happens when a worker gets there after `at`, rather than at `at`; not before one got there `passes` times.
    What happens to a worker happens to the one that gets there."""
    passes: int = 0
    delay: float = 0.0
    """Seconds from then on until it happens."""

    def __str__(self) -> str:
        said = [f"{self.at:7.3f}  {self.kind}"]
        if self.mood is not None:
            said.append(f"{self.mood} ({self.share:.0%})")
        if self.key:
            said.append(self.key)
        if self.kind in TO_WORKERS or self.mood is Mood.CUT_OFF:
            said.append(f"worker {self.worker}")
        if self.point is not None:
            after = f"{self.delay:.1f} s after" if self.delay else "at"
            said.append(f"{after} {self.point} number {self.passes + 1}")
        if self.seconds:
            said.append(f"{self.seconds:.1f} s")
        return " ".join(said)


@dataclass(frozen=True, slots=True)
class Plan:
    """One history, before it happens."""

    seed: int
    workers: int
    concurrency: int
    failure_threshold: int
    notifies: bool
    """Whether workers are woken; behind a pooler in transaction mode they are not."""
    skews: tuple[float, ...]
    """How far each worker's wall clock is off, in seconds."""
    actions: tuple[Action, ...] = field(default=())
    is_patient: bool = False
    """Whoever tries again waits longer than a cool-down lasts."""

    @property
    def bundle(self) -> int:
        """Records in one request, at most."""
        return (1, 2, 4, 8)[self.seed % 4]

    @property
    def taken_from(self) -> int:
        """So many records that have just changed are taken past the outbox."""
        return (2, 4, TAKEN_FROM)[self.seed % 3]

    @property
    def is_calm(self) -> bool:
        """Nothing goes wrong, and no transaction stands in the way of a settlement."""
        return all(action.kind in (Kind.CHANGE, Kind.DELETE, Kind.UNDO) for action in self.actions)

    @property
    def spares_workers(self) -> bool:
        """Only Dynamics and operators make trouble: every worker runs, and reaches the database."""
        return all(
            action.kind in (*CHANGES, Kind.DYNAMICS, Kind.REPLAY, Kind.DISCARD, Kind.CLOCK) for action in self.actions
        )


def plan_for(seed: int) -> Plan:
    """The plan of a seed."""
    random = Random(seed)
    workers = random.choice((1, 2, 2, 3))
    keys = [f"r{number}" for number in range(random.choice((1, 2, 3, 4, 8)))]
    actions = [_change(random, keys) for _ in range(random.randint(1, 6))]
    if random.random() < 0.6:
        actions += _bursts(random, keys)
    return Plan(
        seed=seed,
        workers=workers,
        concurrency=random.choice((1, 2, 2, 3)),
        failure_threshold=random.choice((1, 2, 3, 3)),
        notifies=random.random() < 0.6,
        skews=tuple(random.choice((0.0, 0.0, -30.0, 5.0, 3600.0)) for _ in range(workers)),
        is_patient=random.random() < 0.3,
        actions=tuple(sorted(actions + _troubles(random, actions, keys, workers), key=lambda action: action.at)),
    )


def _troubles(random: Random, changes: list[Action], keys: list[str], workers: int) -> list[Action]:
    """A few kinds of trouble that meet again and again find more than one of each."""
    moments = [random.choice(changes).at, *(_moment(random) for _ in range(random.choice((0, 1, 2))))]

    def strike(kind: Kind, mood: Mood | None, points: Sequence[Point | None]) -> Action:
        at = max(random.choice(moments) + random.choice((0.0, 0.0, 0.1, 1.0, 4.0)) * random.uniform(-1, 1), 0.0)
        trouble = _trouble(random, at, kind, mood, keys, random.randrange(workers))
        return replace(trouble, point=random.choice(points), passes=random.choice((0, 0, 0, 0, 1, 3)))

    if random.random() < 0.5:
        first, second, points = random.choice(MEETINGS)
        troubles = [strike(*first, points) for _ in range(random.choice((1, 1, 2, 3)))]
        for other in [strike(*second, (None,)) for _ in range(random.choice((1, 1, 2)))]:
            one = random.choice(troubles)
            if other.mood is None and random.random() < 0.8:
                delay = random.choice((0.0, 0.3, 1.0, 3.0)) * random.random()
                other = replace(other, at=one.at, worker=one.worker, point=one.point, passes=one.passes, delay=delay)
            troubles.append(other)
        return troubles
    some = random.sample(TROUBLES, random.choice((1, 2, 2, 3, 4)))
    kinds = random.choices(some, k=random.choice((0, 1, 2, 2, 3, 4, 5)))
    return [strike(kind, mood, _points(random, kind)) for kind, mood in kinds]


def _points(random: Random, kind: Kind) -> Sequence[Point | None]:
    """As often at some moment as at some point."""
    if random.random() < 0.5:
        return (None,)
    return AT_REQUESTS if kind is Kind.DYNAMICS else tuple(Point)


def _moment(random: Random) -> float:
    """Most of it happens early, and close together."""
    return min(random.expovariate(0.25), END_OF_TROUBLE - 4)


def _change(random: Random, keys: list[str]) -> Action:
    at, key = _moment(random), random.choice(keys)
    kind = random.choices(CHANGES, (8, 2, 1, 1))[0]
    if kind is Kind.TRANSACTION:
        return Action(at, kind, key, seconds=random.uniform(0.1, 4), commits=random.random() < 0.7)
    return Action(at, kind, key)


def _bursts(random: Random, keys: list[str]) -> list[Action]:
    """All records change at once, or go; perhaps again a little later, as somebody thinks better of it."""
    at, changes = _moment(random), []
    for number in range(random.choice((1, 2, 3, 5))):
        kinds = random.choice(((Kind.CHANGE,), (Kind.CHANGE,), (Kind.CHANGE, Kind.DELETE), (Kind.DELETE,)))
        if number and random.random() < 0.5:
            kinds = (Kind.UNDO,)
        changes += [Action(at + random.random() / 20, random.choice(kinds), key) for key in keys]
        at = min(at + random.choice((0.3, 0.3, 1.0, 4.0)) * random.uniform(0.5, 1.5), END_OF_TROUBLE - 1)
    return changes


def _trouble(random: Random, at: float, kind: Kind, mood: Mood | None, keys: list[str], worker: int) -> Action:
    match kind:
        case Kind.DYNAMICS:
            key = random.choice((*keys, "", "", "", ""))
            seconds, share = (
                random.choice((0.5, 3.0, 10.0)) * random.uniform(0.5, 1.2),
                random.choice((1.0, 1.0, 0.6, 0.3)),
            )
            return Action(at, kind, key, worker, seconds, mood, share)
        case Kind.DATABASE:
            seconds = random.choice((0.3, 2.0, 6.0)) * random.uniform(0.5, 1.2)
            share = random.choice((1.0, 0.5, 0.2))
            return Action(at, kind, "", worker, seconds, mood, share)
        case Kind.CRASH | Kind.CANCEL | Kind.SHUT_DOWN:
            return Action(at, kind, worker=worker, seconds=random.uniform(0.05, 4))
        case Kind.PAUSE:
            seconds = random.choice((0.3, 2.0, 4.0, 8.0, 8.0)) * random.uniform(0.7, 1.3)
            return Action(at, kind, worker=worker, seconds=seconds)
        case Kind.CLOCK:
            return Action(at, kind, worker=worker, seconds=random.choice((-3600.0, -10.0, 10.0, 3600.0)))
        case Kind.DISCARD:
            return Action(at, kind, random.choice(keys), worker)
    return Action(at, kind, worker=worker)
