"""A run of figures on one PostgreSQL and one server, with a progress bar."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import database, processes
from benchmarks.bars import bars
from benchmarks.machine import machine, versions
from benchmarks.measuring import FAILURES, Figure, Results, Rounds, Sizes, Stage, measure
from benchmarks.peers.environment import Peers
from benchmarks.report import Run


def run_figures(
    figures: Sequence[Figure], sizes: Sizes, rounds: Rounds, peers: Peers, command: str, console: Console
) -> Run:
    """Measure these figures; the bars of all others are there, not measured."""
    results = Results()
    measured_on = machine()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"), TimeElapsedColumn())
    with database.server() as server, processes.target() as target, Progress(*columns, console=console) as progress:
        stage = Stage(server, target, peers, sizes)
        for figure in figures:
            task = progress.add_task(figure.title, total=None, now="making its databases")
            try:
                measure(figure, stage, rounds, results, partial(progress.update, task))
            except FAILURES as error:
                results.failures[figure.title] = str(error)
        postgres = server.version
    return Run(
        results=results,
        bars=bars(sizes),
        sizes=asdict(sizes),
        rounds=rounds,
        machine=measured_on,
        versions=versions(postgres, peers.versions),
        peers_missing=peers.why_not,
        command=command,
        day=datetime.now(UTC).date(),
    )
