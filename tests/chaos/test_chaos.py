"""The short form of `make chaos`: everything that can go wrong does so at least once, and every promise is kept."""

import asyncio

import pytest
from rich.console import Console

from chaos.faults import DYNAMICS_KILLED, PARTITIONS, WEATHER, name_of
from chaos.namespaces import why_not
from chaos.preamble import Point
from chaos.report import print_report
from chaos.run import SHORT, ChaosSettings, Result, run

SEED = 3


@pytest.fixture(scope="module")
def result() -> Result:
    done = asyncio.run(run(ChaosSettings(SEED, duration_seconds=6, workers=3, pace=SHORT)))
    print_report(Console(), done)
    return done


def test_nothing_is_lost_and_every_promise_is_kept(result: Result) -> None:
    assert result.violations == []
    assert result.diary.unforeseen == []
    assert result.drained


def test_everything_has_happened(result: Result) -> None:
    """Else the other test would have shown nothing."""
    expected = [*(point.death for point in Point), *(name_of(weather) for weather in WEATHER), DYNAMICS_KILLED]
    counts = result.diary.counts
    assert [name for name in expected if not counts[name]] == []
    assert len(result.history.changes) > 500
    assert len(result.history.looks) > 5
    assert any(change.state == "open" for change in result.history.circuit)


def test_workers_were_cut_off_from_the_network(result: Result) -> None:
    if (reason := why_not()) is not None:
        pytest.skip(f"workers that are cut off from the network: {reason}")
    assert [name for name in PARTITIONS if not result.diary.counts[name]] == []
