"""`make simulate`: explore many seeds, or look at one. `python -m simulation --help` says how."""

import sys
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Column, Table

from simulation.bugs import BUGS
from simulation.campaign import Found, campaign, seeds_until_found
from simulation.plan import plan_for
from simulation.shrink import shrink
from simulation.timeline import show

console = Console()
MOST = 5_000
"""Seeds within which a deliberate bug has to be found."""


def main(
    seeds: Annotated[int, typer.Option(min=1, help="How many histories.")] = 1_000_000,
    first: Annotated[int, typer.Option(help="The first seed.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Show the time line of this one instead.")] = None,
    processes: Annotated[int, typer.Option(min=0, help="0: one a core.")] = 0,
    bugs: Annotated[bool, typer.Option("--bugs", help="Say how many seeds find each deliberate bug instead.")] = False,
) -> None:
    """Let histories happen, each with faults of its own; show the first that violates anything, made short."""
    if seed is not None:
        sys.exit(bool(show(plan_for(seed), console)))
    if bugs:
        show_bugs()
        return
    found = Found()
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with bar:
        task = bar.add_task("histories", total=seeds)
        for part in campaign(range(first, first + seeds), processes):
            found += part
            bar.update(task, advance=part.histories, description=f"histories, {len(found.failures)} failing")
    rate = found.histories / found.cpu_seconds
    console.print(
        f"{found.histories:,} histories, {found.requests:,} requests, {found.simulated_seconds / 86400:,.1f} simulated "
        f"days; {rate:,.0f} histories a second and core. [bold]{len(found.failures)} failing.[/]"
    )
    if found.failures:
        worst, _ = min(found.failures)
        console.print(f"Seeds: {', '.join(str(failing) for failing, _ in sorted(found.failures)[:20])}. The first one:")
        show(shrink(plan_for(worst)), console)
        sys.exit(1)


def show_bugs() -> None:
    """A table of what the simulation finds, and how soon."""
    table = Table("a worker that …", Column("seeds", justify="right"), "found by", box=SIMPLE_HEAD)
    for bug in track(BUGS, "bugs", console=console, transient=True):
        seeds, violation = seeds_until_found(bug, range(MOST)) or (MOST, "NOT FOUND")
        table.add_row(bug.name, f"{seeds:,}", violation)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
