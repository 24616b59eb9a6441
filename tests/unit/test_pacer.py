"""A worker's part of the pace: how many requests may be under way, how closely they follow, and what is told."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import Accepted, AlreadyThere, Outcome, Throttled, Transient
from dynamics_sync.core.pace import MOST_GAP_SECONDS, Hints, Pace
from dynamics_sync.sync.clock import StoppableClock, StoppedError
from dynamics_sync.sync.pacer import IDLE_SECONDS, LOOK_SECONDS, PacedGateway, Pacer
from dynamics_sync.sync.ports import PaceReading
from simulation.loop import Process, SimulationLoop
from simulation.machines import SimulatedClock
from simulation.stores import EPOCH
from support.gateway import ScriptedBulkGateway

WELL = [Accepted()]
TABLE = "public.t"
STEADY = Pace(concurrency=4, changed_at=EPOCH + timedelta(days=1))
"""It does not grow by itself."""


@dataclass
class Paces:
    """The pace of all workers, without a database."""

    clock: SimulatedClock
    pace: Pace = STEADY
    workers: int = 1
    rank: int = 0
    is_first: bool = False
    is_away: bool = False
    is_contended: bool = False
    """Another worker changes it first, each time."""
    looks: list[float] = field(default_factory=list)

    async def share(self, worker: str) -> PaceReading:
        self.looks.append(self.clock.monotonic())
        if self.is_away:
            raise DatabaseError("away")
        is_first, self.is_first = self.is_first, False
        return PaceReading(self.pace, self.clock.now(), self.workers, self.rank, is_first)

    async def compare_and_set(self, expected: Pace, new: Pace) -> bool:
        if self.is_contended or expected.revision != self.pace.revision:
            return False
        self.pace = new
        return True


@dataclass
class Room:
    """A pacer at work, in simulated time."""

    paces: Paces
    clock: StoppableClock
    pacer: Pacer
    entered: list[float] = field(default_factory=list)
    """When each request was let in."""

    def send(self) -> None:
        """A request is let in and leaves."""
        self.entered.append(self.clock.monotonic())
        self.pacer.leaves()

    def answer(self, *outcomes: Outcome, count: int = 1, seconds: float = 0.1) -> None:
        self.pacer.ends(TABLE, count, seconds, outcomes or WELL)
        self.pacer.leave()

    async def let_in(self, count: int) -> None:
        for _ in range(count):
            await self.pacer.enter()
            self.send()

    async def looked(self) -> None:
        """Until the pacer has looked once more, whatever the gap."""
        before = len(self.paces.looks)
        while len(self.paces.looks) == before:
            await asyncio.sleep(0.01)


def simulated(scenario: Callable[[Room], Awaitable[None]], *, most: int = 48) -> None:
    """Let a scenario happen; it has ten minutes."""
    loop = SimulationLoop()
    clock = SimulatedClock(loop)
    stopping = StoppableClock(clock)
    paces = Paces(clock)
    room = Room(paces, stopping, Pacer(paces, stopping, most, "worker"))

    async def happen() -> None:
        keeping = asyncio.create_task(room.pacer.run())
        try:
            await scenario(room)
        finally:
            keeping.cancel()

    job = loop.start(Process("worker"), happen())
    assert loop.run(job.done, 600.0), "it waits for ever"
    loop.close()
    job.result()


async def under_way(room: Room, seconds: float = 5.0) -> int:
    """How many are let in, if none is answered."""
    letting = asyncio.create_task(room.let_in(100))
    await asyncio.sleep(seconds)
    letting.cancel()
    return len(room.entered)


def test_one_request_goes_first_and_then_as_many_as_the_pace_says() -> None:
    async def scenario(room: Room) -> None:
        assert room.pacer.share == 1
        assert await under_way(room) == 4
        assert room.entered[0] == 0.0

    simulated(scenario)


def test_no_more_than_this_worker_can_make() -> None:
    async def scenario(room: Room) -> None:
        assert await under_way(room) == 3
        assert room.paces.pace.concurrency == 3, "places that nobody can use are not kept"

    simulated(scenario, most=3)


@pytest.mark.parametrize(("rank", "share"), [(0, 2), (1, 1), (2, 1)])
def test_workers_share_it_and_the_first_ones_take_the_rest(rank: int, share: int) -> None:
    async def scenario(room: Room) -> None:
        room.paces.workers, room.paces.rank = 3, rank
        assert await under_way(room) == max(share, 1)

    simulated(scenario)


def test_with_fewer_places_than_workers_some_wait_and_look_again() -> None:
    async def scenario(room: Room) -> None:
        room.paces.pace, room.paces.workers, room.paces.rank = replace(STEADY, concurrency=1), 2, 1
        await room.let_in(1)
        await room.looked()
        room.answer()
        letting = asyncio.create_task(room.let_in(1))
        await asyncio.sleep(10)
        assert not letting.done()
        room.paces.rank = 0
        await letting

    simulated(scenario)


def test_who_rests_between_two_requests_and_has_no_part_any_more_leaves_it_to_others() -> None:
    async def scenario(room: Room) -> None:
        await room.let_in(1)
        room.paces.workers, room.paces.rank = 9, 8
        resting = asyncio.create_task(room.pacer.rest(1.0))
        await asyncio.sleep(IDLE_SECONDS + 2.0)
        with pytest.raises(StoppedError):
            await resting

    simulated(scenario)


def test_whoever_leaves_makes_room() -> None:
    async def scenario(room: Room) -> None:
        await under_way(room)
        room.answer()
        await room.let_in(1)
        assert len(room.entered) == 5

    simulated(scenario)


def test_the_pace_grows_while_its_places_are_used() -> None:
    async def scenario(room: Room) -> None:
        room.paces.pace = Pace(concurrency=1)
        for _ in range(40):
            await room.let_in(max(room.pacer.share - room.pacer._entered, 0))
            await asyncio.sleep(LOOK_SECONDS)
            for _ in range(room.pacer._entered):
                room.answer()
        assert room.paces.pace.concurrency == 48

    simulated(scenario)


def test_it_does_not_grow_before_anything_was_answered() -> None:
    async def scenario(room: Room) -> None:
        room.paces.pace = Pace(concurrency=4)
        assert await under_way(room, seconds=60) == 4
        room.answer()
        await room.looked()
        assert room.paces.pace.concurrency == 8

    simulated(scenario)


@pytest.mark.parametrize("trouble", [Throttled("http_429", 5.0), Transient("http_503")])
def test_after_trouble_it_is_one_again(trouble: Outcome) -> None:
    async def scenario(room: Room) -> None:
        await under_way(room)
        room.answer(trouble)
        await room.looked()
        assert (room.paces.pace.concurrency, room.paces.pace.threshold, room.pacer.share) == (1, 2, 1)

    simulated(scenario)


def test_a_failure_among_answers_that_are_well_is_that_records_own() -> None:
    async def scenario(room: Room) -> None:
        await room.let_in(1)
        await room.looked()
        room.answer(Accepted(), Transient("http_503"), count=2)
        await room.looked()
        assert room.paces.pace.concurrency >= 4

    simulated(scenario)


def test_rising_latency_takes_a_fifth() -> None:
    async def scenario(room: Room) -> None:
        room.paces.pace = replace(STEADY, concurrency=10)
        for seconds in [0.1] * 50 + [3.0] * 10:
            await room.let_in(1)
            room.answer(seconds=seconds)
        await room.looked()
        assert room.paces.pace.concurrency == 8

    simulated(scenario)


def test_a_bulk_that_takes_longer_than_a_single_record_is_not_slow() -> None:
    async def scenario(room: Room) -> None:
        for _ in range(50):
            await room.let_in(1)
            room.answer()
        for _ in range(10):
            await room.let_in(1)
            room.answer(*WELL * 1000, count=1000, seconds=3.0)
        await room.looked()
        assert room.paces.pace.reduced_at is None

    simulated(scenario)


def test_it_keeps_to_the_parallelism_that_dynamics_recommends() -> None:
    async def scenario(room: Room) -> None:
        room.pacer.hear(Hints(parallelism=2))
        room.pacer.hear(Hints())
        assert await under_way(room) == 2

    simulated(scenario)


def test_the_less_is_left_of_a_limit_the_longer_it_waits_between_requests() -> None:
    async def scenario(room: Room) -> None:
        room.pacer.hear(Hints(requests_left=6000))
        room.pacer.hear(Hints(requests_left=30))  # two a second
        for _ in range(4):
            await room.let_in(1)
            await asyncio.sleep(0)
            room.answer(seconds=0.0)
        gaps = [later - earlier for earlier, later in zip(room.entered, room.entered[1:], strict=False)]
        assert gaps == pytest.approx([0.5] * 3)

    simulated(scenario)


def test_of_a_spent_limit_one_request_at_a_time_finds_out_whether_more_may_follow() -> None:
    async def scenario(room: Room) -> None:
        room.pacer.hear(Hints(requests_left=6000))
        await room.let_in(1)
        room.pacer.hear(Hints(requests_left=0))
        room.answer()
        await room.looked()
        assert room.paces.pace.concurrency == 1
        await room.let_in(1)
        assert room.entered[1] - room.entered[0] == pytest.approx(MOST_GAP_SECONDS)

    simulated(scenario)


def test_after_a_429_what_is_left_is_not_known() -> None:
    """Retry-After says when to go on, and the circuit keeps to it."""

    async def scenario(room: Room) -> None:
        room.pacer.hear(Hints(requests_left=6000, seconds_left=1200))
        await room.let_in(1)
        room.pacer.hear(Hints(requests_left=0, seconds_left=0))
        room.answer(Throttled("http_429", 30.0))
        await room.let_in(1)
        assert room.entered[1] == room.entered[0]

    simulated(scenario)


def test_while_the_database_is_away_it_keeps_to_its_last_share() -> None:
    async def scenario(room: Room) -> None:
        await room.let_in(1)
        await room.looked()
        room.paces.is_away = True
        room.answer(Throttled("http_429", 5.0))
        await room.looked()
        assert room.pacer.share == 4
        room.paces.is_away = False
        await room.let_in(1)
        room.answer()
        await room.looked()
        assert room.pacer.share == 4

    simulated(scenario)


def test_where_another_worker_was_faster_it_keeps_to_what_that_one_found() -> None:
    async def scenario(room: Room) -> None:
        room.paces.is_contended = True
        await room.let_in(1)
        room.answer(Throttled("http_429", 5.0))
        await room.looked()
        assert room.pacer.share == 4

    simulated(scenario)


def test_after_a_time_without_senders_it_begins_anew() -> None:
    async def scenario(room: Room) -> None:
        room.paces.is_first = True
        await room.let_in(1)
        await room.looked()
        assert room.paces.pace == replace(Pace(), changed_at=room.paces.pace.changed_at, revision=1)

    simulated(scenario)


def test_who_does_not_send_does_not_look() -> None:
    async def scenario(room: Room) -> None:
        await asyncio.sleep(60)
        assert room.paces.looks == []
        await room.let_in(1)
        room.answer()
        await asyncio.sleep(60)
        assert 1 <= len(room.paces.looks) <= 2

    simulated(scenario)


@pytest.mark.parametrize("end", ["close", "stop"])
def test_at_the_end_nobody_waits_any_more(end: str) -> None:
    """Neither for a place nor for the time of the next request."""

    async def scenario(room: Room) -> None:
        room.pacer.hear(Hints(requests_left=6000))
        room.pacer.hear(Hints(requests_left=0))
        await room.let_in(1)
        waiting = asyncio.create_task(room.pacer.enter())
        await asyncio.sleep(1)
        assert not waiting.done()
        if end == "stop":
            room.answer()
            room.clock.stop()
        room.pacer.close()
        await waiting
        assert room.clock.monotonic() <= 2.0

    simulated(scenario)


def test_each_request_of_the_gateway_is_watched() -> None:
    async def scenario(room: Room) -> None:
        inner = ScriptedBulkGateway([Throttled("http_429", 1.0), LookupError(), Accepted()])
        inner.instead = {"there": AlreadyThere()}
        gateway = PacedGateway(inner, room.pacer, room.clock)
        assert gateway.most_together(TABLE) == inner.most
        operations = [SyncOperation(TABLE, key) for key in "ab"]

        prepared = await gateway.prepare(operations, one_by_one=True)
        assert prepared.request is not None
        assert len(await prepared.request.send()) == 2
        assert inner.sent[0].one_by_one
        await room.looked()
        assert room.paces.pace.concurrency == 1

        with pytest.raises(LookupError):
            await prepared.request.send()
        assert len(await prepared.request.alone().send()) == 1
        assert room.pacer._under_way == 0

        nothing = await gateway.prepare([SyncOperation(TABLE, "there")])
        assert (nothing.request, nothing.instead) == (None, {0: AlreadyThere()})
        await gateway.renew_token()
        assert inner.renewals == 1

    simulated(scenario)
