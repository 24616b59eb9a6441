"""The benchmarks work, and their report says what was measured: at tiny sizes, and never with a look at a time."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmarks.bars import Verdict, bars
from benchmarks.database import Server
from benchmarks.figures import BACKLOG, BREAKER, BULK, LATENCY, TRIGGER, WORKERS
from benchmarks.measuring import FULL, LOOP, PATCHES, TINY, Contender, Figure, Results, Rounds, Series, Stage, measure
from benchmarks.peers.environment import LOCK, NAMED, no_peers
from benchmarks.plot import plot
from benchmarks.processes import BenchmarkError, target
from benchmarks.report import Run, markdown, rows, write

from support.postgres import binaries, temporary_server

WANTED = (
    *(
        "one PATCH per record, of PATCHes",
        "one PATCH per record, of pgqueuer",
        "one PATCH per record, of procrastinate",
    ),
    *("one PATCH per record, of Microsoft's SDK", "bulk, of single PATCHes", "bulk, of a bare bulk loop"),
    *("bulk, of Microsoft's SDK", "commit to request, idle, p50", "commit to request, idle, p99"),
    *("throughput, single, 1,000,000 waiting, of 10,000", "throughput, bulk, 1,000,000 waiting, of 10,000"),
    *("memory, single, 1,000,000 waiting, of 1,000", "memory, bulk, 1,000,000 waiting, of 1,000"),
    *("transactions of several clients", "a statement that updates many rows", "breaker, for each call"),
    *("two worker processes, single, of one", "two worker processes, bulk, of one"),
)
"""Every figure that is to be in the table."""


def made_up(**medians: float) -> Results:
    """Results of one round, for the first bars of the table."""
    results = Results()
    for contender, value in medians.items():
        results.rounds[Series("single", contender.replace("_", "-"), "records/s")].append(value)
    return results


def reported(results: Results, cores: int = 2) -> Run:
    return Run(
        results=results,
        bars=bars(FULL),
        sizes={"single": 10},
        rounds=Rounds(5),
        machine={"cores": str(cores)},
        versions={"Python": "3.11"},
        peers_missing="",
        command="make bench",
        day=date(2026, 11, 26),
    )


def line_of(run: Run, figure: str) -> str:
    [line] = [line for line in markdown(run).splitlines() if line.startswith(f"| {figure}")]
    return line


def test_each_figure_that_is_wanted_has_its_bar() -> None:
    names = [bar.name for bar in bars(FULL)]
    assert all(any(name.startswith(wanted) for name in names) for wanted in WANTED)
    assert len(names) == len(WANTED)


def test_a_bar_is_met_passed_or_missed_in_words() -> None:
    run = reported(made_up(dynamics_sync=2000, pgqueuer=1000, procrastinate=200))
    assert "✔ met" in line_of(run, "one PATCH per record, of pgqueuer")
    assert "**missed**" in line_of(run, "one PATCH per record, of procrastinate")
    assert "not measured" in line_of(run, "bulk, of a bare bulk loop")
    assert {"met", "missed", "not measured"} <= set(re.findall(r"(?:not )?\w+(?=</text>)", plot(rows(run))))


def test_what_is_beyond_a_bar_is_said_too() -> None:
    [breaker] = [bar for bar in bars(FULL) if bar.what.startswith("breaker")]
    assert [breaker.verdict(ratio, 2) for ratio in (0.6, 1, 1.1)] == [Verdict.BEYOND, Verdict.MET, Verdict.MISSED]


def test_of_several_peers_the_best_counts() -> None:
    [breaker] = [bar for bar in bars(FULL) if bar.what.startswith("breaker")]
    results = Results()
    for contender, values in {"dynamics-sync": [1.0, 2.0, 3.0], "hyx": [4.0] * 3, "purgatory": [8.0] * 3}.items():
        results.rounds[Series("breaker", contender, "µs")] += values
    assert breaker.ratio(results) == 0.5
    assert breaker.spread(results) == (0.25, 0.75)


def test_two_workers_are_not_judged_without_a_free_core() -> None:
    bar = bars(FULL)[-1]
    assert [bar.verdict(1.1, cores) for cores in (2, 4)] == [Verdict.UNJUDGED, Verdict.MISSED]


def test_a_contender_that_fails_is_named_and_left_out(stage: Stage) -> None:
    def fails() -> Mapping[str, float]:
        raise BenchmarkError("it said no")

    @contextmanager
    def two(_: Stage) -> Iterator[Sequence[Contender]]:
        yield [Contender("one", lambda: {"s": 1.0}), Contender("other", fails)]

    results = Results()
    measure(Figure("f", "A figure", two), stage, Rounds(2), results, lambda **_: None)
    assert results.rounds == {Series("f", "one", "s"): [1.0, 1.0]}
    assert results.failures == {"A figure, other": "it said no"}
    assert "- A figure, other: it said no" in markdown(reported(results))


def test_the_peers_are_locked() -> None:
    locked = re.findall(r"^([\w.-]+)", LOCK.read_text(), re.MULTILINE)
    assert {name.lower() for name in NAMED} <= {*locked}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """On a server that is not durable: only figures would need one that is."""
    with temporary_server(binaries("pg15")) as server, target() as running:
        yield Stage(Server(server.url), running, no_peers("this is a test"), TINY)


def measured(figure: Figure, stage: Stage) -> Results:
    """One round."""
    results = Results()
    measure(figure, stage, Rounds(1, before=0), results, lambda **_: None)
    assert results.failures == {}
    assert all(value > 0 for values in results.rounds.values() for value in values if figure is not BREAKER)
    return results


def test_bulk_is_measured_beside_a_loop_and_patches_and_written_down(stage: Stage, tmp_path: Path) -> None:
    run = reported(measured(BULK, stage))
    write(run, tmp_path)
    document = json.loads((tmp_path / "benchmarks.json").read_text())
    assert {each["contender"] for each in document["measured"]} == {"dynamics-sync", LOOP, PATCHES}
    assert {each["figure"] for each in document["figures"] if each["ratio"] is not None} == {
        f"bulk, of single {PATCHES}",
        "bulk, of a bare bulk loop",
    }
    picture = (tmp_path / "benchmarks.svg").read_text()
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert "prefers-color-scheme: dark" in picture
    assert "![How each figure stands to its bar](benchmarks.svg)" in (tmp_path / "benchmarks.md").read_text()


def test_latency_is_measured_commit_by_commit(stage: Stage) -> None:
    assert {series[1:] for series in measured(LATENCY, stage).rounds} == {
        (contender, metric) for contender in ("dynamics-sync", LOOP) for metric in ("p50 ms", "p99 ms")
    }


def test_the_trigger_is_measured_beside_none_and_a_plain_one(stage: Stage) -> None:
    assert {series[1:] for series in measured(TRIGGER, stage).rounds} == {
        (contender, metric)
        for contender in ("no trigger", "dynamics-sync", "a plain row trigger")
        for metric in ("transactions/s", "seconds")
    }


def test_the_breaker_is_measured_beside_a_bare_one(stage: Stage) -> None:
    assert len(measured(BREAKER, stage).rounds) == 2


def test_a_long_queue_and_two_workers_are_measured(stage: Stage) -> None:
    """One turn of each, as the others are the same."""
    with BACKLOG.contenders(stage) as contenders:
        assert {*contenders[-1].turn()} == {"records/s", "peak MiB"}
    with WORKERS.contenders(stage) as contenders:
        measured = {"records/s", "CPU for a record, µs", "CPU of PostgreSQL for a record, µs"}
        assert {*contenders[1].turn()} == measured
