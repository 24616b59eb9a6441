"""Commands. Each opens what it needs, does one thing and says what happened; an error is one message and status 1."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TypeVar
from uuid import UUID

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynamics_sync import app, sandbox
from dynamics_sync.core.errors import ConfigurationError, DynamicsSyncError
from dynamics_sync.core.explanations import explain
from dynamics_sync.core.operation import QueueStatus
from dynamics_sync.dynamics.checks import check_dynamics
from dynamics_sync.logs import configure_logging
from dynamics_sync.postgres.migrate import migrate as apply_migrations
from dynamics_sync.postgres.retry_queue import QueueEntry
from dynamics_sync.settings import Settings, load_settings, operator_name
from dynamics_sync.simulator import Simulator, SimulatorConfig, load_tables
from dynamics_sync.sync.events import emit
from dynamics_sync.web.health import circuit_document
from dynamics_sync.web.server import Server, listening_socket

T = TypeVar("T")

commands = typer.Typer(
    help="Every committed change in PostgreSQL reaches Microsoft Dynamics 365, or a person knows why not.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
queue_commands = typer.Typer(help="What could not be sent, and sending it again.", no_args_is_help=True)
circuit_commands = typer.Typer(help="How Dynamics is, as all workers see it.", no_args_is_help=True)
commands.add_typer(queue_commands, name="queue")
commands.add_typer(circuit_commands, name="circuit")

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
Id = Annotated[UUID | None, typer.Option("--id", help="One entry.")]
Status = Annotated[QueueStatus | None, typer.Option("--status", help="Entries of this status.")]
All = Annotated[bool, typer.Option("--all", help="Every entry that is open.")]

console = Console()


def main() -> NoReturn:
    """The entry point: errors of ours become one message on stderr and exit status 1."""
    configure_logging()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        commands(standalone_mode=True)
    except DynamicsSyncError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does, in order: an embedded server is stopped, what was temporary removed."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # a shell's background job ignores Ctrl-C
        sys.exit(128 + number)
    handler(signal.SIGINT, frame)


def fail(message: str) -> NoReturn:
    Console(stderr=True).print(f"[bold red]dynamics-sync:[/] {escape(message)}", highlight=False)
    sys.exit(1)


@commands.command()
def migrate(as_json: AsJson = False) -> None:
    """Prepare the database, or bring it up to date. Safe to run again."""
    settings = load_settings()
    with app.database(settings) as url:
        applied = asyncio.run(apply_migrations(url, app.migration_sets(settings)))
    if as_json:
        print_json({"applied": applied})
    elif applied:
        for name in applied:
            console.print(f"[green]applied[/] {name}")
    else:
        console.print("The database is up to date.")


@commands.command()
def run(
    web: Annotated[bool, typer.Option(help="Serve the health pages.")] = True,
    worker: Annotated[bool, typer.Option(help="Send changes.")] = True,
) -> None:
    """Work: send what changes, and serve health pages. Stops gracefully on SIGTERM and Ctrl-C."""
    settings = load_settings()
    with app.database(settings) as url:
        asyncio.run(_run(settings, url, web=web, worker=worker))


async def _run(settings: Settings, url: str, *, web: bool, worker: bool) -> None:
    if settings.database_url is None:
        await apply_migrations(url, app.migration_sets(settings))
    if not settings.enabled:
        await app.check_capture(app.read_mapping(settings.mapping), url)
        async with app.open_stores(settings, url) as stores:
            emit("worker.disabled", "warning")
            await _serve(settings, app.health_server(stores) if web else None, None)
        return
    async with sandbox.dynamics_or_simulator(settings) as settings, app.open_engine(settings, url) as engine:
        await check_dynamics(engine.gateway)
        server = app.health_server(engine.stores, engine.tokens) if web else None
        await _serve(settings, server, engine if worker else None)


async def _serve(settings: Settings, server: Server | None, engine: app.Engine | None) -> None:
    """Run what there is until SIGTERM or Ctrl-C, then end it in order."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    jobs: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait())]
    if server is not None:
        jobs.append(asyncio.create_task(server.serve([listening_socket(settings.host, settings.port)])))
    if engine is not None:
        jobs.append(asyncio.create_task(app.run_worker(engine)))
    await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
    if engine is not None:
        engine.worker.stop()
    if server is not None:
        server.should_exit = True
    stop.set()
    await asyncio.gather(*jobs)


@commands.command()
def simulator(
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8081,
    tls: Annotated[bool, typer.Option("--tls", help="Serve TLS, with a certificate of its own making.")] = False,
    ca_file: Annotated[Path, typer.Option(help="With --tls: where to write the authority to trust.")] = Path(
        ".dynamics-sync/simulator-ca.pem"
    ),
    tables: Annotated[Path | None, typer.Option(help="A TOML file of tables, instead of the mapping's.")] = None,
    token_lifetime: Annotated[int, typer.Option(min=1, help="Seconds that a token is valid.")] = 3599,
) -> None:
    """Run a local Dataverse that can be told to fail."""
    try:
        declared = (
            load_tables(tables) if tables else sandbox.simulator_tables(app.read_mapping(load_settings().mapping))
        )
        config = SimulatorConfig(
            declared, port=port, tls=tls, ca_file=ca_file if tls else None, token_lifetime_seconds=token_lifetime
        )
        asyncio.run(_serve_simulator(config))
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"The simulator cannot start: {error}") from None


async def _serve_simulator(config: SimulatorConfig) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Simulator(config) as simulator:
        console.print(f"Dynamics simulator at [bold]{simulator.url}[/], client id [bold]demo[/], secret [bold]demo[/]")
        if simulator.ca_file is not None:
            console.print(f"Trust it with DYNAMICS_SYNC_CA_FILE={simulator.ca_file}")
        await stop.wait()


@commands.command()
def demo() -> None:
    """Show the main job on this machine: an embedded PostgreSQL, a Dynamics that fails, and an account at the end."""
    from dynamics_sync.demo import run_demo

    sys.exit(0 if run_demo(console) else 1)


@commands.command()
def status(as_json: AsJson = False) -> None:
    """The truth in one glance: what waits, what needs a person, how Dynamics is."""

    async def look(stores: app.Stores) -> dict[str, Any]:
        return {
            "waiting": await stores.waiting(),
            "queue": await stores.queue.counts(),
            "circuit": circuit_document(await stores.breaker.status()),
        }

    found = with_stores(look)
    if as_json:
        print_json(found)
        return
    table = Table(show_header=False, box=None)
    table.add_row("waiting in the outbox", str(found["waiting"]))
    for name in QueueStatus:
        if found["queue"].get(name):
            table.add_row(f"queue: {name}", str(found["queue"][name]))
    table.add_row("circuit", _coloured(found["circuit"]["state"]))
    console.print(table)


@circuit_commands.command("show")
def circuit_show(as_json: AsJson = False) -> None:
    """The circuit: closed, open or half-open, and why."""
    found = with_stores(lambda stores: stores.breaker.status())
    if as_json:
        print_json(circuit_document(found))
        return
    console.print(f"The circuit is {_coloured(found.state)}.")
    if found.opened_at is not None:
        console.print(f"Opened {found.opened_at:%Y-%m-%d %H:%M:%S %Z} after {found.failure_count} failed requests.")
    if found.last_error_code is not None:
        console.print(f"Last error {found.last_error_code}: {explain(found.last_error_code)}")
    if found.retry_at is not None:
        console.print(f"The next request may leave at {found.retry_at:%H:%M:%S %Z}.")


@queue_commands.command("list")
def queue_list(status: Status = None, as_json: AsJson = False) -> None:
    """What could not be sent, oldest first."""
    entries = with_stores(lambda stores: stores.queue.entries([status] if status else None))
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    if not entries:
        console.print("The queue is empty.")
        return
    table = Table("id", "status", "table", "key", "error", "attempts", "since")
    for entry in entries:
        since = f"{entry.created_at:%Y-%m-%d %H:%M}"
        cells = [str(entry.id), entry.status, entry.source_table, entry.record_key, entry.error_code]
        table.add_row(*cells, str(entry.attempt_count), since)
    console.print(table)


@queue_commands.command("show")
def queue_show(entry_id: Annotated[UUID, typer.Argument(help="The entry's id.")], as_json: AsJson = False) -> None:
    """One entry: what failed, why, what to do, and each attempt."""

    async def look(stores: app.Stores) -> dict[str, Any]:
        entries = await stores.queue.entries(entry_id=entry_id)
        if not entries:
            raise ConfigurationError(f"The queue has no entry {entry_id}. `dynamics-sync queue list` shows all.")
        attempts = [asdict(attempt) for attempt in await stores.queue.time_line(entries[0])]
        return asdict(entries[0]) | {"explanation": explain(entries[0].error_code), "attempts": attempts}

    found = with_stores(look)
    if as_json:
        print_json(found)
        return
    table = Table(show_header=False, box=None)
    for name in ("id", "status", "source_table", "record_key", "failure_reason", "error_code", "attempt_count"):
        table.add_row(name, str(found[name]))
    table.add_row("what it means", found["explanation"])
    for attempt in found["attempts"]:
        at = f"{attempt['at']:%Y-%m-%d %H:%M:%S}"
        table.add_row(f"attempt {attempt['attempt_number']}", f"{at}  {attempt['error_code']}")
    console.print(table)


@queue_commands.command("replay")
def queue_replay(
    id: Id = None,
    status: Status = None,
    all: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send entries again: each record goes back into the outbox, and its present state is sent."""
    _act("replay", id, status, all, dry_run, yes, as_json, None)


@queue_commands.command("discard")
def queue_discard(
    id: Id = None,
    status: Status = None,
    all: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    reason: Annotated[str | None, typer.Option(help="Why, for the audit trail.")] = None,
    as_json: AsJson = False,
) -> None:
    """Close entries without sending them: Dynamics keeps what it has."""
    _act("discard", id, status, all, dry_run, yes, as_json, reason)


def _act(
    action: str,
    entry_id: UUID | None,
    status: QueueStatus | None,
    every: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    reason: str | None,
) -> None:
    if sum([entry_id is not None, status is not None, every]) != 1:
        raise ConfigurationError(f"Say which entries to {action}: one of --id, --status, --all.")
    entries = with_stores(lambda stores: _chosen(stores, entry_id, status))
    if dry_run or not entries:
        _report(f"would {action}" if entries else f"nothing to {action}", entries, as_json)
        return
    if not yes and not typer.confirm(f"{action.capitalize()} {len(entries)} entries?"):
        raise ConfigurationError("Nothing was done.")

    async def act(stores: app.Stores) -> list[UUID]:
        ids = [entry.id for entry in entries]
        if action == "replay":
            return await stores.queue.replay(ids, operator_name())
        return await stores.queue.discard(ids, operator_name(), reason)

    done = set(with_stores(act))
    _report(f"{action}ed".replace("eed", "ed"), [entry for entry in entries if entry.id in done], as_json)


async def _chosen(stores: app.Stores, entry_id: UUID | None, status: QueueStatus | None) -> list[QueueEntry]:
    waiting = [QueueStatus.PENDING_MANUAL_REPLAY, QueueStatus.REQUIRES_INVESTIGATION]
    entries = await stores.queue.entries([status] if status else waiting, entry_id, limit=1_000_000)
    return [entry for entry in entries if entry.status in waiting]


def _report(what: str, entries: list[QueueEntry], as_json: bool) -> None:
    if as_json:
        print_json({"result": what, "entries": [str(entry.id) for entry in entries]})
        return
    console.print(f"{what}: {len(entries)}")
    for entry in entries:
        console.print(f"  {entry.id}  {entry.source_table}  {entry.record_key}", highlight=False)


def with_stores(look: Callable[[app.Stores], Coroutine[Any, Any, T]]) -> T:
    """Open the database, do one thing, close it."""
    settings = load_settings()

    async def work(url: str) -> T:
        async with app.open_stores(settings, url) as stores:
            return await look(stores)

    with app.database(settings) as url:
        return asyncio.run(work(url))


def print_json(document: object) -> None:
    """For machines: one JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def _coloured(state: str) -> str:
    colour = {"closed": "green", "open": "red", "half_open": "yellow"}[state]
    return f"[bold {colour}]{state}[/]"
