"""What is wanted: the figures, each with its bar. A ratio of two medians is held against each."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.figures import backlog, breaker, latency, throughput, trigger
from benchmarks.measuring import LOOP, NO_TRIGGER, OURS, PATCHES, SDK, Results, Series, Sizes


class Wanted(StrEnum):
    """Which side of the bar is the good one."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


class Verdict(StrEnum):
    """How a figure stands."""

    BEYOND = "beyond"
    MET = "met"
    MISSED = "missed"
    UNJUDGED = "not judged"
    """The machine is not one on which the bar is meant."""
    UNMEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Bar:
    """A line of the table: `over` is held against `under`, against the least of them where there are several."""

    what: str
    peer: str
    over: Series
    under: tuple[Series, ...]
    wanted: Wanted
    bar: float
    beyond: float | None = None
    cores: int = 1
    """How many a machine must have for the bar to be meant."""

    @property
    def name(self) -> str:
        return f"{self.what}, {self.peer}"

    def sides(self, results: Results) -> tuple[float | None, float | None]:
        """Both medians; None for what is missing."""
        under = [median for series in self.under if (median := results.median(series)) is not None]
        return results.median(self.over), min(under, default=None)

    @property
    def is_ours_below(self) -> bool:
        """Where less is better of us, and the ratio has the peer above."""
        return self.under[0].contender == OURS

    def ratio(self, results: Results) -> float | None:
        """Of the medians of all rounds; None where one of the two is missing."""
        over, under = self.sides(results)
        return None if over is None or under is None else over / under

    def spread(self, results: Results) -> tuple[float, float] | None:
        """The least and the greatest ratio of one round."""
        measured = [results.rounds[series] for series in (self.over, *self.under) if results.rounds.get(series)]
        ratios = [over / min(under) for over, *under in zip(*measured, strict=True) if under]
        return (min(ratios), max(ratios)) if ratios else None

    def verdict(self, ratio: float | None, cores: int) -> Verdict:
        """How a ratio stands, on a machine with so many cores."""
        if ratio is None:
            return Verdict.UNMEASURED
        if cores < self.cores:
            return Verdict.UNJUDGED
        if self.beyond is not None and self._reaches(ratio, self.beyond):
            return Verdict.BEYOND
        return Verdict.MET if self._reaches(ratio, self.bar) else Verdict.MISSED

    def _reaches(self, ratio: float, bar: float) -> bool:
        return ratio >= bar if self.wanted is Wanted.AT_LEAST else ratio <= bar


FREE_CORES = 4
"""One for PostgreSQL, one for the server that is sent to, one for each of two workers."""


def bars(sizes: Sizes) -> tuple[Bar, ...]:
    """All figures, for a run of these sizes."""
    return (*_throughput(), *_latency(), *_backlog(sizes), *_trigger(), _breaker(), *_workers())


def _throughput() -> Iterator[Bar]:
    def single(what: str, contender: str, bar: float, beyond: float | None = None) -> Bar:
        over, under = (Series("single", name, throughput.RATE) for name in (OURS, contender))
        return Bar("one PATCH per record", what, over, (under,), Wanted.AT_LEAST, bar, beyond)

    def bulk(what: str, contender: str, bar: float, beyond: float) -> Bar:
        over, under = (Series("bulk", name, throughput.RATE) for name in (OURS, contender))
        return Bar("bulk", what, over, (under,), Wanted.AT_LEAST, bar, beyond)

    yield single(f"of {PATCHES}", PATCHES, 0.75, 0.9)
    yield single("of pgqueuer", "pgqueuer", 2)
    yield single("of procrastinate", "procrastinate", 15)
    yield single(f"of {SDK} without any database", SDK, 1, 1.3)
    yield bulk(f"of single {PATCHES}", PATCHES, 2.5, 4)
    yield bulk("of a bare bulk loop", LOOP, 0.7, 0.9)
    yield bulk(f"of {SDK}, in bulk, without any database", SDK, 0.25, 0.4)


def _latency() -> Iterator[Bar]:
    for metric in (latency.P50, latency.P99):
        over, under = (Series("latency", contender, metric) for contender in (OURS, "pgqueuer"))
        what = f"commit to request, idle, {metric.split()[0]}"
        yield Bar(what, "of pgqueuer", over, (under,), Wanted.AT_MOST, 0.5, 0.3)


def _backlog(sizes: Sizes) -> Iterator[Bar]:
    few, many, very_many = (f"{number:,} waiting" for number in sizes.backlogs)
    for form in ("single", "bulk"):
        over, under = (Series("backlog", f"{much} waiting, {form}", backlog.RATE) for much in ("very many", "many"))
        yield Bar(f"throughput, {form}, {very_many}", f"of {many}", over, (under,), Wanted.AT_LEAST, 0.9)
    for form in ("single", "bulk"):
        over, under = (Series("backlog", f"{much} waiting, {form}", backlog.MEMORY) for much in ("very many", "few"))
        yield Bar(f"memory, {form}, {very_many}", f"of {few}", over, (under,), Wanted.AT_MOST, 1.2)


def _trigger() -> Iterator[Bar]:
    without, ours = (Series("trigger", capture, trigger.TRANSACTIONS) for capture in (NO_TRIGGER, OURS))
    what = "transactions of several clients"
    yield Bar(what, "without the trigger, of those with it", without, (ours,), Wanted.AT_MOST, 1.5, 1.25)
    without, ours = (Series("trigger", capture, trigger.STATEMENT) for capture in (NO_TRIGGER, OURS))
    what = "a statement that updates many rows"
    yield Bar(what, "with the trigger, of one without it", ours, (without,), Wanted.AT_MOST, 3, 2)


def _breaker() -> Bar:
    ours = Series("breaker", OURS, breaker.OVERHEAD)
    peers = tuple(Series("breaker", peer, breaker.OVERHEAD) for peer in breaker.PEERS)
    return Bar("breaker, for each call", "of the fastest of five", ours, peers, Wanted.AT_MOST, 1, 0.6)


def _workers() -> Iterator[Bar]:
    for form in ("single", "bulk"):
        over, under = (Series("workers", f"{number}, {form}", throughput.RATE) for number in ("two", "one"))
        yield Bar(f"two worker processes, {form}", "of one", over, (under,), Wanted.AT_LEAST, 1.6, cores=FREE_CORES)
