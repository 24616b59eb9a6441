"""The engine in histories in which faults are the normal case. `make simulate` lets a million of them happen."""

import io
from itertools import chain

import pytest
from rich.console import Console

from simulation.bugs import BUGS, Bug
from simulation.campaign import Found, campaign, seeds_until_found
from simulation.plan import Kind, plan_for
from simulation.shrink import kind_of, shrink
from simulation.timeline import show
from simulation.world import simulate

SEEDS = 5_000
HISTORIES = 3_000

SHOWN_BY = {
    "looks for what was refused together by halves": 1058,
    "probes with many records": 765,
    "sends on a permit of any age": 843,
}
"""Seeds that show bugs which few do: they are tried first, and the others where histories have changed since."""


def lines_of(seed: int) -> list[tuple[float, str, str]]:
    lines: list[tuple[float, str, str]] = []
    simulate(plan_for(seed), lambda *line: lines.append(line))
    return lines


def test_three_thousand_histories_violate_nothing() -> None:
    found = sum(campaign(range(HISTORIES)), Found())
    assert found.histories == HISTORIES
    assert found.failures == (), "look at one with: make simulate SEED=…"


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_deliberate_bug_is_found(bug: Bug) -> None:
    assert seeds_until_found(bug, chain([SHOWN_BY.get(bug.name, 0)], range(SEEDS)))


def test_a_seed_gives_the_same_history_each_time() -> None:
    for seed in range(40):
        assert lines_of(seed) == lines_of(seed)


def test_histories_hold_every_kind_of_trouble() -> None:
    actions = [action for seed in range(2_000) for action in plan_for(seed).actions]
    assert {action.kind for action in actions} == set(Kind)
    told = [what for seed in range(300) for _, _, what in lines_of(seed)]
    for word in (
        "open,",
        "half_open,",
        "closed,",
        "FAILED",
        "queue insert",
        "resend",
        "lease.lost",
        "settle",
        "replays",
    ):
        assert any(word in what for what in told), word


def test_a_failing_history_is_made_short_and_told() -> None:
    (bug,) = (each for each in BUGS if each.name == "forgets requests that were never answered")
    with bug.apply():
        failing = next(plan for seed in range(SEEDS) if kind_of(plan := plan_for(seed)) == "I1")
        shortest = shrink(failing)
        assert kind_of(shortest) == "I1"
        assert len(shortest.actions) < len(failing.actions)
        told = io.StringIO()
        assert show(shortest, Console(file=told, width=160))
    assert "I1" in told.getvalue()
    assert "nobody keeps it in mind" in told.getvalue()
