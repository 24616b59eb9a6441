"""A circuit breaker of others, closed and in memory: `python -m benchmarks.peers.breakers NAME CALLS`.

Each in a way that its documentation shows, with its defaults: a function decorated once, and for pybreaker, whose
decorator knows tornado's coroutines only, the context manager, which is many times faster than those.
"""

import asyncio
import json
import sys
from collections.abc import Callable

from benchmarks.calls import Call, overhead_us, work


def pybreaker() -> Call:
    from pybreaker import CircuitBreaker

    breaker = CircuitBreaker()

    async def guarded() -> None:
        with breaker.calling():
            await work()

    return guarded


def aiobreaker() -> Call:
    from aiobreaker import CircuitBreaker

    return CircuitBreaker()(work)


def circuitbreaker() -> Call:
    from circuitbreaker import CircuitBreaker

    return CircuitBreaker()(work)


def purgatory() -> Call:
    from purgatory import AsyncCircuitBreakerFactory

    return AsyncCircuitBreakerFactory()("bench")(work)


def hyx() -> Call:
    from hyx.circuitbreaker import consecutive_breaker

    return consecutive_breaker()(work)


BREAKERS: dict[str, Callable[[], Call]] = {
    each.__name__: each for each in (pybreaker, aiobreaker, circuitbreaker, purgatory, hyx)
}

if __name__ == "__main__":
    print(json.dumps(asyncio.run(overhead_us(BREAKERS[sys.argv[1]](), int(sys.argv[2])))))
