"""Eight hours without Dynamics, with the settings that people have: nothing is worn out."""

import gc
from collections.abc import Iterator

import pytest
import structlog

from dynamics_sync.core.circuit import CircuitSettings
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.sync.lease import LeaseTimes
from simulation import world as simulated
from simulation.loop import WORLD
from simulation.plan import Action, Kind, Mood, Plan
from simulation.world import SimulatedWorker, World

RECORDS = 1_000
OUTAGE_SECONDS = 8 * 3600.0
CIRCUIT = CircuitSettings(notice_seconds=0.5)
LEASES = LeaseTimes(lease_seconds=90.0, prepare_seconds=10.0, request_seconds=35.0)


@pytest.fixture
def as_people_have_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(simulated, "CIRCUIT", CIRCUIT)
    monkeypatch.setattr(simulated, "TIMES", LEASES)
    monkeypatch.setattr(simulated, "POLICY", RetryPolicy())
    monkeypatch.setattr(simulated, "POLL_SECONDS", 1.0)
    monkeypatch.setattr(World, "check", lambda self: None)  # a thousand records at each step; the test looks at the end
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    gc.disable()
    yield
    gc.enable()
    structlog.reset_defaults()


@pytest.mark.usefixtures("as_people_have_it")
@pytest.mark.parametrize("workers", [1, 3])
def test_an_outage_of_eight_hours_wears_no_record_out(workers: int) -> None:
    down = Action(5.0, Kind.DYNAMICS, seconds=OUTAGE_SECONDS, mood=Mood.DOWN)
    plan = Plan(7, workers, concurrency=48, failure_threshold=3, notifies=False, skews=(0.0,) * workers)
    world = World(plan)
    for number in range(workers):
        world.workers.append(SimulatedWorker(world, number))
        world.workers[-1].start()
    world.loop.call_at(down.at, world.act, down, context=WORLD)
    for number in range(RECORDS):
        world.loop.call_at(6.0, world.commit, Action(6.0, Kind.CHANGE, f"r{number}"), context=WORLD)

    world.loop.run(lambda: False, down.at + OUTAGE_SECONDS)
    left = len(world.database.open_entries)
    waiting = len(world.database.outbox)
    requests = world.requests
    assert left + waiting == RECORDS
    assert left <= RECORDS // 100
    assert requests <= workers * 48 + OUTAGE_SECONDS / CIRCUIT.cool_down_seconds + 10

    assert world.loop.run(lambda: not world.database.outbox, down.at + OUTAGE_SECONDS + 300)
    arrived = sum(world._holds(key, state) for key, state in world.committed.items())
    assert arrived == RECORDS - left
    assert world.violations == []
    world.loop.close()
