"""Our breaker, closed and in memory, and a bare state machine: `python -m benchmarks.bare.breaker NAME CALLS`."""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks.calls import Call, overhead_us, work
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.memory import InMemoryCircuitStore


class StateMachine:
    """The least that a breaker is: no probes, no events, no store."""

    def __init__(self) -> None:
        self.failures = 0
        self.open_until = 0.0

    async def call(self) -> None:
        if self.open_until and time.monotonic() < self.open_until:
            raise RuntimeError
        try:
            await work()
        except Exception:
            self.failures += 1
            if self.failures >= 3:
                self.open_until = time.monotonic() + 60
            raise
        self.failures = 0


def ours() -> Call:
    return partial(DynamicsCircuitBreaker(store=InMemoryCircuitStore()).call, work)


def bare() -> Call:
    return StateMachine().call


BREAKERS: dict[str, Callable[[], Call]] = {"ours": ours, "bare": bare}

if __name__ == "__main__":
    print(json.dumps(asyncio.run(overhead_us(BREAKERS[sys.argv[1]](), int(sys.argv[2])))))
