"""What capturing costs the user: their own transactions and statements, without a trigger and with each.

Nobody empties the queues meanwhile, as that would take from the cores what is measured; a session listens, as a worker
would, so that notifications have somewhere to go. The queues are emptied before each turn.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from psycopg.conninfo import conninfo_to_dict

from benchmarks.database import BINARIES, TOGGLED, Database
from benchmarks.measuring import NO_TRIGGER, OURS, Contender, Figure, Sizes, Stage
from benchmarks.processes import BenchmarkError, output_of
from benchmarks.workers import bare_loop, ours, schema_of

TRANSACTIONS, STATEMENT = "transactions/s", "seconds"
CLIENTS = 8

TRANSACTION = f"""
\\set number random(1, {{rows}})
update public.certificates set status = {TOGGLED} where number = :number;
"""

ROW_TRIGGER = """
create function public.enqueue() returns trigger language plpgsql as $$
begin
  {body}
  return null;
end
$$;
create trigger enqueue after update on public.certificates for each row execute function public.enqueue();
"""
PGQUEUER = """
  with job as (
    insert into pgqueuer (priority, entrypoint, payload, execute_after, status)
    values (0, 'upsert', convert_to(new.id::text, 'UTF8'), now(), 'queued') returning id
  )
  insert into pgqueuer_log (job_id, status, entrypoint, priority) select id, 'queued', 'upsert', 0 from job;
"""
"""What its `enqueue` does, in a trigger: as part of the user's transaction, without a round trip."""
PROCRASTINATE = """
  perform procrastinate_defer_jobs_v1(array[
    row('upsert', 'upsert', 0, null, null, jsonb_build_object('key', new.id), null)::procrastinate_job_to_defer_v1
  ]);
"""
"""What its `defer` calls; its own trigger notifies."""
FASTSTREAM = """
  insert into outbox (queue, payload) values ('upsert', convert_to(new.id::text, 'UTF8'));
  perform pg_notify('outbox_outbox', 'upsert');
"""
"""What its `publish` sends, both statements."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A way to note changes."""

    name: str
    prepare: Callable[[Database], None]
    empty: str
    """A statement that empties its queue."""
    channel: str
    """What its worker listens on."""


def _nothing(database: Database) -> None:
    """No trigger."""


def _captures(python: str | None) -> Sequence[Capture]:
    captures = [
        Capture(NO_TRIGGER, _nothing, "select", "nothing"),
        Capture(OURS, ours().prepare, "truncate dynamics_sync.changes", "dynamics_sync"),
        Capture("a plain row trigger", bare_loop("single").prepare, "truncate bare.outbox", "bare"),
    ]
    if python is not None:
        captures += [
            Capture(name, partial(_with_row_trigger, name, python, body), f"truncate {tables} cascade", channel)
            for name, body, tables, channel in (
                ("pgqueuer", PGQUEUER, "pgqueuer, pgqueuer_log", "ch_pgqueuer"),
                ("procrastinate", PROCRASTINATE, "procrastinate_jobs", "procrastinate_any_queue_v1"),
                ("faststream-outbox", FASTSTREAM, "outbox", "outbox_outbox"),
            )
        ]
    return captures


def _with_row_trigger(name: str, python: str, body: str, database: Database) -> None:
    database.run(schema_of(name, python), ROW_TRIGGER.format(body=body))


def turn(capture: Capture, database: Database, sizes: Sizes) -> Mapping[str, float]:
    """Transactions of several clients, then one statement that changes many rows."""
    with _listener(database, capture.channel):
        database.run(capture.empty)
        database.settle()
        a_second = transactions(database, sizes)
        database.run(capture.empty)
        database.settle()
        with database.connect() as user:
            began = time.perf_counter()
            user.execute(f"update public.certificates set status = {TOGGLED} where number <= {sizes.statement_rows}")
            return {TRANSACTIONS: a_second, STATEMENT: time.perf_counter() - began}


def transactions(database: Database, sizes: Sizes) -> float:
    """Single-row updates a second, by pgbench."""
    address = conninfo_to_dict(database.url)
    with TemporaryDirectory() as directory:
        script = Path(directory, "update.sql")
        script.write_text(TRANSACTION.format(rows=sizes.rows))
        said = output_of(
            [
                *(str(BINARIES / "pgbench"), "--no-vacuum", "--protocol", "prepared", "--file", str(script)),
                *("--client", str(CLIENTS), "--jobs", "2", "--transactions", str(sizes.transactions)),
            ],
            **{f"PG{name.upper()}": str(address[name]) for name in ("host", "port", "user", "password")},
            PGDATABASE=str(address["dbname"]),
        )
    found = re.search(r"tps = ([\d.]+)", said)
    if found is None:
        raise BenchmarkError(f"pgbench said no number:\n{said}")
    return float(found[1])


@contextmanager
def _listener(database: Database, channel: str) -> Iterator[None]:
    """A session that listens, and throws away what it hears."""
    over = threading.Event()

    def hear() -> None:
        while not over.wait(0.02):
            connection.pgconn.consume_input()
            while connection.pgconn.notifies() is not None:
                pass

    with database.connect() as connection:
        connection.execute(f'listen "{channel}"')
        hearing = threading.Thread(target=hear)
        hearing.start()
        try:
            yield
        finally:
            over.set()
            hearing.join()


@contextmanager
def _trigger(stage: Stage) -> Iterator[Sequence[Contender]]:
    sizes = stage.sizes
    with ExitStack() as stack:
        contenders = []
        for number, capture in enumerate(_captures(stage.peers.python)):
            database = stack.enter_context(stage.server.database(f"trigger_{number}", sizes.rows))
            capture.prepare(database)
            contenders.append(Contender(capture.name, partial(turn, capture, database, sizes)))
        yield contenders


TRIGGER = Figure("trigger", "The trigger", _trigger)
