"""From a user's commit to the request at the server, while nothing else happens."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks.database import Connection, Database
from benchmarks.measuring import Contender, Figure, Stage
from benchmarks.processes import BenchmarkError, Target
from benchmarks.workers import Kind, bare_loop, ours, pgqueuer

P50, P99 = "p50 ms", "p99 ms"
PAUSE_SECONDS = (0.06, 0.14)
"""Between two commits: longer than any of them takes to settle, and not in step with anything that polls."""
BEFORE = 3
"""Commits that do not count."""


def commits(kind: Kind, database: Database, target: Target, samples: int) -> Mapping[str, float]:
    """Commit changes of one record each, and ask the server when they arrived."""
    pauses = random.Random(samples)
    database.settle()
    with kind.at_work(database, target), database.connect() as user:
        target.reset()
        _commit(kind, user, pauses, BEFORE)
        target.until(BEFORE)
        target.reset()
        committed = _commit(kind, user, pauses, samples)
        target.until(samples)
        arrived = target.arrivals
        kind.drained_at(user)  # what is left would be sent once more in the next turn
    if any(there < then - PAUSE_SECONDS[0] / 2 for then, there in zip(committed, arrived, strict=True)):
        raise BenchmarkError("a request was at the server long before its commit")
    taken = sorted((there - then) * 1000 for then, there in zip(committed, arrived, strict=True))
    return {P50: taken[len(taken) // 2], P99: taken[min(len(taken) - 1, len(taken) * 99 // 100)]}


def _commit(kind: Kind, user: Connection, pauses: random.Random, samples: int) -> Sequence[float]:
    """When each commit was done (monotonic seconds): what the user's own disk takes is nobody's merit or fault."""
    times = []
    for number in range(1, samples + 1):
        time.sleep(pauses.uniform(*PAUSE_SECONDS))
        with user.transaction():
            user.execute(kind.enqueue.format(first=number, last=number))
        times.append(time.monotonic())
    return times


@contextmanager
def _latency(stage: Stage) -> Iterator[Sequence[Contender]]:
    samples, python = stage.sizes.samples, stage.peers.python
    kinds = [ours(), bare_loop("single")]
    if python is not None:
        kinds.append(pgqueuer(python))
    with ExitStack() as stack:
        contenders = []
        for number, kind in enumerate(kinds):
            database = stack.enter_context(stage.server.database(f"latency_{number}", max(samples, BEFORE)))
            kind.prepare(database)
            contenders.append(Contender(kind.name, partial(commits, kind, database, stage.target, samples)))
        yield contenders


LATENCY = Figure("latency", "Commit to request, idle", _latency)
