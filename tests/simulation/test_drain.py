"""A backlog is drained as fast as Dynamics' limits allow, and hardly ever faster.

The engine is the real one, the limits are counted by the simulator's own keeper, and the clock is simulated: hours pass
in seconds.
"""

from collections.abc import Iterator

import pytest
import structlog

from dynamics_sync.simulator.limits import Limits
from simulation.drain import drain


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    yield
    structlog.reset_defaults()


WINDOW_SECONDS = Limits().window_seconds


def share_used(used: float, limit: float, seconds: float) -> float:
    """Of what a limit allows in that time, window by window."""
    return used / (limit * seconds / WINDOW_SECONDS)


def work_seconds(requests: int, records: int) -> float:
    """How long Dynamics is at work on them, about."""
    return (requests * 0.06 + records * 0.004) * 1.15


def test_one_by_one_the_number_of_requests_is_the_limit() -> None:
    """`make drain` does it with 200,000."""
    limits = Limits(dop_hint=10)
    drained = drain(12_000, together=1, workers=3, limits=limits)
    assert drained.queued == 0
    assert drained.most_refused(WINDOW_SECONDS) <= 1
    assert share_used(drained.requests, limits.requests, drained.seconds) >= 0.9


def test_in_bulk_200_000_records_take_no_longer_than_its_parallelism_makes_them() -> None:
    """They cost Dynamics less time than one window allows."""
    limits = Limits(dop_hint=4)
    drained = drain(200_000, together=1000, workers=2, limits=limits)
    assert (drained.queued, drained.refused_at) == (0, [])
    assert work_seconds(drained.requests, drained.records) / limits.dop_hint / drained.seconds >= 0.9


def test_where_dynamics_recommends_more_than_the_limits_allow_they_hold_all_the_same() -> None:
    limits = Limits(dop_hint=16)
    drained = drain(600_000, together=1000, workers=2, limits=limits)
    assert drained.queued == 0
    assert drained.most_refused(WINDOW_SECONDS) <= 1
    work = work_seconds(drained.requests, drained.records)
    assert share_used(work, limits.execution_seconds, drained.seconds) >= 0.9
