"""`queue replay` and `queue discard`: what a person does with entries, after a look at which they are."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated
from uuid import UUID

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from dynamics_sync.cli.output import AsJson, Reason, Target, Yes, confirmed, console, print_json, with_stores
from dynamics_sync.cli.watching import LISTED, entries_in_words, tell_end, tell_replayed, together, watching
from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.core.explanations import explain
from dynamics_sync.core.operation import WAITING_STATUSES, QueueStatus
from dynamics_sync.postgres.retry_queue import Choice, EntryGroup, QueueEntry
from dynamics_sync.settings import operator_name
from dynamics_sync.stores import Stores
from dynamics_sync.sync.replay import ReplayReport

Id = Annotated[UUID | None, typer.Option("--id", help="One entry.")]
Status = Annotated[QueueStatus | None, typer.Option("--status", help="Entries of this status.")]
IncidentNumber = Annotated[
    int | None, typer.Option("--incident", min=1, max=2**63 - 1, help="Entries of the outage of this number.")
]
All = Annotated[bool, typer.Option("--all", help="Every entry that is open.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
Patience = Annotated[
    float, typer.Option("--patience", min=0.1, help="Seconds after which it ends if nothing moves and no worker sends.")
]
PerSecond = Annotated[
    float, typer.Option("--per-second", min=0.1, help="Put back so many in a second; never more than 50 are under way.")
]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What is to be acted on: all the ids, and as much of the entries as is shown."""

    by_target: Mapping[str, Sequence[UUID]]
    groups: Sequence[EntryGroup]
    entries: Sequence[QueueEntry]

    @property
    def ids(self) -> list[UUID]:
        return [entry_id for ids in self.by_target.values() for entry_id in ids]


def queue_replay(
    id: Id = None,
    status: Status = None,
    incident: IncidentNumber = None,
    all: All = False,
    target: Target = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    per_second: PerSecond = 20.0,
    patience: Patience = 15.0,
    as_json: AsJson = False,
) -> None:
    """Send entries again: each record goes back into the outbox, and its present state is sent.

    They go back at a pace that Dynamics bears, and only while their circuit lets calls pass. The command shows how they
    fare; it may be ended at any time, and asked for again it goes on with those that are still open.
    """
    chosen = _choose("replay", target, id, status, incident, all)
    if not _is_agreed("replay", chosen, dry_run, yes, as_json):
        return
    totals = {name: len(ids) for name, ids in chosen.by_target.items()}

    async def act(stores: Stores) -> list[ReplayReport]:
        replays = {name: (await stores.target(name)).replay(per_second, patience) for name in totals}
        return await asyncio.gather(
            *(
                replay.run(chosen.by_target[name], operator_name(), tell=watches[name].tell)
                for name, replay in replays.items()
            )
        )

    with watching(totals, visible=console.is_terminal and not as_json) as watches:
        report = together(with_stores(act))
    tell_replayed(chosen.ids, report, as_json)
    tell_end(report, patience, as_json)


def queue_discard(
    id: Id = None,
    status: Status = None,
    incident: IncidentNumber = None,
    all: All = False,
    target: Target = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Close entries without sending them: Dynamics keeps what it has."""
    chosen = _choose("discard", target, id, status, incident, all)
    if _is_agreed("discard", chosen, dry_run, yes, as_json):
        done = set(with_stores(lambda stores: stores.queue.discard(chosen.ids, operator_name(), reason)))
        _tell_entries("discarded", [id for id in chosen.ids if id in done], chosen, as_json)


async def check_incident(stores: Stores, number: int | None) -> None:
    """Make sure that the incident is there, if one is named.

    Raises:
        ConfigurationError: it is not.
    """
    if number is not None and await stores.incidents.find(number) is None:
        raise ConfigurationError(f"There is no incident {number}. `dynamics-sync circuit incidents` lists them.")


def _choose(
    action: str,
    target: str | None,
    entry_id: UUID | None,
    status: QueueStatus | None,
    incident: int | None,
    every: bool,
) -> _Chosen:
    if sum([entry_id is not None, status is not None, incident is not None, every]) != 1:
        raise ConfigurationError(f"Say which entries to {action}: one of --id, --status, --incident, --all.")
    statuses = [waiting for waiting in WAITING_STATUSES if status in (None, waiting)]
    choice = Choice(statuses, entry_id, incident)

    async def look(stores: Stores) -> _Chosen:
        await check_incident(stores, incident)
        queue = await stores.queue_of(target)
        return _Chosen(await queue.ids(choice), await queue.groups(choice), await queue.entries(choice, LISTED))

    return with_stores(look)


def _is_agreed(action: str, chosen: _Chosen, dry_run: bool, yes: bool, as_json: bool) -> bool:
    """Whether to go on. Says so where there is nothing to do, or nothing is to be done."""
    if dry_run and chosen.ids and not as_json:
        console.print(_preview(chosen.groups))
    if dry_run or not chosen.ids:
        _tell_entries(f"would {action}" if chosen.ids else f"nothing to {action}", chosen.ids, chosen, as_json)
        return False
    confirmed(f"{action.capitalize()} {entries_in_words(len(chosen.ids))}?", yes)
    return True


def _preview(groups: Sequence[EntryGroup]) -> Table:
    table = Table(Column("entries", justify="right"), "status and table", "error", box=SIMPLE_HEAD)
    for group in groups:
        what = f"[bold yellow]{group.status}[/]\n{escape(group.source_table)}\nto {group.target}"
        error = f"{group.error_code}\n{explain(group.error_code, group.target)}"
        table.add_row(str(group.count), what, error, end_section=True)
    return table


def _tell_entries(what: str, ids: Sequence[UUID], chosen: _Chosen, as_json: bool) -> None:
    if as_json:
        groups = [asdict(group) | {"explanation": explain(group.error_code, group.target)} for group in chosen.groups]
        print_json({"result": what, "entries": [str(id) for id in ids], "groups": groups})
        return
    console.print(f"{what}: {len(ids)}")
    these = set(ids)
    shown = [entry for entry in chosen.entries if entry.id in these]
    for entry in shown:
        line = f"  {entry.id}  {entry.source_table}  {entry.record_key}  {entry.error_code}"
        console.print(escape(line), highlight=False, soft_wrap=True)
    if len(ids) > len(shown):
        console.print(f"  and {len(ids) - len(shown)} more")
