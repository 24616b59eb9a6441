"""`queue`: what could not be sent. Sending it again or closing it is in `cli.acting`."""

from dataclasses import asdict
from datetime import UTC
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from dynamics_sync.cli.acting import IncidentNumber, Status, check_incident, queue_discard, queue_replay
from dynamics_sync.cli.output import AsJson, Target, console, print_json, with_stores
from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.core.explanations import explain
from dynamics_sync.core.operation import OPEN_STATUSES
from dynamics_sync.postgres.retry_queue import Choice, QueueEntry
from dynamics_sync.stores import Stores

SHOWN = ("id", "status", "target", "source_table", "record_key", "failure_reason", "error_code", "attempt_count")

queue_commands = typer.Typer(help="What could not be sent, and sending it again.", no_args_is_help=True)

Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]


@queue_commands.command("list")
def queue_list(
    status: Status = None,
    incident: IncidentNumber = None,
    target: Target = None,
    limit: Limit = 1000,
    as_json: AsJson = False,
) -> None:
    """What could not be sent and is still open, or the entries of one status; oldest first."""
    choice = Choice([status] if status else OPEN_STATUSES, incident_id=incident)

    async def look(stores: Stores) -> tuple[list[QueueEntry], int]:
        await check_incident(stores, incident)
        queue = await stores.queue_of(target)
        groups = await queue.groups(choice)
        return await queue.entries(choice, limit), sum(group.count for group in groups)

    entries, total = with_stores(look)
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    if not entries:
        of_incident = f" that belongs to incident {incident}" if incident else ""
        everything = not status and not incident and not target
        wanted = f"of status {status}" if status else "that is open"
        console.print("The queue is empty." if everything else f"The queue has no entry {wanted}{of_incident}.")
        return
    console.print(_table(entries))
    if total > len(entries):
        console.print(f"These are the oldest {len(entries)} of {total}. `--limit` shows more.")


def _table(entries: list[QueueEntry]) -> Table:
    table = Table(Column("entry and record", overflow="fold"), "what happened", box=SIMPLE_HEAD)
    for entry in entries:
        record = f"[bold]{entry.id}[/]\n{escape(entry.source_table)}\nto {entry.target}\n{escape(entry.record_key)}"
        error = f"{entry.error_code}, {entry.attempt_count} attempt{'s' * (entry.attempt_count != 1)}"
        since = f"since {entry.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        incident = f"\nincident {entry.incident_id}" if entry.incident_id else ""
        table.add_row(record, f"[bold yellow]{entry.status}[/]\n{error}\n{since}{incident}", end_section=True)
    return table


@queue_commands.command("show")
def queue_show(entry_id: Annotated[UUID, typer.Argument(help="The entry's id.")], as_json: AsJson = False) -> None:
    """One entry: what failed, why, what to do, and each attempt."""

    async def look(stores: Stores) -> dict[str, Any]:
        entries = await stores.queue.entries(Choice(entry_id=entry_id))
        if not entries:
            raise ConfigurationError(f"The queue has no entry {entry_id}. `dynamics-sync queue list` shows all.")
        attempts = [asdict(attempt) for attempt in await stores.queue.time_line(entries[0])]
        return asdict(entries[0]) | {
            "explanation": explain(entries[0].error_code, entries[0].target),
            "attempts": attempts,
        }

    found = with_stores(look)
    if as_json:
        print_json(found)
        return
    table = Table(show_header=False, box=None)
    for name in SHOWN:
        table.add_row(name, str(found[name]))
    if found["incident_id"] is not None:
        table.add_row("incident", str(found["incident_id"]))
    if found["payload_json"]["place"] is not None:
        table.add_row("where", found["payload_json"]["place"])
    table.add_row("what it means", found["explanation"])
    for attempt in found["attempts"]:
        at = f"{attempt['at']:%Y-%m-%d %H:%M:%S}"
        table.add_row(f"attempt {attempt['attempt_number']}", f"{at}  {attempt['error_code']}")
    console.print(table)


queue_commands.command("replay")(queue_replay)
queue_commands.command("discard")(queue_discard)
