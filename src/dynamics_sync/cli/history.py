"""`history`: the renewal histories of the certifications that ship."""

import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, TypeVar
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dynamics_sync.certifications.history_job import (
    CheckReport,
    MigrationReport,
    Tell,
    check_histories,
    migrate_histories,
)
from dynamics_sync.certifications.history_store import HistoryStore
from dynamics_sync.cli.output import AsJson, console, print_json, with_stores
from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.stores import Stores
from dynamics_sync.sync.clock import SystemClock

MOST_SHOWN = 50
DIFFERS = 3
"""The exit status where copies differ and were not repaired, as with `reconcile`."""

T = TypeVar("T")

Batch = Annotated[int, typer.Option("--batch", min=1, max=10_000, help="Certifications in one transaction.")]
Repair = Annotated[bool, typer.Option("--repair", help="Make renewal_history what the table says.")]

history_commands = typer.Typer(help="The renewal histories of certifications.", no_args_is_help=True)


@history_commands.command()
def migrate(batch: Batch = 500, as_json: AsJson = False) -> None:
    """Enter all histories into certification_renewal_events. May be killed and started again, beside live changes."""

    async def work(store: HistoryStore, tell: Tell) -> MigrationReport:
        return await migrate_histories(store, SystemClock(), batch, tell)

    report = _with_histories("migrating", work)
    if as_json:
        print_json(
            {
                "migrated": report.migrated,
                "entries": report.entries,
                "left": report.left,
                "busy": report.busy,
                "problems": _by_text(report.problems),
            }
        )
    else:
        _show_migration(report)
    if not report.is_complete:
        sys.exit(1)


@history_commands.command()
def check(repair: Repair = False, batch: Batch = 500, as_json: AsJson = False) -> None:
    """Compare renewal_history with certification_renewal_events. Status 3: some differ."""

    async def work(store: HistoryStore, tell: Tell) -> CheckReport:
        return await check_histories(store, batch, tell, repair=repair)

    report = _with_histories("comparing", work)
    if as_json:
        print_json(
            {
                "checked": report.checked,
                "not_migrated": report.not_migrated,
                "differing": report.differing,
                "repaired": report.repaired,
                "certifications": report.named,
                "obstacles": _by_text(report.obstacles),
            }
        )
    else:
        _show_check(report)
    if report.differing > report.repaired:
        sys.exit(DIFFERS)


def _with_histories(what: str, work: Callable[[HistoryStore, Tell], Coroutine[Any, Any, T]]) -> T:
    """Do it with a bar on a terminal."""

    async def watched(stores: Stores) -> T:
        if stores.histories is None:
            raise ConfigurationError(
                "DYNAMICS_SYNC_MAPPING names tables of your own, and only the certifications that ship have renewal "
                "histories. Run this without it for those."
            )
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        with bar:
            line = bar.add_task(what, total=await stores.histories.count())
            return await work(stores.histories, lambda looked_at: bar.update(line, completed=looked_at))

    return with_stores(watched)


def _show_migration(report: MigrationReport) -> None:
    console.print(f"{report.migrated:,} histories with {report.entries:,} entries were entered into the table.")
    if report.left:
        console.print(f"{report.left:,} have an entry that cannot be upgraded, and were left as they are:")
        _name(report.problems, report.left)
    if report.busy:
        console.print(f"{report.busy:,} were locked by somebody's open transaction. Run this again for them.")


def _show_check(report: CheckReport) -> None:
    console.print(f"{report.checked:,} certifications: {report.differing:,} copies differ from the table.")
    _name({named: report.obstacles.get(named, "") for named in report.named}, report.differing)
    if report.repaired:
        console.print(f"{report.repaired:,} were made what the table says.")
    elif report.differing:
        console.print("`dynamics-sync history check --repair` makes them what the table says.")
    if report.not_migrated:
        console.print(f"{report.not_migrated:,} histories are not in the table yet: `dynamics-sync history migrate`.")


def _name(certifications: Mapping[UUID, str], total: int) -> None:
    for certification_id, problem in list(certifications.items())[:MOST_SHOWN]:
        console.print(f"  {certification_id}  {problem}", highlight=False, soft_wrap=True)
    if total > MOST_SHOWN:
        console.print(f"These are {MOST_SHOWN} of {total:,}; `--json` names up to 10,000.")


def _by_text(problems: Mapping[UUID, str]) -> dict[str, str]:
    return {str(certification_id): problem for certification_id, problem in problems.items()}
