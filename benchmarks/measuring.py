"""Contenders that take turns: what they yield, round by round."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import psycopg

from benchmarks.database import Server
from benchmarks.peers.environment import Peers
from benchmarks.processes import BenchmarkError, Target
from dynamics_sync.core.errors import DynamicsSyncError

FAILURES = (BenchmarkError, DynamicsSyncError, psycopg.Error)
"""What is told in the report, and does not end the run."""
OURS, LOOP, NO_TRIGGER = "dynamics-sync", "a bare loop", "no trigger"
PATCHES, SDK = "PATCHes without any database", "Microsoft's SDK"
OUR_PATCHES = "the same with our client"
"""Contenders that figures are about."""


class Series(NamedTuple):
    """What was measured of a contender, once in each round."""

    figure: str
    contender: str
    metric: str
    """What, with its unit."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    single: int
    """Records, where each is a request."""
    slow: int
    """The same for a peer that would take minutes."""
    bulk: int
    samples: int
    """Commits whose latency is measured."""
    backlogs: tuple[int, int, int]
    """Records waiting: few, many, very many."""
    drained: int
    """How many of them are sent."""
    rows: int
    """Of the table whose trigger is measured."""
    transactions: int
    """Of each client."""
    statement_rows: int
    calls: int
    """Of a breaker, in a chunk."""


FULL = Sizes(
    single=40_000,
    slow=2_000,
    bulk=200_000,
    samples=200,
    backlogs=(1_000, 10_000, 1_000_000),
    drained=9_000,
    rows=100_000,
    transactions=2_000,
    statement_rows=20_000,
    calls=100_000,
)
QUICK = Sizes(
    single=4_000,
    slow=500,
    bulk=40_000,
    samples=50,
    backlogs=(1_000, 10_000, 100_000),
    drained=9_000,
    rows=20_000,
    transactions=300,
    statement_rows=5_000,
    calls=20_000,
)
TINY = Sizes(
    single=20,
    slow=5,
    bulk=40,
    samples=2,
    backlogs=(10, 40, 80),
    drained=30,
    rows=100,
    transactions=10,
    statement_rows=50,
    calls=100,
)
"""To see that all works."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What all measurements share."""

    server: Server
    target: Target
    peers: Peers
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class Contender:
    """Who takes part, and what a turn yields: a value for each metric."""

    name: str
    turn: Callable[[], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Figure:
    """What is measured in one go."""

    name: str
    title: str
    contenders: Callable[[Stage], AbstractContextManager[Sequence[Contender]]]


@dataclass(slots=True)
class Results:
    """What was measured, and what could not be."""

    rounds: dict[Series, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[str, str] = field(default_factory=dict)
    """Why a contender is missing."""

    def add(self, figure: Figure, contender: Contender, values: Mapping[str, float]) -> None:
        """What a turn yielded."""
        for metric, value in values.items():
            self.rounds[Series(figure.name, contender.name, metric)].append(value)

    def leave_out(self, figure: Figure, contender: Contender, why: str) -> None:
        """It failed: what it yielded before is not kept."""
        self.failures[f"{figure.title}, {contender.name}"] = why
        for series in [each for each in self.rounds if each[:2] == (figure.name, contender.name)]:
            del self.rounds[series]

    def median(self, series: Series) -> float | None:
        """Of its rounds; None where there are none."""
        values = self.rounds.get(series)
        return statistics.median(values) if values else None


class Watcher(Protocol):
    """Who is told how far a figure is."""

    def __call__(self, *, total: int, completed: int, now: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often each takes its turn."""

    counted: int
    before: int = 1
    """Those that do not count: files and memory are warm, and queues have been used, in all that do."""


def measure(figure: Figure, stage: Stage, rounds: Rounds, results: Results, tell: Watcher) -> None:
    """All rounds of a figure. Who begins changes from round to round. A contender that fails is left out from then on,
    with all that it yielded."""
    with figure.contenders(stage) as contenders:
        turns = [
            (number, contender)
            for number in range(rounds.before + rounds.counted)
            for contender in [*contenders[number % len(contenders) :], *contenders[: number % len(contenders)]]
        ]
        failed: set[str] = set()
        for completed, (number, contender) in enumerate(turns):
            tell(total=len(turns), completed=completed, now=contender.name)
            if contender.name in failed:
                continue
            try:
                values = contender.turn()
            except FAILURES as error:
                failed.add(contender.name)
                results.leave_out(figure, contender, str(error))
                continue
            if number >= rounds.before:
                results.add(figure, contender, values)
        tell(total=len(turns), completed=len(turns), now="")
