"""`python -m benchmarks`: measure, and write the report."""

import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import FIGURES
from benchmarks.measuring import FULL, QUICK, Rounds
from benchmarks.peers.environment import install, no_peers
from benchmarks.processes import ROOT, BenchmarkError
from benchmarks.report import Run, write
from benchmarks.running import run_figures

ROUNDS = 5
NAMES = [figure.name for figure in FIGURES]


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write. Gives 1 where something failed; a bar that is missed is for the reader to judge."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    console = Console()
    with console.status("Installing the peers ..."):
        peers = no_peers("as was asked for") if options.without_peers else install()
    chosen = [figure for figure in FIGURES if figure.name in options.only]
    sizes, rounds = QUICK if options.quick else FULL, Rounds(options.rounds)
    try:
        run = run_figures(chosen, sizes, rounds, peers, _command(options), console)
    except BenchmarkError as error:
        console.print(f"[red]{error}[/]")
        return 1
    write(run, options.output)
    _print(run, console)
    console.print(f"Written to {options.output}.")
    return 1 if run.results.failures or (run.peers_missing and not options.without_peers) else 0


def _options(arguments: Sequence[str]) -> Namespace:
    parser = ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--only", type=_names, default=NAMES, help=f"some of {','.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, to see that all works")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--output", type=Path, help="a directory; docs for a whole run, build/benchmarks for a part")
    options = parser.parse_args(arguments)
    if options.output is None:
        is_whole = options.only == NAMES and not options.quick and not options.without_peers
        options.output = ROOT / ("docs" if is_whole else "build/benchmarks")
    return options


def _names(text: str) -> Sequence[str]:
    chosen = text.split(",")
    if unknown := set(chosen) - set(NAMES):
        raise ValueError(unknown)
    return [name for name in NAMES if name in chosen]


def _command(options: Namespace) -> str:
    """As `make` is asked for it."""
    words = ["make bench"]
    if options.only != NAMES:
        words.append(f"ONLY={','.join(options.only)}")
    if options.rounds != ROUNDS:
        words.append(f"ROUNDS={options.rounds}")
    if options.quick:
        words.append("QUICK=1")
    return " ".join(words)


def _print(run: Run, console: Console) -> None:
    table = Table("figure", "ratio", "bar", "")
    for bar in run.bars:
        if (ratio := bar.ratio(run.results)) is not None:
            table.add_row(bar.name, f"{ratio:.2f}", f"{bar.wanted} {bar.bar:g}", bar.verdict(ratio, run.cores))
    console.print(table)
    for name, why in run.results.failures.items():
        console.print(f"[red]{name}[/] could not be measured: {why}", highlight=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
