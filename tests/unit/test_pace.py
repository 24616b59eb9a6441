"""The pace: when it grows, when it falls, and how closely requests follow one another."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics_sync.core.pace import (
    MOST_GAP_SECONDS,
    START,
    Allowance,
    Latency,
    Pace,
    Signals,
    adjusted,
    begun_anew,
    gap_seconds,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
FULL = Signals(full=True)


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def grown(pace: Pace, rounds: int, most: int = 48) -> Pace:
    for _ in range(rounds):
        pace = adjusted(pace, FULL, most, NOON)
    return pace


def test_it_doubles_while_nothing_is_known_up_to_what_makes_sense() -> None:
    assert [grown(Pace(), rounds).concurrency for rounds in range(7)] == [1, 2, 4, 8, 16, 32, 48]


def test_it_does_not_grow_where_the_places_are_not_used() -> None:
    assert adjusted(Pace(), Signals(), 48, NOON) == Pace()


def test_a_round_lasts_as_long_as_a_request() -> None:
    slow = Signals(full=True, seconds=2.0)
    pace = adjusted(Pace(), slow, 48, NOON)
    assert adjusted(pace, slow, 48, later(1.9)) == pace
    assert adjusted(pace, slow, 48, later(2.0)).concurrency == 4


@pytest.mark.parametrize("trouble", [Signals(throttled=True), Signals(failed=True)])
def test_after_trouble_one_request_goes_first_and_it_doubles_up_to_half_of_what_was_too_much(trouble: Signals) -> None:
    pace = adjusted(grown(Pace(), 4), trouble, 48, NOON)
    assert [grown(pace, rounds).concurrency for rounds in range(6)] == [START, 2, 4, 8, 9, 10]


def test_rising_latency_takes_a_fifth_but_never_the_start() -> None:
    assert adjusted(grown(Pace(), 4), Signals(slow=True), 48, NOON).concurrency == 12
    assert adjusted(Pace(), Signals(slow=True, full=True), 48, NOON) == Pace()


def test_one_trouble_that_many_hear_of_counts_once() -> None:
    pace = adjusted(grown(Pace(), 4), Signals(throttled=True), 48, NOON)
    assert pace.threshold == 8
    assert adjusted(pace, Signals(throttled=True), 48, later(0.9)) == pace
    assert adjusted(pace, Signals(throttled=True, seconds=30.0), 48, later(29.0)) == pace
    assert adjusted(pace, Signals(throttled=True), 48, later(1.0)).threshold == START


def test_it_falls_to_what_dynamics_recommends_now() -> None:
    assert adjusted(grown(Pace(), 4), Signals(), 4, NOON).concurrency == 4


def test_after_a_rest_nothing_is_known() -> None:
    pace = adjusted(grown(Pace(), 4), Signals(throttled=True), 48, NOON)
    assert begun_anew(pace, NOON) == Pace(changed_at=NOON, revision=pace.revision + 1)


signals = st.builds(
    Signals,
    failed=st.booleans(),
    throttled=st.booleans(),
    slow=st.booleans(),
    full=st.booleans(),
    seconds=st.floats(0, 40),
)


@given(st.lists(st.tuples(signals, st.integers(1, 60), st.floats(0, 5))))
def test_whatever_is_heard_there_is_one_place_at_least_and_each_change_has_a_revision(
    heard: list[tuple[Signals, int, float]],
) -> None:
    pace, now = Pace(), NOON
    for signal, most, seconds in heard:
        now += timedelta(seconds=seconds)
        new = adjusted(pace, signal, most, now)
        assert new == pace or new.revision == pace.revision + 1
        assert new.concurrency >= 1
        assert new.concurrency <= max(most, pace.concurrency)
        if signal.failed or signal.throttled or signal.slow:
            assert new.concurrency <= pace.concurrency
        pace = new


@pytest.mark.parametrize(
    ("left", "per_second"), [(6000, math.inf), (3001, math.inf), (1500, 100.0), (300, 20.0), (30, 2.0)]
)
def test_the_less_is_left_of_a_limit_the_more_slowly_it_is_used(left: float, per_second: float) -> None:
    assert Allowance(left, 6000).rate() == pytest.approx(per_second)


def test_the_limit_is_the_most_that_was_ever_left() -> None:
    known = Allowance.after(Allowance.after(None, 8000), 10)
    assert known == Allowance(10, 8000)
    assert Allowance.after(known, None) == known
    assert Allowance.after(None, None) is None


def test_workers_share_what_is_left() -> None:
    assert gap_seconds(Allowance(300, 6000), None, 1.0, under_way=0, part=1 / 3) == pytest.approx(3 / 20)
    assert gap_seconds(None, Allowance(60, 1200), 2.0, under_way=0, part=1) == pytest.approx(0.5)
    assert gap_seconds(None, None, 2.0, under_way=0, part=1) == 0.0


def test_what_is_under_way_counts_as_used() -> None:
    assert gap_seconds(None, Allowance(240, 1200), 5.0, under_way=36, part=1) == pytest.approx(5 / 4)
    assert gap_seconds(None, Allowance(240, 1200), 5.0, under_way=48, part=1) == MOST_GAP_SECONDS


def test_of_a_limit_that_is_all_but_spent_one_percent_is_left() -> None:
    assert not Allowance(60, 6000).is_spent
    assert Allowance(59, 6000).is_spent
    assert not Allowance(0, 0).is_spent


def test_nobody_waits_longer_for_what_headers_say() -> None:
    """Only a 429 says that nothing is left."""
    assert gap_seconds(Allowance(0, 6000), None, 1.0, under_way=0, part=1) == MOST_GAP_SECONDS


def test_latency_rises_against_what_it_usually_is() -> None:
    latency = None
    for _ in range(300):
        latency = Latency.after(latency, 0.2)
    assert latency is not None
    assert not latency.is_rising
    for _ in range(10):
        latency = Latency.after(latency, 2.0)
    assert latency.is_rising


def test_latency_that_stays_high_becomes_the_usual_one() -> None:
    latency = Latency.after(None, 0.2)
    for _ in range(600):
        latency = Latency.after(latency, 2.0)
    assert not latency.is_rising


def test_a_tenth_of_a_second_is_nothing() -> None:
    latency = Latency.after(None, 0.001)
    for _ in range(20):
        latency = Latency.after(latency, 0.09)
    assert not latency.is_rising
