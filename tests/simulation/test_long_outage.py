"""Eight hours without Dynamics, with the settings that people have: nothing is worn out."""

import gc
from collections.abc import Iterator

import pytest
import structlog

from dynamics_sync.core.circuit import CircuitSettings
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.sync.lease import LeaseTimes
from dynamics_sync.sync.replay import ReplaySettings
from simulation.knobs import Knobs
from simulation.loop import WORLD
from simulation.plan import Action, Kind, Mood, Plan
from simulation.promises import Promises
from simulation.world import World

RECORDS = 1_000
OUTAGE_SECONDS = 8 * 3600.0
AS_PEOPLE_HAVE_IT = Knobs(
    leases=LeaseTimes(lease_seconds=90.0, prepare_seconds=10.0, request_seconds=35.0),
    circuit=CircuitSettings(notice_seconds=0.5),
    policy=RetryPolicy(),
    poll_seconds=1.0,
    late_seconds=180.0,
    replay=ReplaySettings(),
)


@pytest.fixture
def swiftly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        Promises, "check", lambda self: None
    )  # a thousand records at each step; the test looks at the end
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    gc.disable()
    yield
    gc.enable()
    structlog.reset_defaults()


@pytest.mark.usefixtures("swiftly")
@pytest.mark.parametrize("workers", [1, 3])
def test_an_outage_of_eight_hours_wears_no_record_out(workers: int) -> None:
    down = Action(5.0, Kind.DYNAMICS, seconds=OUTAGE_SECONDS, mood=Mood.DOWN)
    plan = Plan(7, workers, concurrency=48, failure_threshold=3, notifies=False, skews=(0.0,) * workers)
    world = World(plan, knobs=AS_PEOPLE_HAVE_IT)
    for worker in world.workers:
        worker.start()
    world.loop.call_at(down.at, world.act, down, context=WORLD)
    for number in range(RECORDS):
        world.loop.call_at(6.0, world.commit, Action(6.0, Kind.CHANGE, f"r{number}"), context=WORLD)

    world.loop.run(lambda: False, down.at + OUTAGE_SECONDS)
    left = len(world.database.open_entries)
    assert left + len(world.database.waiting) == RECORDS
    assert left <= RECORDS // 100
    probes = OUTAGE_SECONDS / AS_PEOPLE_HAVE_IT.circuit.cool_down_seconds
    assert world.to_dynamics.requests <= workers * 48 + probes + 10

    assert world.loop.run(lambda: not world.database.waiting, down.at + OUTAGE_SECONDS + 300)
    arrived = [key for key, state in world.promises.committed.items() if world.promises.held(key) == state]
    assert len(arrived) == RECORDS - left
    assert world.violations == []
    world.loop.close()
