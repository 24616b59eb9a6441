"""What a long queue costs: a fixed number is sent of few, many and very many that wait."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks.database import TOGGLED, Database
from benchmarks.measuring import Contender, Figure, Stage
from benchmarks.processes import Target
from benchmarks.workers import Kind, ours
from dynamics_sync.postgres.outbox import GATHERED_AT_ONCE

RATE, MEMORY = "records/s", "peak MiB"

FILL = f"""
update public.certificates set status = {TOGGLED}
where not exists (select from dynamics_sync.outbox waiting where waiting.record_key = certificates.id::text)
"""
"""What was sent in the round before waits again, behind all others."""
GATHER = f"select dynamics_sync.gather('dynamics', {GATHERED_AT_ONCE})"
"""As workers do while Dynamics is down, again and again."""


def drain_part(kind: Kind, database: Database, target: Target, count: int) -> Mapping[str, float]:
    """From the first request until `count` records have arrived, and the most memory that the worker had by then."""
    database.run(FILL)
    while database.value(GATHER) > 0:
        pass
    database.settle()
    target.reset()
    with kind.at_work(database, target) as [worker]:
        reached = target.until(count)
        memory = worker.peak_mebibytes
    return {RATE: reached["records"] / (reached["at"] - reached["first"]), MEMORY: memory}


@contextmanager
def _backlog(stage: Stage) -> Iterator[Sequence[Contender]]:
    with ExitStack() as stack:
        contenders = []
        for name, waiting in zip(("few", "many", "very many"), stage.sizes.backlogs, strict=True):
            database = stack.enter_context(stage.server.database(f"backlog_{waiting}", waiting))
            ours().prepare(database)
            sent = min(waiting, stage.sizes.drained)
            for form, kind in (("single", ours(bulk_size=1)), ("bulk", ours())):
                turn = partial(drain_part, kind, database, stage.target, sent)
                contenders.append(Contender(f"{name} waiting, {form}", turn))
        yield contenders


BACKLOG = Figure("backlog", "A long queue", _backlog)
