"""Service protection limits, per user (Microsoft: "Service protection API limits")."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dynamics_sync.simulator.errors import DataverseError


@dataclass(frozen=True, slots=True)
class Limits:
    """The defaults that Microsoft documents; environments differ."""

    requests: int = 6000
    execution_seconds: float = 1200.0
    window_seconds: float = 300.0
    concurrent: int = 52
    dop_hint: int = 4
    """`x-ms-dop-hint`: the parallelism that the environment recommends."""


@dataclass(slots=True)
class _Usage:
    starts: deque[float] = field(default_factory=deque)
    durations: deque[tuple[float, float]] = field(default_factory=deque)
    execution_seconds: float = 0.0
    running: int = 0
    pushes: int = 0
    """Refused requests in a row: pushing on makes `Retry-After` grow."""


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
        usage, limits, now = self._current(user), self._limits, self._now()
        window = f"{limits.window_seconds:g} seconds"
        if usage.running >= limits.concurrent:
            raise self._refusal(
                usage, "0x80072326", f"Number of concurrent requests exceeded the limit of {limits.concurrent}.", 1.0
            )
        if len(usage.starts) >= limits.requests:
            wait = usage.starts[0] + limits.window_seconds - now
            text = f"Number of requests exceeded the limit of {limits.requests} over time window of {window}."
            raise self._refusal(usage, "0x80072322", text, wait)
        if usage.execution_seconds >= limits.execution_seconds:
            wait = usage.durations[0][0] + limits.window_seconds - now
            text = (
                f"Combined execution time of incoming requests exceeded limit of {limits.execution_seconds * 1000:,.0f} "
                f"milliseconds over time window of {window}. Decrease number of concurrent requests or reduce the "
                "duration of requests and try again later."
            )
            raise self._refusal(usage, "0x80072321", text, wait)
        usage.pushes = 0
        usage.running += 1
        usage.starts.append(now)

    def end(self, user: str, seconds: float) -> None:
        """A request has ended after so many seconds of work."""
        usage = self._current(user)
        usage.running -= 1
        usage.durations.append((self._now(), seconds))
        usage.execution_seconds += seconds

    def headers(self, user: str) -> dict[str, str]:
        """What every answer says of the limits."""
        usage = self._current(user)
        return {
            "x-ms-ratelimit-burst-remaining-xrm-requests": str(max(self._limits.requests - len(usage.starts), 0)),
            "x-ms-ratelimit-time-remaining-xrm-requests": (
                f"{max(self._limits.execution_seconds - usage.execution_seconds, 0.0):,.2f}"
            ),
            "x-ms-dop-hint": str(self._limits.dop_hint),
        }

    def _current(self, user: str) -> _Usage:
        usage = self._usage.setdefault(user, _Usage())
        horizon = self._now() - self._limits.window_seconds
        while usage.starts and usage.starts[0] <= horizon:
            usage.starts.popleft()
        while usage.durations and usage.durations[0][0] <= horizon:
            usage.execution_seconds -= usage.durations.popleft()[1]
        return usage

    def _refusal(self, usage: _Usage, code: str, message: str, wait_seconds: float) -> DataverseError:
        usage.pushes += 1
        seconds = max(int(wait_seconds + 0.999), 1) + usage.pushes - 1
        return DataverseError(429, code, message, {"Retry-After": str(seconds)})
