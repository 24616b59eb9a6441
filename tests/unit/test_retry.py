"""R1: how often, how long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import RetryCallState, Retrying, wait_exponential

from dynamics_sync import RetryPolicy
from dynamics_sync.core.retry import MAX_DELAY_MS


def test_the_default_waits_2_4_and_8_seconds_and_then_gives_up() -> None:
    policy = RetryPolicy()
    assert [policy.delay_ms(failed) for failed in (1, 2, 3, 4)] == [2000, 4000, 8000, 0]
    assert policy.max_requests == 4


@given(base=st.integers(0, 60_000), failed=st.integers(1, 30))
def test_tenacity_waits_as_long(base: int, failed: int) -> None:
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = failed
    oracle = wait_exponential(multiplier=base / 1000, max=MAX_DELAY_MS / 1000)(state)
    assert RetryPolicy(max_retries=30, base_delay_ms=base).delay_ms(failed) == pytest.approx(oracle * 1000)


@given(base=st.integers(0, 10**9), failed=st.integers(1, 10**6))
def test_no_wait_is_longer_than_a_quarter_of_an_hour(base: int, failed: int) -> None:
    assert 0 <= RetryPolicy(10**6, base).delay_ms(failed) <= MAX_DELAY_MS


@pytest.mark.parametrize("wrong", [{"max_retries": -1}, {"base_delay_ms": -1}])
def test_negative_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        RetryPolicy(**wrong)


def test_failures_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="counts from 1"):
        RetryPolicy().delay_ms(0)
