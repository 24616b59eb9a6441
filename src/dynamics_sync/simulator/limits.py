"""Service protection limits, per user, over a sliding window (Microsoft: "Service protection API limits")."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dynamics_sync.simulator.errors import DataverseError

_PENALTY_SECONDS = 1.0
"""What each request during a wait adds to it: "the duration will be extended". The amount is ours."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The defaults that Microsoft documents; environments differ."""

    requests: int = 6000
    window_seconds: float = 300.0
    execution_seconds: float = 1200.0
    concurrent: int = 52
    dop_hint: int = 4
    """`x-ms-dop-hint`: the parallelism that the environment recommends."""


@dataclass(slots=True)
class _Usage:
    starts: deque[float] = field(default_factory=deque)
    durations: deque[tuple[float, float]] = field(default_factory=deque)
    execution_seconds: float = 0.0
    running: int = 0
    refused: tuple[str, str] = ("", "")
    """Code and message of the refusal that stands until `blocked_until`."""
    blocked_until: float = 0.0
    pushes: int = 0
    """Requests in a row that were refused for concurrency."""


class LimitKeeper:
    """Counts what each user does."""

    def __init__(self, limits: Limits, now: Callable[[], float]) -> None:
        self._limits = limits
        self._now = now
        self._usage: dict[str, _Usage] = {}

    def begin(self, user: str) -> None:
        """A request starts.

        Raises:
            DataverseError: 429, a limit is reached.
        """
        usage, now = self._current(user), self._now()
        self._check_blocked(usage, now)
        if usage.running >= self._limits.concurrent:
            usage.pushes += 1
            text = f"Number of concurrent requests exceeded the limit of {self._limits.concurrent}."
            raise _refusal("0x80072326", text, usage.pushes * _PENALTY_SECONDS)
        if len(usage.starts) >= self._limits.requests or usage.execution_seconds >= self._limits.execution_seconds:
            self._block(usage)
            raise _refusal(*usage.refused, usage.blocked_until - now)
        usage.pushes = 0
        usage.running += 1
        usage.starts.append(now)

    def end(self, user: str, seconds: float) -> None:
        """A request has ended after so many seconds of work."""
        usage = self._usage[user]
        usage.running -= 1
        usage.durations.append((self._now(), seconds))
        usage.execution_seconds += seconds

    def headers(self, user: str) -> dict[str, str]:
        """What every answer says of the limits; the separator of thousands is Dataverse's own."""
        usage = self._current(user)
        left = max(self._limits.execution_seconds - usage.execution_seconds, 0.0)
        return {
            "x-ms-ratelimit-burst-remaining-xrm-requests": str(max(self._limits.requests - len(usage.starts), 0)),
            "x-ms-ratelimit-time-remaining-xrm-requests": f"{left:,.2f}",
            "x-ms-dop-hint": str(self._limits.dop_hint),
        }

    def _check_blocked(self, usage: _Usage, now: float) -> None:
        """Sending on during a wait makes it longer, up to twice the window from now."""
        if now >= usage.blocked_until:
            return
        longest = now + 2 * self._limits.window_seconds
        usage.blocked_until = max(usage.blocked_until, min(usage.blocked_until + _PENALTY_SECONDS, longest))
        raise _refusal(*usage.refused, usage.blocked_until - now)

    def _block(self, usage: _Usage) -> None:
        window = self._limits.window_seconds
        if len(usage.starts) >= self._limits.requests:
            usage.blocked_until = (usage.starts[0] if usage.starts else self._now()) + window
            usage.refused = (
                "0x80072322",
                f"Number of requests exceeded the limit of {self._limits.requests} over time window of "
                f"{window:g} seconds.",
            )
            return
        usage.blocked_until = (usage.durations[0][0] if usage.durations else self._now()) + window
        usage.refused = (
            "0x80072321",
            f"Combined execution time of incoming requests exceeded limit of "
            f"{self._limits.execution_seconds * 1000:,.0f} milliseconds over time window of {window:g} seconds. "
            "Decrease number of concurrent requests or reduce the duration of requests and try again later.",
        )

    def _current(self, user: str) -> _Usage:
        usage = self._usage.get(user)
        if usage is None:
            usage = self._usage[user] = _Usage()
        horizon = self._now() - self._limits.window_seconds
        while usage.starts and usage.starts[0] <= horizon:
            usage.starts.popleft()
        while usage.durations and usage.durations[0][0] <= horizon:
            usage.execution_seconds -= usage.durations.popleft()[1]
        return usage


def _refusal(code: str, message: str, wait_seconds: float) -> DataverseError:
    return DataverseError(429, code, message, {"Retry-After": str(max(math.ceil(wait_seconds), 1))})
