"""What is seen of a replay: a bar while it goes on, and how it ended."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dynamics_sync.cli.output import console, print_json
from dynamics_sync.core.circuit import CircuitState
from dynamics_sync.core.errors import DynamicsSyncError, ReplayStoppedError
from dynamics_sync.sync.replay import ReplayEnd, ReplayProgress, ReplayReport

LISTED = 1000
"""Entries that are named one by one."""


class Watch:
    """What is seen of a replay while it goes on."""

    def __init__(self, bar: Progress, name: str, total: int) -> None:
        self._bar = bar
        self._name = name
        self._task = bar.add_task("", total=total, counts="")
        self.last: ReplayProgress | None = None

    def tell(self, progress: ReplayProgress) -> None:
        self.last = progress
        self._bar.update(
            self._task,
            completed=progress.chosen - progress.left - progress.on_the_way,
            description=self._name + ("replaying" if progress.calls_pass else f"waiting: {_obstacle(progress)}"),
            counts=_counts(progress),
        )


@contextmanager
def watching(totals: Mapping[str, int], *, visible: bool) -> Iterator[Mapping[str, Watch]]:
    """A progress bar for each target on a terminal. Whoever is interrupted learns where the replay stands."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[counts]}"))
    with Progress(*columns, console=console, transient=True, disable=not visible) as bar:
        names = {name: f"{name}: " if len(totals) > 1 else "" for name in totals}
        watches = {name: Watch(bar, names[name], total) for name, total in totals.items()}
        try:
            yield watches
        except (KeyboardInterrupt, DynamicsSyncError):
            bar.stop()
            for name, watch in watches.items():
                if watch.last is not None:
                    text = (
                        f"{names[name]}The replay was interrupted: {_counts(watch.last)}. {_how_to_go_on(watch.last)}"
                    )
                    Console(stderr=True).print(text, highlight=False, soft_wrap=True)
            raise


def together(reports: Sequence[ReplayReport]) -> ReplayReport:
    """One report of replays that went on side by side. Where not all came to their end, it says why one did not."""
    least = next((report for report in reports if report.end is not ReplayEnd.ALL_TOLD), reports[0])
    every = [report.progress for report in reports]
    progress = replace(
        least.progress,
        chosen=sum(one.chosen for one in every),
        left=sum(one.left for one in every),
        on_the_way=sum(one.on_the_way for one in every),
        arrived=sum(one.arrived for one in every),
        failed_again=tuple(entry for one in every for entry in one.failed_again),
        no_longer_open=sum(one.no_longer_open for one in every),
    )
    return ReplayReport(least.end, progress)


def tell_replayed(ids: Sequence[UUID], report: ReplayReport, as_json: bool) -> None:
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


def tell_end(report: ReplayReport, patience_seconds: float, as_json: bool) -> None:
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
    return f"the circuit is open{until}" if circuit.state is CircuitState.OPEN else f"silence was asked for{until}"


def _how_to_go_on(progress: ReplayProgress) -> str:
    parts = []
    if progress.on_the_way:
        parts.append(f"{entries_in_words(progress.on_the_way)} will be sent from the outbox.")
    if progress.left:
        parts.append(f"{entries_in_words(progress.left)} not put back, still open: the same command goes on with them.")
    return " ".join(parts)


def entries_in_words(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"
