"""The report: a table for people, a plot, and all rounds as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from benchmarks.bars import FREE_CORES, Bar, Verdict
from benchmarks.measuring import Results, Rounds, Series
from benchmarks.payload import IN_FLIGHT
from benchmarks.plot import Row, plot


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured, with what."""

    results: Results
    bars: Sequence[Bar]
    sizes: Mapping[str, object]
    rounds: Rounds
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    peers_missing: str
    """Why there are none; empty where they are there."""
    command: str
    day: date

    @property
    def cores(self) -> int:
        return int(self.machine["cores"])


MARKS = {
    Verdict.BEYOND: "✔✔ beyond",
    Verdict.MET: "✔ met",
    Verdict.MISSED: "✘ **missed**",
    Verdict.UNJUDGED: "– not judged",
    Verdict.UNMEASURED: "– not measured",
}

HEAD = """# Benchmarks

Written by `make bench`. Each figure is a ratio of two medians, measured in the same run, in rounds in which all take
turns; in brackets the ratios of single rounds. ✔ the bar is met, ✔✔ so is what lies beyond it, ✘ it is missed.
[performance.md](performance.md) says where the time goes.

![How each figure stands to its bar](benchmarks.svg)
"""

HOW = """
## How it was measured

- **One PostgreSQL for all**, with its defaults, `fsync` on, each with a database of its own. Before each turn there is
  a `vacuum` and a `checkpoint`, for all alike, so that neither falls into what is measured.
- **One server to send to**, a process that answers at once and counts. PostgreSQL, the server and the workers share the
  cores of this machine, and the ratios are those of such a machine.
- **We are the product**: `dynamics-sync run --no-web` with its defaults; with `BULK_SIZE=1` where each record is a
  request; and with `RECONCILE_HOURS=0`, as there is nothing to compare with. It begins with one request at once, and
  with a hundred records in one, and finds out in each turn how much more may be; that is part of what is measured.
- **Records a second**: workers are idle, one transaction makes all records wait; from the first request at the server
  until nothing waits in the database. Without a database: from the first request to the last answer. {in_flight}
  requests are under way at once, for all. All but us send with aiohttp; beside the PATCHes without any database are
  the same with our client, which is the most that a worker could do.
- **Peers** run in an environment of their own, each at what its documentation says is its best; what was chosen, and
  why, stands at the head of each script in `benchmarks/peers`. pgqueuer and procrastinate find the body in the job and
  need not read the row.
- **The bare loop** (`benchmarks/bare/loop.py`) claims, reads, sends the same bodies and settles what it sent, and does
  nothing else.
- **Latency**: a user commits a change of one record, again and again, with pauses; from when the commit is done until
  the request is at the server.
- **A long queue**: so many records are sent of few, many and very many that wait; memory is the most that the worker's
  process had resident.
- **The trigger**: pgbench with eight clients, and one statement; nobody empties the queues meanwhile, and one session
  listens. Queues of peers are filled by a row trigger that does what their own call to enqueue does.
- **The breaker**: microseconds that it adds to an awaited function which does nothing.
- **Two workers** have half of the requests under way each. The bar holds where a core is free: below {free_cores} cores
  they take them from PostgreSQL and from the server, and it is not judged.
"""


def write(run: Run, directory: Path) -> None:
    """`benchmarks.md`, `.svg` and `.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "benchmarks.md").write_text(markdown(run))
    (directory / "benchmarks.svg").write_text(plot(rows(run)))
    (directory / "benchmarks.json").write_text(as_json(run))


def markdown(run: Run) -> str:
    """The page."""
    return "\n".join(
        [
            HEAD,
            _figures(run),
            _series(run),
            _missing(run),
            _made_with(run),
            HOW.format(in_flight=IN_FLIGHT, free_cores=FREE_CORES),
        ]
    )


def rows(run: Run) -> Sequence[Row]:
    """The lines of the plot."""
    made = []
    for bar in run.bars:
        ratio = bar.ratio(run.results)
        made.append(Row(bar.what, bar.peer, ratio, bar, bar.verdict(ratio, run.cores)))
    return made


def as_json(run: Run) -> str:
    """All rounds, and what they were measured with."""
    document = {
        "day": run.day.isoformat(),
        "command": run.command,
        "rounds": run.rounds.counted,
        "sizes": run.sizes,
        "machine": run.machine,
        "versions": run.versions,
        "measured": [
            {**series._asdict(), "median": run.results.median(series), "rounds": values}
            for series, values in run.results.rounds.items()
        ],
        "figures": [
            {
                "figure": bar.name,
                "ratio": (ratio := bar.ratio(run.results)),
                "wanted": str(bar.wanted),
                "bar": bar.bar,
                "beyond": bar.beyond,
                "verdict": str(bar.verdict(ratio, run.cores)),
            }
            for bar in run.bars
        ],
        "failures": run.results.failures,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _figures(run: Run) -> str:
    lines = ["| figure | ours | peer | ratio | bar | beyond | |", "|---|---:|---:|---:|---:|---:|---|"]
    for bar in run.bars:
        ratio, spread = bar.ratio(run.results), bar.spread(run.results)
        over, under = bar.sides(run.results)
        ours, theirs = (under, over) if bar.is_ours_below else (over, under)
        unit = _unit(bar.over)
        lines.append(
            f"| {bar.name} | {_value(ours, unit)} | {_value(theirs, unit)} | {_ratio(ratio, spread)} "
            f"| {bar.wanted} {bar.bar:g} | {'' if bar.beyond is None else f'{bar.wanted} {bar.beyond:g}'} "
            f"| {MARKS[bar.verdict(ratio, run.cores)]} |"
        )
    return "\n".join(lines)


def _series(run: Run) -> str:
    lines = ["", "## All that was measured", "", "| | | median | least | most |", "|---|---|---:|---:|---:|"]
    for series, values in run.results.rounds.items():
        unit = _unit(series)
        shown = (_value(value, unit) for value in (run.results.median(series), min(values), max(values)))
        lines.append(f"| {series.figure} | {series.contender}, {series.metric} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _missing(run: Run) -> str:
    lines = [f"- {name}: {' '.join(why.split())[:300]}" for name, why in run.results.failures.items()]
    if run.peers_missing:
        lines.append(f"- The peers were left out: {run.peers_missing}.")
    return "\n".join(["", "## What could not be measured", "", *lines]) if lines else ""


def _made_with(run: Run) -> str:
    facts = {
        "day": run.day.isoformat(),
        "command": f"`{run.command}`",
        "rounds": f"{run.rounds.counted}, after {run.rounds.before} that does not count",
        **run.machine,
        "versions": ", ".join(f"{name} {number}" for name, number in run.versions.items()),
        "sizes": ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in run.sizes.items()),
    }
    return "\n".join(["", "## What it was measured with", "", "| | |", "|---|---|"]) + "".join(
        f"\n| {name} | {value} |" for name, value in facts.items()
    )


def _unit(series: Series) -> str:
    """The last word of what was measured."""
    return series.metric.split()[-1]


def _value(value: float | None, unit: str) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    digits = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{digits} {unit}"


def _ratio(ratio: float | None, spread: tuple[float, float] | None) -> str:
    if ratio is None or spread is None:
        return ""
    return f"**{ratio:.2f}** ({spread[0]:.2f}–{spread[1]:.2f})"
