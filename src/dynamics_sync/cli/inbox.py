"""`inbox`: what Dynamics told by webhooks and is not here yet, and having it looked at again. No value is shown."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from dynamics_sync.cli.output import AsJson, Target, Yes, confirmed, console, print_json, with_stores
from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.core.explanations import explain
from dynamics_sync.core.incoming import OPEN_STATUSES, REPLAYABLE_STATUSES, InboxStatus
from dynamics_sync.postgres.audit import Operator
from dynamics_sync.postgres.inbox_entries import ConflictEntry, InboxEntry
from dynamics_sync.settings import operator_name
from dynamics_sync.stores import Stores

inbox_commands = typer.Typer(help="What Dynamics told by webhooks, and applying it again.", no_args_is_help=True)

CONFLICTS_SHOWN = 20

Number = Annotated[int, typer.Argument(min=1, max=2**63 - 1, help="The delivery's number.")]
Id = Annotated[int | None, typer.Option("--id", min=1, max=2**63 - 1, help="One delivery.")]
All = Annotated[bool, typer.Option("--all", help="Every delivery that waits for a person.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
Status = Annotated[InboxStatus | None, typer.Option("--status", help="Deliveries of this status.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]


@inbox_commands.command("list")
def inbox_list(status: Status = None, target: Target = None, limit: Limit = 1000, as_json: AsJson = False) -> None:
    """What is not applied yet, or the deliveries of one status; oldest first. And the latest conflicts."""

    async def look(stores: Stores) -> tuple[list[InboxEntry], dict[str, int], list[ConflictEntry]]:
        inbox = await stores.inbox_of(target)
        entries = await inbox.entries([status] if status else OPEN_STATUSES, limit=limit)
        return entries, await inbox.counts(), await inbox.conflicts(CONFLICTS_SHOWN)

    entries, counts, conflicts = with_stores(look)
    if as_json:
        shown = [_document(entry) for entry in entries]
        print_json({"counts": counts, "deliveries": shown, "conflicts": [asdict(each) for each in conflicts]})
        return
    if entries:
        console.print(_table(entries))
    else:
        console.print(f"The inbox has no delivery of status {status}." if status else "Nothing waits in the inbox.")
    if conflicts:
        console.print(_conflict_table(conflicts))
    console.print("  ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count), highlight=False)


@inbox_commands.command("show")
def inbox_show(number: Number, as_json: AsJson = False) -> None:
    """One delivery: what it is about, where it stands, and what to do."""

    async def look(stores: Stores) -> dict[str, Any]:
        entries = await stores.inbox.entries(list(InboxStatus), number)
        if not entries:
            raise ConfigurationError(f"The inbox has no delivery {number}. `dynamics-sync inbox list` shows all.")
        conflicts = await stores.inbox.conflicts(CONFLICTS_SHOWN, number)
        return _document(entries[0]) | {"conflicts": [asdict(each) for each in conflicts]}

    found = with_stores(look)
    if as_json:
        print_json(found)
        return
    table = Table(show_header=False, box=None)
    for name, value in found.items():
        if value not in (None, [], {}) and name not in ("headers", "conflicts"):
            table.add_row(name.replace("_", " "), escape(str(value)))
    for conflict in found["conflicts"]:
        table.add_row("conflict", escape(f"{conflict['column_name'] or 'deleted there'}: {conflict['winner']} wins"))
    console.print(table)


@inbox_commands.command("replay")
def inbox_replay(
    id: Id = None,
    all: All = False,
    target: Target = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Have deliveries looked at again that no version of the contract understood, or that could not be applied.

    The worker applies them, in the order in which they came. What a newer change has overtaken is passed over.
    """
    if (id is not None) == all:
        raise ConfigurationError("Say which deliveries to replay: one of --id, --all.")

    async def look(stores: Stores) -> list[InboxEntry]:
        return await (await stores.inbox_of(target)).entries(REPLAYABLE_STATUSES, id)

    chosen = with_stores(look)
    if dry_run or not chosen:
        _tell("would replay" if chosen else "nothing to replay", [entry.id for entry in chosen], as_json)
        return
    confirmed(f"Replay {len(chosen)} deliver{'y' if len(chosen) == 1 else 'ies'}?", yes)

    async def act(stores: Stores) -> list[int]:
        return await (await stores.inbox_of(target)).replay(id, Operator(operator_name()))

    _tell("replayed", with_stores(act), as_json)


def _tell(what: str, ids: Sequence[int], as_json: bool) -> None:
    if as_json:
        print_json({"result": what, "deliveries": list(ids)})
    else:
        console.print(f"{what}: {len(ids)}")


def _document(entry: InboxEntry) -> dict[str, Any]:
    code = entry.error_code
    return asdict(entry) | ({"explanation": explain(code)} if code else {})


def _table(entries: Sequence[InboxEntry]) -> Table:
    table = Table(Column("delivery", justify="right"), Column("record", overflow="fold"), "status", box=SIMPLE_HEAD)
    for entry in entries:
        what = f"{entry.message or '?'} {entry.entity_name or '?'} of {entry.target}"
        record = f"{what}\n{entry.record_id or 'no record named'}"
        since = f"since {entry.received_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        place = f", {entry.place}" if entry.place else ""
        why = f"\n{entry.error_code}{place}\n{explain(entry.error_code)}" if entry.error_code else ""
        table.add_row(
            str(entry.id), escape(record), f"[bold yellow]{entry.status}[/]\n{since}{escape(why)}", end_section=True
        )
    return table


def _conflict_table(conflicts: Sequence[ConflictEntry]) -> Table:
    table = Table(Column("conflict in", justify="right"), Column("record", overflow="fold"), "winner", box=SIMPLE_HEAD)
    for each in conflicts:
        what = each.column_name or "deleted in Dynamics"
        record = f"{each.source_table} {each.record_key}\n{what} of {each.target}"
        table.add_row(str(each.inbox_id), escape(record), each.winner, end_section=True)
    return table
