"""Everything that empties a queue in PostgreSQL, in one form: how its tables are made, how records are made to wait,
how it is run, and how it is seen that nothing waits any more."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.database import TOGGLED, Connection, Database
from benchmarks.measuring import LOOP, OURS
from benchmarks.processes import (
    LONGEST_SECONDS,
    BenchmarkError,
    Command,
    Running,
    Target,
    module,
    output_of,
    running,
)
from dynamics_sync.postgres.migrate import MACHINERY, migrate

HERE = Path(__file__).parent
LOOKS_SECONDS = 0.005
COMMAND = [sys.executable, "-c", "from dynamics_sync.cli import main; main()"]
"""What `dynamics-sync` runs."""

CHANGED = f"update public.certificates set status = {TOGGLED} where number between {{first}} and {{last}}"
"""What a user does; triggers do the rest."""

Environment = Callable[[Database, Target], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One of them."""

    name: str
    prepare: Callable[[Database], None]
    """Make its tables beside the user's."""
    enqueue: str
    """A statement that makes the records numbered from `{first}` to `{last}` wait."""
    waits: str
    """A query: whether anything waits, or is on its way."""
    command: Callable[[Target], Command]
    ready: str
    """What it says when it has begun."""
    environment: Environment = lambda database, _: {"BENCH_DATABASE_URL": database.url}

    def drained_at(self, looking: Connection) -> float:
        """When nothing waits any more (monotonic seconds).

        Raises:
            BenchmarkError: it takes too long.
        """
        deadline = time.monotonic() + LONGEST_SECONDS
        while (now := time.monotonic()) < deadline:
            if looking.execute(self.waits).fetchone() == (False,):
                return now
            time.sleep(LOOKS_SECONDS)
        raise BenchmarkError("records were left waiting")

    @contextmanager
    def at_work(self, database: Database, target: Target, processes: int = 1) -> Iterator[list[Running]]:
        """So many processes of it, from when all have begun."""
        environment = self.environment(database, target)
        with ExitStack() as stack:
            started = [stack.enter_context(running(self.command(target), **environment)) for _ in range(processes)]
            for each in started:
                each.says(self.ready)
            yield started


def ours(**settings: object) -> Kind:
    """`dynamics-sync run`, as a user runs it, with its defaults but for these settings. It reconciles nothing: there is
    no Dynamics to compare with."""

    def prepare(database: Database) -> None:
        asyncio.run(migrate(database.url, (MACHINERY,)))
        database.run("select dynamics_sync.watch('public.certificates')")

    def environment(database: Database, target: Target) -> Mapping[str, str]:
        given = {
            "database_url": database.url,
            "dynamics_url": target.url,
            "authority_url": target.url,
            "tenant_id": "tenant",
            "client_id": "bench",
            "client_secret": "bench",
            "mapping": HERE / "mapping.toml",
            "reconcile_hours": 0,
        } | settings
        return {f"DYNAMICS_SYNC_{name.upper()}": str(value) for name, value in given.items()}

    return Kind(
        name=OURS,
        prepare=prepare,
        enqueue=CHANGED,
        waits="select exists (select from dynamics_sync.outbox) or exists (select from dynamics_sync.changes)",
        command=lambda _: [*COMMAND, "run", "--no-web"],
        ready="worker.started",
        environment=environment,
    )


def bare_loop(form: str) -> Kind:
    """The hand-written one, `single` or `bulk`."""
    schema = (HERE / "bare" / "schema.sql").read_text()
    return Kind(
        name=LOOP,
        prepare=lambda database: database.run(schema),
        enqueue=CHANGED,
        waits="select exists (select from bare.outbox)",
        command=lambda target: module("bare.loop", target.url, form),
        ready="ready",
    )


BODY = """json_build_object(
  'bench_issuedon', issued_on, 'bench_expireson', expires_on,
  'bench_status', case status when 'active' then 100000001 else 100000003 end
)"""


def pgqueuer(python: str) -> Kind:
    return Kind(
        name="pgqueuer",
        prepare=lambda database: database.run(schema_of("pgqueuer", python)),
        enqueue=f"""
insert into pgqueuer (priority, entrypoint, payload, status)
select 0, 'upsert', convert_to(id || ' ' || {BODY}, 'UTF8'), 'queued'
from public.certificates where number between {{first}} and {{last}}
""",
        waits="select exists (select from pgqueuer)",
        command=lambda target: module("peers.pgqueuer_worker", target.url, python=python),
        ready="ready",
    )


def procrastinate(python: str) -> Kind:
    return Kind(
        name="procrastinate",
        prepare=lambda database: database.run(schema_of("procrastinate", python)),
        enqueue=f"""
insert into procrastinate_jobs (queue_name, task_name, args)
select 'upsert', 'upsert', jsonb_build_object('key', id, 'data', {BODY}::text)
from public.certificates where number between {{first}} and {{last}}
""",
        waits="select exists (select from procrastinate_jobs)",
        command=lambda target: module("peers.procrastinate_worker", target.url, python=python),
        ready="ready",
    )


def schema_of(name: str, python: str) -> str:
    """The SQL that makes a peer's tables, as the peer gives it."""
    return output_of(module("peers.schemas", name, python=python))
