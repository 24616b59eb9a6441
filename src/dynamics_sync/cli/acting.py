"""`queue replay` and `queue discard`: what a person does with entries, after a look at which they are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated
from uuid import UUID

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table

from dynamics_sync import app
from dynamics_sync.cli.output import AsJson, Reason, Yes, confirmed, console, print_json, with_stores
from dynamics_sync.core.circuit import CircuitState
from dynamics_sync.core.errors import ConfigurationError, DynamicsSyncError, ReplayStoppedError
from dynamics_sync.core.explanations import explain
from dynamics_sync.core.operation import WAITING_STATUSES, QueueStatus
from dynamics_sync.postgres.retry_queue import Choice, EntryGroup, QueueEntry
from dynamics_sync.settings import operator_name
from dynamics_sync.sync.replay import ReplayEnd, ReplayProgress, ReplayReport

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

LISTED = 1000
"""Entries that a preview or a report names one by one."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What is to be acted on: all the ids, and as much of the entries as is shown."""

    ids: Sequence[UUID]
    groups: Sequence[EntryGroup]
    entries: Sequence[QueueEntry]


def queue_replay(
    id: Id = None,
    status: Status = None,
    incident: IncidentNumber = None,
    all: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    patience: Patience = 15.0,
    as_json: AsJson = False,
) -> None:
    """Send entries again: each record goes back into the outbox, and its present state is sent.

    They go back at a pace that Dynamics bears, and only while the circuit lets calls pass. The command shows how they
    fare; it may be ended at any time, and asked for again it goes on with those that are still open.
    """
    chosen = _choose("replay", id, status, incident, all)
    if not _is_agreed("replay", chosen, dry_run, yes, as_json):
        return
    with _watching(len(chosen.ids), visible=console.is_terminal and not as_json) as watch:
        report = with_stores(lambda stores: stores.replay(patience).run(chosen.ids, operator_name(), tell=watch.tell))
    _tell_replayed(chosen.ids, report, as_json)
    _tell_end(report, patience, as_json)


def queue_discard(
    id: Id = None,
    status: Status = None,
    incident: IncidentNumber = None,
    all: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Close entries without sending them: Dynamics keeps what it has."""
    chosen = _choose("discard", id, status, incident, all)
    if _is_agreed("discard", chosen, dry_run, yes, as_json):
        done = set(with_stores(lambda stores: stores.queue.discard(chosen.ids, operator_name(), reason)))
        _tell_entries("discarded", [id for id in chosen.ids if id in done], chosen, as_json)


async def check_incident(stores: app.Stores, number: int | None) -> None:
    """Make sure that the incident is there, if one is named.

    Raises:
        ConfigurationError: it is not.
    """
    if number is not None and await stores.incidents.find(number) is None:
        raise ConfigurationError(f"There is no incident {number}. `dynamics-sync circuit incidents` lists them.")


def _choose(
    action: str, entry_id: UUID | None, status: QueueStatus | None, incident: int | None, every: bool
) -> _Chosen:
    if sum([entry_id is not None, status is not None, incident is not None, every]) != 1:
        raise ConfigurationError(f"Say which entries to {action}: one of --id, --status, --incident, --all.")
    statuses = [waiting for waiting in WAITING_STATUSES if status in (None, waiting)]
    choice = Choice(statuses, entry_id, incident)

    async def look(stores: app.Stores) -> _Chosen:
        await check_incident(stores, incident)
        queue = stores.queue
        return _Chosen(await queue.ids(choice), await queue.groups(choice), await queue.entries(choice, LISTED))

    return with_stores(look)


def _is_agreed(action: str, chosen: _Chosen, dry_run: bool, yes: bool, as_json: bool) -> bool:
    """Whether to go on. Says so where there is nothing to do, or nothing is to be done."""
    if dry_run and chosen.ids and not as_json:
        console.print(_preview(chosen.groups))
    if dry_run or not chosen.ids:
        _tell_entries(f"would {action}" if chosen.ids else f"nothing to {action}", chosen.ids, chosen, as_json)
        return False
    confirmed(f"{action.capitalize()} {_entries(len(chosen.ids))}?", yes)
    return True


def _preview(groups: Sequence[EntryGroup]) -> Table:
    table = Table(Column("entries", justify="right"), "status and table", "error", box=SIMPLE_HEAD)
    for group in groups:
        what = f"[bold yellow]{group.status}[/]\n{escape(group.source_table)}"
        table.add_row(str(group.count), what, f"{group.error_code}\n{explain(group.error_code)}", end_section=True)
    return table


def _tell_entries(what: str, ids: Sequence[UUID], chosen: _Chosen, as_json: bool) -> None:
    if as_json:
        groups = [asdict(group) | {"explanation": explain(group.error_code)} for group in chosen.groups]
        print_json({"result": what, "entries": [str(id) for id in ids], "groups": groups})
        return
    console.print(f"{what}: {len(ids)}")
    _list([entry for entry in chosen.entries if entry.id in set(ids)], len(ids))


def _list(entries: Sequence[QueueEntry], total: int) -> None:
    for entry in entries:
        line = f"  {entry.id}  {entry.source_table}  {entry.record_key}  {entry.error_code}"
        console.print(escape(line), highlight=False, soft_wrap=True)
    if total > len(entries):
        console.print(f"  and {total - len(entries)} more")


class _Watch:
    """What is seen of a replay while it goes on."""

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=total, counts="")
        self.last: ReplayProgress | None = None

    def tell(self, progress: ReplayProgress) -> None:
        self.last = progress
        self._bar.update(
            self._task,
            completed=progress.chosen - progress.left - progress.on_the_way,
            description="replaying" if progress.calls_pass else f"waiting: {_obstacle(progress)}",
            counts=_counts(progress),
        )


@contextmanager
def _watching(total: int, *, visible: bool) -> Iterator[_Watch]:
    """A progress bar on a terminal. Whoever is interrupted learns where the replay stands."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[counts]}"))
    with Progress(*columns, console=console, transient=True, disable=not visible) as bar:
        watch = _Watch(bar, total)
        try:
            yield watch
        except (KeyboardInterrupt, DynamicsSyncError):
            bar.stop()
            if watch.last is not None:
                text = f"The replay was interrupted: {_counts(watch.last)}. {_how_to_go_on(watch.last)}"
                Console(stderr=True).print(text, highlight=False, soft_wrap=True)
            raise


def _tell_replayed(ids: Sequence[UUID], report: ReplayReport, as_json: bool) -> None:
    progress = report.progress
    if as_json:
        document = {
            "result": "replayed" if report.end is ReplayEnd.ALL_TOLD else "stopped",
            "end": report.end,
            "entries": ids,
            "put_back": progress.put_back,
            "arrived": progress.arrived,
            "failed_again": progress.failed_again,
            "on_the_way": progress.on_the_way,
            "left": progress.left,
            "no_longer_open": progress.no_longer_open,
        }
        print_json(document)
        return
    console.print(f"replayed: {_counts(progress)}")
    if progress.failed_again:
        console.print("Failed again; `dynamics-sync queue show` says why:")
        for entry in progress.failed_again[:LISTED]:
            console.print(f"  {entry}", highlight=False)


def _tell_end(report: ReplayReport, patience_seconds: float, as_json: bool) -> None:
    """Say why it ended, where not all is told.

    Raises:
        ReplayStoppedError: entries are left that were not put back.
    """
    if report.end is ReplayEnd.ALL_TOLD:
        return
    progress = report.progress
    if report.end is ReplayEnd.NOBODY_SENDS:
        why = f"nothing has moved for {patience_seconds:g} s, and no worker sends. Is `dynamics-sync run` at work?"
    else:
        why = f"for too long no call may pass: {_obstacle(progress)}."
    if progress.left:
        raise ReplayStoppedError(f"The replay stopped: {why} {_how_to_go_on(progress)}")
    if not as_json:
        console.print(f"Not waiting any longer: {why} {_how_to_go_on(progress)}", soft_wrap=True)


def _counts(progress: ReplayProgress) -> str:
    parts = [
        f"{progress.put_back} put back",
        f"{progress.arrived} arrived",
        f"{len(progress.failed_again)} failed again",
    ]
    if progress.no_longer_open:
        parts.append(f"{progress.no_longer_open} no longer open")
    return ", ".join(parts)


def _obstacle(progress: ReplayProgress) -> str:
    circuit = progress.circuit
    if circuit.state is CircuitState.HALF_OPEN:
        return "the circuit is half-open, and its probe decides"
    until = f" until {circuit.retry_at:%H:%M:%S %Z}" if circuit.retry_at is not None else ""
    return f"the circuit is open{until}" if circuit.state is CircuitState.OPEN else f"Dynamics asked for silence{until}"


def _how_to_go_on(progress: ReplayProgress) -> str:
    parts = []
    if progress.on_the_way:
        parts.append(f"{_entries(progress.on_the_way)} will be sent from the outbox.")
    if progress.left:
        parts.append(f"{_entries(progress.left)} not put back, still open: the same command goes on with them.")
    return " ".join(parts)


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"
