"""What a wrapper around an awaited call costs. Nothing but the standard library, as the peers' scripts use it, too."""

import statistics
import time
from collections.abc import Awaitable, Callable

CHUNKS = 9

Call = Callable[[], Awaitable[object]]


async def work() -> None:
    """What is called: as little as possible."""


async def overhead_us(call: Call, calls: int) -> float:
    """Microseconds for each call over a bare await, the median of chunks that alternate with bare ones."""
    await _seconds(call, calls // 10)
    extra = [await _seconds(call, calls) - await _seconds(work, calls) for _ in range(CHUNKS)]
    return statistics.median(extra) / calls * 1e6


async def _seconds(call: Call, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        await call()
    return time.perf_counter() - began
