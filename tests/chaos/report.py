"""What a run came to, for people."""

from collections import Counter

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from chaos.checker import Rule, time_line
from chaos.faults import PARTITIONS
from chaos.run import Result

TIME_LINES = 3
"""Violations whose time line is printed in full."""


def print_report(console: Console, result: Result) -> None:
    """What was done, what came of it, and the time line of what went wrong."""
    console.print(_table("What was done", _done(result)))
    console.print(_table("What came of it", _came(result)))
    if result.partitions is not None:
        console.print(f"LEFT OUT: workers cut off from the network, because {result.partitions}", style="yellow")
    if not result.drained:
        console.print("It did not drain: records still wait though everything is repaired.", style="red")
    for text in result.diary.unforeseen:
        console.print(f"An error that nobody foresaw:\n{text}", style="red", markup=False)
    for violation in result.violations[:TIME_LINES]:
        console.print(f"{violation.rule}: record {violation.key}: {violation.text}", style="bold red")
        for line in time_line(result.history, violation):
            console.print(line, markup=False, highlight=False)
    if result.held:
        console.print("Everything that must hold held.", style="green")
    else:
        console.print(f"Run the same faults again: make chaos SEED={result.settings.seed}", style="bold")


def _done(result: Result) -> dict[str, int]:
    counts = result.diary.counts
    kinds = Counter(change.kind for change in result.history.changes)
    changes = {f"changes committed: {kind}": number for kind, number in sorted(kinds.items())}
    about = {
        "changes committed": len(result.history.changes),
        **changes,
        "transactions whose commit was confirmed": len(result.history.acknowledged),
        "partitions": sum(counts[name] for name in PARTITIONS),
    }
    return about | dict(sorted(counts.items()))


def _came(result: Result) -> dict[str, int]:
    history, rules = result.history, Counter(violation.rule for violation in result.violations)
    states = Counter(change.state for change in history.circuit if change.state == "open" or change.is_probing)
    return {
        "records in requests": len(history.requests),
        "requests that a stopped process had decided on": sum(request.frozen for request in history.requests),
        "writes that took effect after their sender had given up": result.late,
        "writes in Dynamics": len(history.writes),
        "circuit openings": states["open"],
        "probes": states["half_open"],
        **{f"queue entries: {status}": number for status, number in result.queued.items()},
        "looks at what is owed": len(history.looks),
        "older states written over newer ones, and healed": result.healed,
        **{rule: rules[rule] for rule in Rule},
    }


def _table(title: str, rows: dict[str, int]) -> Table:
    table = Table(title, "number", box=SIMPLE_HEAD)
    for name, number in rows.items():
        table.add_row(name, f"{number:,}", style="red" if name in list(Rule) and number else None)
    return table
