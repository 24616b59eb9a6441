"""`queue`: what could not be sent, and sending it again."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import UTC
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from dynamics_sync import app
from dynamics_sync.cli.output import AsJson, console, print_json, with_stores
from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.core.explanations import explain
from dynamics_sync.core.operation import OPEN_STATUSES, QueueStatus
from dynamics_sync.postgres.retry_queue import QueueEntry
from dynamics_sync.settings import operator_name

queue_commands = typer.Typer(help="What could not be sent, and sending it again.", no_args_is_help=True)

Id = Annotated[UUID | None, typer.Option("--id", help="One entry.")]
Status = Annotated[QueueStatus | None, typer.Option("--status", help="Entries of this status.")]
All = Annotated[bool, typer.Option("--all", help="Every entry that is open.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Why, for the audit trail.")]

WAITING = (QueueStatus.PENDING_MANUAL_REPLAY, QueueStatus.REQUIRES_INVESTIGATION)
"""What a person can act on."""


@queue_commands.command("list")
def queue_list(status: Status = None, limit: Limit = 1000, as_json: AsJson = False) -> None:
    """What could not be sent and is still open, or the entries of one status; oldest first."""
    statuses = [status] if status else OPEN_STATUSES

    async def look(stores: app.Stores) -> tuple[list[QueueEntry], int]:
        counts = await stores.queue.counts()
        return await stores.queue.entries(statuses, limit=limit), sum(counts.get(status, 0) for status in statuses)

    entries, total = with_stores(look)
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    if not entries:
        console.print(f"The queue has no entry of status {status}." if status else "The queue is empty.")
        return
    table = Table(Column("entry and record", overflow="fold"), "what happened", box=SIMPLE_HEAD)
    for entry in entries:
        record = f"[bold]{entry.id}[/]\n{escape(entry.source_table)}\n{escape(entry.record_key)}"
        error = f"{entry.error_code}, {entry.attempt_count} attempt{'s' * (entry.attempt_count != 1)}"
        since = f"since {entry.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        table.add_row(record, f"[bold yellow]{entry.status}[/]\n{error}\n{since}", end_section=True)
    console.print(table)
    if total > len(entries):
        console.print(f"These are the oldest {len(entries)} of {total}. `--limit` shows more.")


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
    if found["payload_json"]["place"] is not None:
        table.add_row("where", found["payload_json"]["place"])
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
    entries = _chosen("replay", id, status, all)
    if _agreed("replay", entries, dry_run, yes, as_json):
        done = with_stores(lambda stores: stores.queue.replay(_ids(entries), operator_name()))
        _report_done("replayed", entries, done, as_json)


@queue_commands.command("discard")
def queue_discard(
    id: Id = None,
    status: Status = None,
    all: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Close entries without sending them: Dynamics keeps what it has."""
    entries = _chosen("discard", id, status, all)
    if _agreed("discard", entries, dry_run, yes, as_json):
        done = with_stores(lambda stores: stores.queue.discard(_ids(entries), operator_name(), reason))
        _report_done("discarded", entries, done, as_json)


def _chosen(action: str, entry_id: UUID | None, status: QueueStatus | None, every: bool) -> list[QueueEntry]:
    if sum([entry_id is not None, status is not None, every]) != 1:
        raise ConfigurationError(f"Say which entries to {action}: one of --id, --status, --all.")
    statuses = [status] if status else WAITING
    entries = with_stores(lambda stores: stores.queue.entries(statuses, entry_id, limit=1_000_000))
    return [entry for entry in entries if entry.status in WAITING]


def _agreed(action: str, entries: Sequence[QueueEntry], dry_run: bool, yes: bool, as_json: bool) -> bool:
    """Whether to go on. Says so where there is nothing to do, or nothing is to be done."""
    if dry_run or not entries:
        _report(f"would {action}" if entries else f"nothing to {action}", entries, as_json)
        return False
    number = "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
    try:
        if yes or typer.confirm(f"{action.capitalize()} {number}?"):
            return True
    except typer.Abort:
        console.print()
    raise ConfigurationError("Nothing was done. Where nobody can answer, add `--yes`.")


def _ids(entries: Sequence[QueueEntry]) -> list[UUID]:
    return [entry.id for entry in entries]


def _report_done(what: str, entries: Sequence[QueueEntry], ids: Collection[UUID], as_json: bool) -> None:
    done = set(ids)
    _report(what, [entry for entry in entries if entry.id in done], as_json)


def _report(what: str, entries: Sequence[QueueEntry], as_json: bool) -> None:
    if as_json:
        print_json({"result": what, "entries": [str(entry.id) for entry in entries]})
        return
    console.print(f"{what}: {len(entries)}")
    for entry in entries:
        console.print(f"  {entry.id}  {entry.source_table}  {entry.record_key}", highlight=False, soft_wrap=True)
