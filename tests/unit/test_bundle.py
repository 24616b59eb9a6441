"""How many records go into one request."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics_sync.core.bundle import MOST, BundleSize

sizes = st.integers(1, MOST).flatmap(lambda most: st.builds(BundleSize, st.just(most), st.integers(1, most)))
counts = st.integers(1, MOST)
seconds = st.floats(0, 300)


@settings(max_examples=1000)
@given(sizes, counts, seconds)
def test_an_answer_lets_it_grow_to_twice_what_was_answered_and_never_out_of_bounds(
    size: BundleSize, count: int, took: float
) -> None:
    after = size.answered(count, took)
    assert 1 <= after.size <= size.most
    assert after.size <= max(size.size, 2 * count)
    if took > size.wanted_seconds:
        assert after.size <= size.size
    else:
        assert after.size >= size.size
    assert (after.most, after.wanted_seconds) == (size.most, size.wanted_seconds)


@settings(max_examples=1000)
@given(sizes, counts)
def test_too_much_halves_it_down_to_one(size: BundleSize, count: int) -> None:
    after = size.too_much(count)
    assert 1 <= after.size <= size.size
    assert after.size <= max(1, count // 2)


@settings(max_examples=200)
@given(sizes, st.floats(0.0001, 60))
def test_it_comes_to_the_size_that_takes_the_time_wanted(size: BundleSize, seconds_each: float) -> None:
    for _ in range(12):
        size = size.answered(size.size, size.size * seconds_each)
    fitting = min(max(int(size.wanted_seconds / seconds_each), 1), size.most)
    assert abs(size.size - fitting) <= 1


def test_a_few_records_that_were_quick_say_nothing_of_many() -> None:
    assert BundleSize(size=100).answered(3, 0.01).size == 100
    assert BundleSize(size=100).answered(100, 0.01).size == 200


def test_a_few_records_that_were_too_slow_do() -> None:
    assert BundleSize(size=100).answered(10, 10.0).size == 5


@pytest.mark.parametrize("size", [0, -1, MOST + 1])
def test_a_size_out_of_bounds_is_none(size: int) -> None:
    with pytest.raises(ValueError, match="not between 1 and 1000"):
        BundleSize(size=size)
