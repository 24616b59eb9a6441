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


def least_seconds(requests: int, limits: Limits, concurrency: int, request_seconds: float) -> float:
    """How long requests take that nobody could make sooner: each window's allowance at its beginning."""
    windows, rest = divmod(requests - 1, limits.requests)
    return windows * limits.window_seconds + (rest + 1) * request_seconds / concurrency


@pytest.mark.parametrize("workers", [1, 3])
def test_one_by_one_the_number_of_requests_is_the_limit(workers: int) -> None:
    """At most one 429 in each window, and nine tenths of what could be sent."""
    limits = Limits(requests=600, window_seconds=300.0, dop_hint=4)
    drained = drain(9_000, together=1, workers=workers, limits=limits)
    assert drained.queued == 0
    assert drained.requests == drained.records + len(drained.refused_at)
    assert drained.most_refused(limits.window_seconds) <= 1
    assert least_seconds(drained.records, limits, 4, 0.084) / drained.seconds >= 0.9


def test_in_bulk_the_time_that_dynamics_works_is_the_limit() -> None:
    """200,000 records cost it some 920 seconds: less than one window allows. What is left is its parallelism."""
    limits = Limits(dop_hint=4)
    drained = drain(200_000, together=1000, workers=2, limits=limits)
    assert (drained.queued, drained.refused_at) == (0, [])
    work_seconds = drained.requests * (0.06 + 0.004 * 1000) * 1.15
    assert work_seconds / limits.dop_hint / drained.seconds >= 0.9


def test_where_dynamics_recommends_more_than_the_limits_allow_they_still_hold() -> None:
    limits = Limits(dop_hint=16)
    drained = drain(1_500_000, together=1000, workers=2, limits=limits)
    assert drained.queued == 0
    assert drained.most_refused(limits.window_seconds) <= 1
    work_seconds = drained.requests * (0.06 + 0.004 * 1000) * 1.15
    windows = work_seconds / limits.execution_seconds - 1
    assert windows * limits.window_seconds / drained.seconds >= 0.9
