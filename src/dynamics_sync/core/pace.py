"""How many requests are under way to a target at once, of all workers together, and how closely they follow.

The number grows and falls as TCP's window does (RFC 5681): from one, twice as many after each round up to half of what
was too many last, then one more. After "too many requests" or a failure it is one again: a single request finds out
whether more may follow. Rising latency takes a fifth (as TCP Vegas and Netflix's Gradient2 do). Sources: Microsoft's
pages "Service protection API limits" and "Send parallel requests".
"""

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from dynamics_sync.core.values import value

START = 1
"""Requests at once in the beginning, and again after trouble."""

UNKNOWN = 1000
"""The threshold where there was no trouble yet: more than any limit."""

REST_SECONDS = 1.0
"""One trouble is heard of by many requests and by all workers. The number falls once in so long, or in the time that a
request takes."""

WINDOW_SECONDS = 300.0
"""Dataverse's limits are for what was done in so long."""

AMPLE_SHARE = 0.5
"""With more than this share of a limit left, requests leave as fast as they are answered."""

SCARCE_SHARE = 0.05
"""With this share left, they leave as fast as the limit comes back."""

SPENT_SHARE = 0.01
"""With less than this share left, one request at a time finds out whether more may follow."""

MOST_GAP_SECONDS = 150.0
"""No worker waits longer than this for the next request to leave. What headers say is for debugging, Microsoft says;
the limit itself, a 429, is what decides."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of a target, as it is stored. Times carry a time zone."""

    concurrency: int = START
    """Requests at once, of all workers together."""
    threshold: int = UNKNOWN
    """Below it the number doubles, from it on it grows by one (RFC 5681: ssthresh)."""
    changed_at: datetime | None = None
    reduced_at: datetime | None = None
    revision: int = 0
    """Counts changes, for compare-and-set."""


@dataclass(slots=True)
class Signals:
    """What one worker heard since it looked at the pace last."""

    failed: bool = False
    """A request had no effect, or none that is known of."""
    throttled: bool = False
    """An answer was 429."""
    slow: bool = False
    """Answers take much longer than they used to."""
    full: bool = False
    """An answer came while as many requests were under way as it may have: more would have left."""
    seconds: float = 0.0
    """How long a request takes at present."""


def adjusted(pace: Pace, signals: Signals, most: int, now: datetime) -> Pace:
    """The pace after that; the same if it stays.

    Args:
        most: requests at once that make sense, of all workers together.
    """
    rest = timedelta(seconds=max(signals.seconds, REST_SECONDS))
    if pace.reduced_at is None or now >= pace.reduced_at + rest:
        if signals.failed or signals.throttled:
            return _reduced(pace, START, pace.concurrency // 2, now)
        if signals.slow and pace.concurrency > START:
            return _reduced(pace, pace.concurrency * 4 // 5, pace.concurrency * 4 // 5, now)
    if pace.concurrency > most:
        return replace(pace, concurrency=most, changed_at=now, revision=pace.revision + 1)
    is_well = not (signals.failed or signals.throttled or signals.slow)
    round_is_over = pace.changed_at is None or now >= pace.changed_at + timedelta(seconds=signals.seconds)
    if signals.full and is_well and round_is_over and pace.concurrency < most:
        doubled = min(2 * pace.concurrency, pace.threshold)
        concurrency = min(max(doubled, pace.concurrency + 1), most)
        return replace(pace, concurrency=concurrency, changed_at=now, revision=pace.revision + 1)
    return pace


def begun_anew(pace: Pace, now: datetime) -> Pace:
    """After a time in which nothing was sent: what was found out before may be true no more."""
    return Pace(changed_at=now, revision=pace.revision + 1)


def _reduced(pace: Pace, concurrency: int, threshold: int, now: datetime) -> Pace:
    return Pace(max(concurrency, START), max(threshold, START), now, now, pace.revision + 1)


@value
class Hints:
    """What an answer says of the target's limits; None where it does not."""

    parallelism: int | None = None
    """The recommended number of requests at once."""
    requests_left: float | None = None
    """In the present window."""
    seconds_left: float | None = None
    """Of execution time, in the present window."""


@value
class Allowance:
    """What is left of a limit, as the last answer said."""

    left: float
    limit: float
    """The most that was ever left: environments differ, and none says it."""

    @classmethod
    def after(cls, known: "Allowance | None", left: float | None) -> "Allowance | None":
        """With what an answer says."""
        if left is None:
            return known
        return cls(left, max(left, known.limit if known is not None else 0.0))

    def forgotten(self) -> "Allowance":
        """After a 429, which says when to go on: what is left is not known until the next answer."""
        return Allowance(self.limit, self.limit)

    @property
    def is_spent(self) -> bool:
        return self.left < self.limit * SPENT_SHARE

    def rate(self, under_way: float = 0.0) -> float:
        """How much of it may be used in a second, by all workers together.

        Args:
            under_way: how much will be used by what is not answered yet.
        """
        left = max(self.left - under_way, 0.0)
        if left > self.limit * AMPLE_SHARE:
            return math.inf
        return left / (WINDOW_SECONDS * SCARCE_SHARE)

    def gap_seconds(self, cost: float, under_way: float) -> float:
        """How long after something that uses so much of it the next one may follow, where several are under way."""
        rate = self.rate(cost * under_way)
        return cost / rate if rate > 0 else math.inf


def gap_seconds(
    requests: Allowance | None, execution: Allowance | None, request_seconds: float, under_way: float, part: float
) -> float:
    """How long after one request the next one of a worker may leave.

    Args:
        under_way: requests that are not answered yet, of all workers together.
        part: the worker's part of what all do.
    """
    of_requests = requests.gap_seconds(1.0, under_way) if requests is not None else 0.0
    of_execution = execution.gap_seconds(request_seconds, under_way) if execution is not None else 0.0
    return min(max(of_requests, of_execution) / part, MOST_GAP_SECONDS)


@value
class Latency:
    """How long requests of one kind take, in seconds."""

    lately: float
    """About the last ten."""
    usually: float
    """About the last three hundred."""

    @classmethod
    def after(cls, known: "Latency | None", seconds: float) -> "Latency":
        """With one more answer."""
        if known is None:
            return cls(seconds, seconds)
        lately = known.lately + (seconds - known.lately) / 10
        usually = known.usually + (seconds - known.usually) / 300
        return cls(lately, min(usually, 2 * lately))  # what was slow for long is not the measure of what is quick

    @property
    def is_rising(self) -> bool:
        """Much slower than usual. A tenth of a second is nothing."""
        return self.lately > 2 * self.usually + 0.1
