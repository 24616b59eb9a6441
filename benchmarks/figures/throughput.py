"""Records a second through one worker process: single requests, bulk requests, and with a second process."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks.database import Database
from benchmarks.measuring import OUR_PATCHES, PATCHES, SDK, Contender, Figure, Stage
from benchmarks.payload import IN_FLIGHT
from benchmarks.processes import Cpu, module, result_of
from benchmarks.workers import Kind, bare_loop, ours, pgqueuer, procrastinate

RATE = "records/s"
WORKER_CPU, POSTGRES_CPU = "CPU for a record, µs", "CPU of PostgreSQL for a record, µs"
SETTLING_SECONDS = 0.5
"""From when a worker has begun until it is idle."""
SDK_SIZE = 1000
"""Records in one bulk request, as many as ours has at most."""


def drain(stage: Stage, kind: Kind, database: Database, count: int, processes: int = 1) -> Mapping[str, float]:
    """Make records wait for idle workers by one transaction. What counts is from the first request until nothing waits
    any more, settlements included."""
    database.settle()
    target = stage.target
    with kind.at_work(database, target, processes) as workers, database.connect() as looking:
        time.sleep(SETTLING_SECONDS)
        target.reset()
        database.run(kind.enqueue.format(first=1, last=count))
        of_workers, of_postgres = Cpu(lambda: [worker.pid for worker in workers]), Cpu(stage.server.processes)
        began = target.until(count)["first"]
        taken = kind.drained_at(looking) - began
        seconds = {WORKER_CPU: of_workers.seconds(), POSTGRES_CPU: of_postgres.seconds()}
    return {RATE: count / taken, **{name: 1e6 * used / count for name, used in seconds.items()}}


def _of_workers(stage: Stage, stack: ExitStack, figure: str, kinds: Sequence[tuple[Kind, int]]) -> list[Contender]:
    """Each on a database of its own, which it keeps for all rounds."""
    contenders = []
    for number, (kind, count) in enumerate(kinds):
        database = stack.enter_context(stage.server.database(f"{figure}_{number}", count))
        kind.prepare(database)
        contenders.append(Contender(kind.name, partial(drain, stage, kind, database, count)))
    return contenders


def _patches(stage: Stage, name: str = PATCHES, client: str = "aiohttp") -> Contender:
    command = module("bare.patches", stage.target.url, stage.sizes.single, client)
    return Contender(name, lambda: {RATE: result_of(command)})


def _sdk(stage: Stage, python: str, count: int, size: int) -> Contender:
    command = module("peers.sdk", stage.target.url, count, size, python=python)
    return Contender(SDK, lambda: {RATE: result_of(command)})


@contextmanager
def _single(stage: Stage) -> Iterator[Sequence[Contender]]:
    sizes, python = stage.sizes, stage.peers.python
    kinds = [(ours(bulk_size=1), sizes.single), (bare_loop("single"), sizes.single)]
    if python is not None:
        kinds += [(pgqueuer(python), sizes.single), (procrastinate(python), sizes.slow)]
    with ExitStack() as stack:
        limits = [_patches(stage), _patches(stage, OUR_PATCHES, "ours")]
        contenders = [*limits, *_of_workers(stage, stack, "single", kinds)]
        if python is not None:
            contenders.append(_sdk(stage, python, sizes.single, 1))
        yield contenders


@contextmanager
def _bulk(stage: Stage) -> Iterator[Sequence[Contender]]:
    sizes, python = stage.sizes, stage.peers.python
    with ExitStack() as stack:
        kinds = [(ours(), sizes.bulk), (bare_loop("bulk"), sizes.bulk)]
        contenders = [_patches(stage), *_of_workers(stage, stack, "bulk", kinds)]
        if python is not None:
            contenders.append(_sdk(stage, python, sizes.bulk, SDK_SIZE))
        yield contenders


@contextmanager
def _workers(stage: Stage) -> Iterator[Sequence[Contender]]:
    """As docs say: several workers of one user in Dynamics share what it may have under way."""
    sizes = stage.sizes
    with ExitStack() as stack:
        contenders = []
        for form, bulk_size, count in (("single", 1, sizes.single), ("bulk", 1000, sizes.bulk)):
            database = stack.enter_context(stage.server.database(f"workers_{form}", count))
            ours().prepare(database)
            for processes, name in ((1, "one"), (2, "two")):
                kind = ours(bulk_size=bulk_size, concurrency=IN_FLIGHT // processes)
                turn = partial(drain, stage, kind, database, count, processes)
                contenders.append(Contender(f"{name}, {form}", turn))
        yield contenders


SINGLE = Figure("single", "One PATCH per record", _single)
BULK = Figure("bulk", "Many records in a request", _bulk)
WORKERS = Figure("workers", "Two worker processes", _workers)
