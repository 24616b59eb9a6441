"""Callers of one shared circuit, each in a process of its own that has nothing in common with the others but the
database. They tell the test what happened to each call."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.context import ForkServerProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from typing import TypeAlias

from dynamics_sync.core.circuit import CircuitSettings
from dynamics_sync.core.errors import CircuitOpenError
from dynamics_sync.postgres.circuit_store import PostgresCircuitStore
from dynamics_sync.postgres.connections import make_pool
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.ports import Clock
from support.processes import READY

News: TypeAlias = "Queue[str]"

CALLED, REFUSED, FAILED, DONE = "called", "refused", "failed", "done"


@asynccontextmanager
async def shared_breaker(
    url: str, settings: CircuitSettings | None = None, clock: Clock | None = None, connections: int = 6
) -> AsyncIterator[DynamicsCircuitBreaker]:
    """A breaker as a worker has it, with connections of its own."""
    async with make_pool(url, connections) as pool:
        yield DynamicsCircuitBreaker(settings, PostgresCircuitStore(pool, "dynamics"), clock)


async def call(breaker: DynamicsCircuitBreaker, tell: Callable[[str], None], go: asyncio.Event) -> None:
    """Call something that ends when `go` is set, and tell what happens."""

    async def called() -> None:
        tell(CALLED)
        await go.wait()

    try:
        await breaker.call(called)
        tell(DONE)
    except CircuitOpenError:
        tell(REFUSED)


def make_calls(url: str, count: int, start: Barrier, go: Event, news: News) -> None:
    """A process: as many calls at once, none of which ends before `go`."""

    async def work() -> None:
        ends = asyncio.Event()
        async with shared_breaker(url) as breaker:
            await breaker.status()
            await asyncio.to_thread(start.wait)
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(call(breaker, news.put, ends))
                await asyncio.to_thread(go.wait)
                ends.set()

    asyncio.run(work())


def make_failures(url: str, count: int, threshold: int, start: Barrier, news: News) -> None:
    """A process: as many failing calls at once."""

    async def fail() -> None:
        raise ConnectionError

    async def work() -> None:
        async with shared_breaker(url, CircuitSettings(failure_threshold=threshold)) as breaker:
            await breaker.status()
            await asyncio.to_thread(start.wait)
            results = await asyncio.gather(*(breaker.call(fail) for _ in range(count)), return_exceptions=True)
            for result in results:
                news.put(REFUSED if isinstance(result, CircuitOpenError) else FAILED)

    asyncio.run(work())


def tell_state(url: str, news: News) -> None:
    """A process: looks at the circuit once."""

    async def work() -> None:
        async with shared_breaker(url) as breaker:
            news.put(await breaker.state())

    asyncio.run(work())


@contextmanager
def processes(*bodies: Callable[[], None]) -> Iterator[list[ForkServerProcess]]:
    """Processes that run now; what still runs at the end is killed."""
    started = [READY.Process(target=body, daemon=True) for body in bodies]
    for process in started:
        process.start()
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()
            process.close()


async def hear(news: News, count: int) -> list[str]:
    """The next so many pieces of news."""
    return [await asyncio.to_thread(news.get, timeout=30) for _ in range(count)]
