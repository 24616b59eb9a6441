"""The pace of a replay: how many entries are on their way, when it waits, and when it gives up waiting."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest

from dynamics_sync import DynamicsCircuitBreaker
from dynamics_sync.core.circuit import CircuitSettings, Permit
from dynamics_sync.core.operation import QueueStatus
from dynamics_sync.sync.replay import Replay, ReplayEnd, ReplayProgress, ReplayReport, ReplaySettings
from support.clock import FakeClock

COOL_DOWN = 60.0
SETTINGS = ReplaySettings(window=5, per_second=10, look_seconds=0.5, patience_seconds=20, blocked_patience_seconds=200)
PENDING, REPLAYING = QueueStatus.PENDING_MANUAL_REPLAY, QueueStatus.REPLAYING


@dataclass
class Stage:
    """A queue, a circuit, and workers that act, as each test says, whenever the replay has looked."""

    count: int
    workers: "Callable[[Stage], Awaitable[None]]"
    clock: FakeClock = field(default_factory=FakeClock)
    is_sending: bool = False

    def __post_init__(self) -> None:
        self.entries = {uuid4(): PENDING for _ in range(self.count)}
        self.breaker = DynamicsCircuitBreaker(CircuitSettings(cool_down_seconds=COOL_DOWN), clock=self.clock)
        self.put_back_at: list[float] = []
        self.seen: list[ReplayProgress] = []
        self.most_at_once = 0

    async def replay(self, ids: Sequence[UUID], actor: str) -> list[UUID]:
        done = [entry for entry in ids if self.entries[entry] is PENDING]
        self.entries |= dict.fromkeys(done, REPLAYING)
        self.put_back_at += [self.clock.monotonic()] * len(done)
        self.most_at_once = max(self.most_at_once, len(self.on_the_way))
        return done

    async def standing(self, ids: Collection[UUID]) -> dict[UUID, QueueStatus]:
        await self.workers(self)
        return {entry: self.entries[entry] for entry in ids}

    async def replaying(self) -> int:
        return len(self.on_the_way)

    @property
    def on_the_way(self) -> list[UUID]:
        return [entry for entry, status in self.entries.items() if status is REPLAYING]

    async def run(self, settings: ReplaySettings = SETTINGS) -> ReplayReport:
        async def is_sending() -> bool:
            return self.is_sending

        replay = Replay(queue=self, breaker=self.breaker, is_sending=is_sending, clock=self.clock, settings=settings)
        return await replay.run(list(self.entries), "tester", self.seen.append)

    async def fail(self, times: int = 3) -> None:
        """So many requests that Dynamics does not answer, if any may leave."""
        for _ in range(times):
            if isinstance(permit := await self.breaker.admit(), Permit):
                await self.breaker.record_failure(permit, "http_503")

    def put_back_between(self, start: float, end: float) -> int:
        return sum(start <= at < end for at in self.put_back_at)


async def all_arrive(on: Stage) -> None:
    on.entries |= dict.fromkeys(on.on_the_way, QueueStatus.REPLAYED)


async def one_arrives(on: Stage) -> None:
    for entry in on.on_the_way[:1]:
        on.entries[entry] = QueueStatus.REPLAYED


async def nobody_works(on: Stage) -> None:
    pass


async def test_all_go_back_and_arrive() -> None:
    on = Stage(100, all_arrive)
    report = await on.run()
    assert report.end is ReplayEnd.ALL_TOLD
    assert set(on.entries.values()) == {QueueStatus.REPLAYED}
    assert (report.progress.put_back, report.progress.arrived, report.progress.left) == (100, 100, 0)


async def test_what_is_slow_is_never_given_more_than_the_window() -> None:
    on = Stage(50, one_arrives)
    assert (await on.run()).end is ReplayEnd.ALL_TOLD
    assert on.most_at_once == SETTINGS.window


async def test_what_is_fast_is_never_given_more_than_its_share_of_each_second() -> None:
    on = Stage(200, all_arrive)
    await on.run(ReplaySettings(window=1000, per_second=10, look_seconds=0.3))
    ends = on.clock.monotonic()
    assert ends >= (200 - 2 * 10) / 10
    assert max(on.put_back_between(at, at + 1) for at in on.put_back_at) <= 2 * 10


async def test_it_begins_with_one() -> None:
    on = Stage(10, all_arrive)
    await on.run()
    assert on.put_back_between(0, 0.5) == 1


async def test_a_share_of_less_than_one_a_second_is_kept_too() -> None:
    on = Stage(3, all_arrive)
    assert (await on.run(ReplaySettings(per_second=0.1))).end is ReplayEnd.ALL_TOLD
    assert on.clock.monotonic() >= 19.9


async def test_other_replays_fill_the_window_too() -> None:
    on = Stage(10, nobody_works)
    on.entries |= {uuid4(): REPLAYING for _ in range(3)}
    await on.run()
    assert on.most_at_once == SETTINGS.window


async def test_those_that_fail_again_are_told_apart() -> None:
    async def fail_every_other(on: Stage) -> None:
        for number, entry in enumerate(on.entries):
            if on.entries[entry] is REPLAYING:
                on.entries[entry] = QueueStatus.REQUIRES_INVESTIGATION if number % 2 else QueueStatus.SUPERSEDED

    on = Stage(20, fail_every_other)
    report = await on.run()
    assert report.end is ReplayEnd.ALL_TOLD
    assert report.progress.arrived == 10
    assert set(report.progress.failed_again) == set(list(on.entries)[1::2])


async def test_what_others_closed_meanwhile_is_left_alone() -> None:
    on = Stage(10, all_arrive)
    closed = list(on.entries)[3:6]
    on.entries |= dict.fromkeys(closed, QueueStatus.DISCARDED)
    report = await on.run()
    assert report.end is ReplayEnd.ALL_TOLD
    assert (report.progress.put_back, report.progress.no_longer_open) == (7, 3)


async def test_while_the_circuit_is_open_nothing_is_put_back_and_then_it_goes_on() -> None:
    async def open_once(on: Stage) -> None:
        if on.clock.monotonic() == 1.0:
            await on.fail()
        if isinstance(permit := await on.breaker.admit(), Permit) and on.on_the_way:
            await on.breaker.record_success(permit)
            await all_arrive(on)

    on = Stage(100, open_once)
    assert (await on.run()).end is ReplayEnd.ALL_TOLD
    assert on.put_back_between(1.0, 1.0 + COOL_DOWN) == 0
    assert on.put_back_between(1.0 + COOL_DOWN, 1000) > 50


async def test_a_half_open_circuit_with_nothing_to_send_gets_one_for_its_probe() -> None:
    async def workers(on: Stage) -> None:
        if on.on_the_way and isinstance(permit := await on.breaker.admit(), Permit):
            await on.breaker.record_success(permit)
            await all_arrive(on)

    on = Stage(20, workers)
    await on.fail()
    assert (await on.run()).end is ReplayEnd.ALL_TOLD
    first, *rest = on.put_back_at
    assert first >= COOL_DOWN
    assert min(rest) > first


async def test_a_pause_that_dynamics_asks_for_is_kept() -> None:
    async def workers(on: Stage) -> None:
        if on.clock.monotonic() == 1.0:
            await on.breaker.pause(30)
        if isinstance(await on.breaker.admit(), Permit):
            await all_arrive(on)

    on = Stage(100, workers)
    assert (await on.run()).end is ReplayEnd.ALL_TOLD
    assert on.put_back_between(1.0, 31.0) == 0


async def test_without_a_worker_it_ends_and_the_rest_stays_open() -> None:
    on = Stage(100, nobody_works)
    report = await on.run()
    assert report.end is ReplayEnd.NOBODY_SENDS
    assert (report.progress.on_the_way, report.progress.left) == (SETTINGS.window, 95)
    assert list(on.entries.values()).count(PENDING) == 95


async def test_a_worker_that_is_slow_is_waited_for() -> None:
    async def slow(on: Stage) -> None:
        if on.clock.monotonic() >= 10 * SETTINGS.patience_seconds:
            await all_arrive(on)

    on = Stage(5, slow, is_sending=True)
    assert (await on.run()).end is ReplayEnd.ALL_TOLD


@pytest.mark.parametrize("probing", [False, True])
async def test_an_outage_that_does_not_end_ends_it_however_many_probes_fail(probing: bool) -> None:
    async def workers(on: Stage) -> None:
        if probing:
            await on.fail(1)
            on.entries |= dict.fromkeys(on.on_the_way, PENDING)

    on = Stage(100, workers, is_sending=True)
    await on.fail()
    report = await on.run()
    assert report.end is ReplayEnd.BLOCKED
    assert SETTINGS.blocked_patience_seconds <= on.clock.monotonic() <= SETTINGS.blocked_patience_seconds + COOL_DOWN
    assert report.progress.left >= 95


async def test_an_outage_that_ends_is_not_held_against_the_workers() -> None:
    async def workers(on: Stage) -> None:
        if on.clock.monotonic() == 1.0:
            await on.fail()
        if on.clock.monotonic() == 100.0 and isinstance(permit := await on.breaker.admit(), Permit):
            await on.breaker.record_success(permit)
        if on.clock.monotonic() >= 110.0:
            await all_arrive(on)

    on = Stage(50, workers)
    assert (await on.run()).end is ReplayEnd.ALL_TOLD


async def test_each_look_is_told() -> None:
    on = Stage(20, all_arrive)
    report = await on.run()
    assert on.seen[-1] == report.progress
    assert [progress.arrived for progress in on.seen] == sorted(progress.arrived for progress in on.seen)
