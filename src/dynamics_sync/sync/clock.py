"""The real clock, and one whose waits can be ended."""

import asyncio
import time
from datetime import UTC, datetime

from dynamics_sync.core.errors import DynamicsSyncError
from dynamics_sync.sync.ports import Clock


class SystemClock:
    """The machine's wall clock, its monotonic clock, and asyncio's sleep."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class StoppedError(DynamicsSyncError):
    """The worker stopped while an operation waited for its next try."""


class StoppableClock:
    """A clock whose waits end early when the worker stops, so that a stop need not sit out a back-off."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stopped = asyncio.Event()

    def now(self) -> datetime:
        return self._clock.now()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait; StoppedError when the worker stops before the time is over."""
        await self.sleep_or(self._stopped, seconds)
        if self._stopped.is_set():
            raise StoppedError("The worker stopped while the operation waited for its next try.")

    async def sleep_or(self, event: asyncio.Event, seconds: float) -> None:
        """Wait until the event is set, the worker stops, or the time is over."""
        waits = [
            asyncio.ensure_future(wait) for wait in (self._clock.sleep(seconds), event.wait(), self._stopped.wait())
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def stop(self) -> None:
        """End every wait, and each that begins from now on."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()
