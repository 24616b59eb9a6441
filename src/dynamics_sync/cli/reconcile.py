"""`reconcile`: is Dynamics as the tables say?"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from dynamics_sync.cli.output import AsJson, console, fail, print_json
from dynamics_sync.settings import load_settings
from dynamics_sync.stores import database
from dynamics_sync.sync.reconcile import TurnTakenError, Watcher
from dynamics_sync.sync.reconciliation import Phase, Progress, StoredFinding, TableReport

if TYPE_CHECKING:
    from dynamics_sync.reconciliation import Reconciliation

MOST_SHOWN = 50
MOST_FOR_MACHINES = 10_000
DIFFERS = 3
"""The exit status where something differs and was not repaired."""

Tables = Annotated[list[str] | None, typer.Option("--table", help="A source table; may be given again. Else all.")]
Repair = Annotated[bool, typer.Option("--repair", help="Mark what differs dirty: the worker sends it.")]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew, and read all of Dynamics' tables.")]


def reconcile(table: Tables = None, repair: Repair = False, restart: Restart = False, as_json: AsJson = False) -> None:
    """Compare every record with Dynamics. Goes on where one was interrupted. Status 3: something differs."""
    # Slow to import, as all that speaks HTTP: other commands do without.
    from dynamics_sync import app

    settings = load_settings()

    async def work(url: str) -> tuple[list[TableReport], list[StoredFinding]]:
        async with app.open_engine(settings, url) as engine:
            await app.check_target(settings, engine.stores)
            return await _watched(engine.reconciliation, table, repair=repair, restart=restart)

    with database(settings) as url:
        reports, findings = asyncio.run(work(url))
    if as_json:
        tables = [asdict(report) for report in reports]
        print_json({"tables": tables, "findings": [asdict(finding) for finding in findings]})
    else:
        _show(reports, findings)
    if errors := [f"{report.source_table}: {report.error}" for report in reports if report.error]:
        fail("\n".join(errors))
    if any(report.differences > report.repaired for report in reports):
        sys.exit(DIFFERS)


async def _watched(
    of: "Reconciliation", sources: Sequence[str] | None, *, repair: bool, restart: bool
) -> tuple[list[TableReport], list[StoredFinding]]:
    """Run it, with a line on a terminal that tells how far it is."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        line = bar.add_task("reconciling")

        def tell_progress(progress: Progress) -> None:
            bar.update(line, description=f"{progress.source_table}: {_WHAT[progress.phase]}, {progress.compared} done")

        def tell_silence(until: datetime | None) -> None:
            if until is not None:
                bar.update(line, description=f"Dynamics is left alone until {until.astimezone():%H:%M:%S}, or longer")

        watcher = Watcher(tell_progress, tell_silence)
        seen_until: datetime | None = None
        while True:
            try:
                reports = await of.reconciler.run(sources, repair=repair, restart=restart, watcher=watcher)
                return reports, await of.store.findings([report.source_table for report in reports], MOST_FOR_MACHINES)
            except TurnTakenError:
                # One that was killed still has its turn for a while; one that is alive renews it.
                until = await of.turns.owned_until()
                if seen_until is not None and until is not None and until != seen_until:
                    raise
                seen_until = until
                bar.update(line, description="waiting for the turn of a reconciliation that has fallen silent")
                await asyncio.sleep(1)


_WHAT = {
    Phase.DYNAMICS: "reading Dynamics",
    Phase.ROWS: "comparing rows",
    Phase.GONE: "looking at records without a row",
    Phase.DONE: "finished",
}


def _show(reports: Sequence[TableReport], findings: Sequence[StoredFinding]) -> None:
    names = ("compared", "missing", "different", "extra", "repaired", "waiting")
    columns = (Column("table", overflow="fold"), *(Column(name, justify="right") for name in names))
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for report in reports:
        table.add_row(escape(report.source_table), *(f"{getattr(report, name):,}" for name in names))
    console.print(table)
    for finding in findings[:MOST_SHOWN]:
        names_of = f"  {', '.join(finding.attributes)}" if finding.attributes else ""
        line = f"{finding.kind:9}  {finding.source_table}  {finding.record_key}{names_of}"
        console.print(escape(line), highlight=False, soft_wrap=True)
    total = sum(report.differences for report in reports)
    if total > MOST_SHOWN:
        console.print(f"These are {MOST_SHOWN} of {total:,}. The others are in dynamics_sync.reconciliation_findings.")
    if any(report.differences > report.repaired for report in reports):
        console.print("`dynamics-sync reconcile --repair` marks them dirty: the worker brings them to Dynamics.")
    elif total:
        console.print("They are marked dirty: the worker brings them to Dynamics.")
    if without := sum(report.without_key for report in reports):
        records = "1 record of Dynamics has" if without == 1 else f"{without:,} records of Dynamics have"
        console.print(f"{records} no key: made there, and not compared.")
