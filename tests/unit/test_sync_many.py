"""Many records at once: what is counted for each, what for all, and that each is told of once."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dynamics_sync import (
    Applied,
    CircuitSettings,
    CircuitState,
    Deferred,
    DynamicsCircuitBreaker,
    HLFDynamicsSyncService,
    InMemoryRetryQueue,
    Queued,
    RetryPolicy,
    SyncOperation,
)
from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.core.operation import SyncResult
from dynamics_sync.core.outcome import (
    Accepted,
    AlreadyThere,
    Conflict,
    Mismatch,
    NothingToSend,
    NotOurs,
    NotReady,
    Outcome,
    Rejected,
    Throttled,
    TooMuch,
    Transient,
    Unauthorized,
    Undecided,
    Unsendable,
    shared_by_batch,
    shared_by_bulk,
)
from dynamics_sync.sync.clock import StoppedError
from dynamics_sync.sync.service import Results
from support.clock import FakeClock
from support.gateway import ScriptedBulkGateway, Sent

DOWN = Transient("http_503")
ABC = ["a", "b", "c"]
Answer = Outcome | Sequence[Outcome] | BaseException


class StoppingClock(FakeClock):
    """The worker stops while somebody waits."""

    async def sleep(self, seconds: float) -> None:
        raise StoppedError


class Bench:
    """A service with a scripted Dynamics, and what it told."""

    def __init__(self, *answers: Answer, threshold: int = 3, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.gateway = ScriptedBulkGateway([*answers])
        self.queue = InMemoryRetryQueue()
        self.breaker = DynamicsCircuitBreaker(CircuitSettings(failure_threshold=threshold), clock=self.clock)
        self.service = HLFDynamicsSyncService(
            breaker=self.breaker, policy=RetryPolicy(), gateway=self.gateway, queue=self.queue, clock=self.clock
        )
        self.told: list[list[str]] = []
        self.told_after: dict[str, int] = {}
        """After how many requests each was told of."""
        self.results: dict[str, SyncResult] = {}

    async def bring(self, *keys: str, claimed: bool = True, attempts: int = 0) -> None:
        claim_id = "claim" if claimed else None
        await self.bring_all([SyncOperation("public.t", key, claim_id=claim_id, attempts=attempts) for key in keys])

    async def bring_all(self, operations: Sequence[SyncOperation]) -> None:
        await self.service.sync_many(operations, self.tell)

    async def tell(self, results: Results) -> None:
        keys = [operation.record_key for operation, _ in results]
        assert self.results.keys().isdisjoint(keys)
        self.told.append(keys)
        self.told_after |= dict.fromkeys(keys, len(self.requests))
        self.results |= zip(keys, (result for _, result in results), strict=True)

    @property
    def requests(self) -> list[Sequence[str]]:
        return [sent.keys for sent in self.gateway.sent]

    @property
    def queued(self) -> dict[str, str]:
        """Error codes by key."""
        return {failure.operation.record_key: failure.error_code for failure in self.queue.entries.values()}

    async def failures(self) -> int:
        return (await self.breaker.status()).failure_count


async def test_many_arrive_in_one_request_with_the_digest_of_each() -> None:
    bench = Bench([Accepted(payload_hash=key.encode()) for key in ABC])
    await bench.bring(*ABC)
    assert bench.results == {key: Applied(1, payload_hash=key.encode()) for key in ABC}
    assert bench.told == [ABC]


async def test_what_does_not_fit_into_a_request_goes_into_the_next_one() -> None:
    bench = Bench()
    bench.gateway.most = 2
    await bench.bring(*"abcde")
    assert bench.requests == bench.told == [["a", "b"], ["c", "d"], ["e"]]


async def test_a_failure_counts_once_for_the_circuit_and_once_for_each_record() -> None:
    bench = Bench(DOWN, [Accepted(), DOWN, DOWN])
    await bench.bring(*ABC)
    assert bench.results == {"a": Applied(2), "b": Applied(3), "c": Applied(3)}
    assert bench.clock.sleeps == [2, 4]
    failed = Bench(DOWN, StopAsyncIteration())
    with pytest.raises(StopAsyncIteration):
        await failed.bring(*ABC)
    assert await failed.failures() == 1


async def test_three_failed_requests_open_the_circuit_and_queue_each_record() -> None:
    bench = Bench(DOWN, DOWN, DOWN)
    await bench.bring(*ABC)
    assert bench.requests == [ABC] * 3
    assert (await bench.breaker.status()).state is CircuitState.OPEN
    assert bench.queued == dict.fromkeys(ABC, "http_503")
    assert {result.attempt_count for result in bench.results.values() if isinstance(result, Queued)} == {3}


async def test_one_that_got_through_says_that_dynamics_is_well() -> None:
    bench = Bench([DOWN, Accepted()], [DOWN], [DOWN], threshold=2)
    await bench.bring("a", "b")
    assert isinstance(bench.results["a"], Queued)
    assert len(bench.requests) == 3, "the first did not count"


async def test_what_is_refused_as_a_whole_goes_one_by_one() -> None:
    bench = Bench(Undecided(), [Accepted(), Rejected("0x1"), Rejected("0x2")])
    await bench.bring(*ABC)
    assert bench.gateway.sent == [Sent(ABC), Sent(ABC, one_by_one=True)]
    assert bench.queued == {"b": "0x1", "c": "0x2"}
    assert bench.results["a"] == Applied(1), "the refusal was no try"
    assert await bench.failures() == 0


async def test_those_that_go_one_by_one_do_not_draw_others_along() -> None:
    bench = Bench(Undecided())
    bench.gateway.most = 2
    await bench.bring(*ABC)
    assert bench.gateway.sent == [Sent(["a", "b"]), Sent(["a", "b"], one_by_one=True), Sent(["c"])]


async def test_if_what_answered_is_not_dynamics_one_record_tells_a_person() -> None:
    bench = Bench(shared_by_bulk(Mismatch(), 3), threshold=2)
    await bench.bring(*ABC)
    assert bench.queued == {"a": "contract_mismatch"}
    assert bench.gateway.sent == [Sent(ABC), Sent(["b", "c"], one_by_one=True)]
    assert bench.results["b"] == bench.results["c"] == Applied(1)


async def test_a_log_in_page_counts_once_each_time_and_opens_the_circuit() -> None:
    bench = Bench(shared_by_bulk(Mismatch(), 4), shared_by_batch(Mismatch(), 3), threshold=2)
    await bench.bring(*"abcd")
    assert (await bench.breaker.status()).state is CircuitState.OPEN
    assert bench.requests == [[*"abcd"], [*"bcd"]]
    assert bench.queued == {"a": "contract_mismatch", "b": "contract_mismatch"}
    assert {type(bench.results[key]) for key in "cd"} == {Deferred}


async def test_too_much_is_neither_a_failure_nor_a_try() -> None:
    bench = Bench(TooMuch(), threshold=1)
    await bench.bring(*ABC)
    assert bench.gateway.sent == [Sent(ABC), Sent(ABC)]
    assert bench.results == dict.fromkeys(ABC, Applied(1))


async def test_throttled_they_all_go_back_and_everybody_is_paused_once() -> None:
    bench = Bench(Throttled("http_429", 30))
    with capture_logs() as logs:
        await bench.bring(*ABC)
        await bench.bring("d")
    assert {type(result) for result in bench.results.values()} == {Deferred}
    assert bench.requests == [ABC]
    assert [log["event"] for log in logs].count("sync.throttled") == 1
    assert await bench.failures() == 0


async def test_of_several_pauses_the_longest_counts() -> None:
    bench = Bench([Accepted(), Throttled("http_429", 10), Throttled("0x8", 40)])
    await bench.bring(*ABC)
    assert bench.results["a"] == Applied(1)
    bench.clock.advance(39)
    await bench.bring("d")
    assert isinstance(bench.results["d"], Deferred)
    bench.clock.advance(1)
    await bench.bring("e")
    assert bench.results["e"] == Applied(1)


async def test_without_an_outbox_they_wait_together() -> None:
    bench = Bench(Throttled("http_429", 30))
    await bench.bring(*ABC, claimed=False)
    assert bench.results == dict.fromkeys(ABC, Applied(1))
    assert bench.clock.sleeps == [30]


async def test_what_belongs_to_another_worker_is_let_go() -> None:
    bench = Bench(NotOurs(), threshold=1)
    bench.gateway.instead = {"a": NotOurs()}
    await bench.bring(*ABC)
    assert {type(result) for result in bench.results.values()} == {Deferred}
    assert (bench.queued, await bench.failures()) == ({}, 0)


async def test_what_needs_no_request_or_can_have_none_does_not_hold_up_the_others() -> None:
    bench = Bench()
    bench.gateway.instead = {
        "there": AlreadyThere(),
        "ignored": NothingToSend(),
        "odd": Unsendable("mapping.wrong_type", "status"),
        "late": NotReady("prepare_timeout", 5),
    }
    await bench.bring("a", *bench.gateway.instead, "b")
    assert bench.requests == [["a", "b"]]
    assert bench.results["there"] == Applied(0, is_sent=False)
    assert bench.results["ignored"] == Applied(0)
    assert bench.queued == {"odd": "mapping.wrong_type"}
    assert isinstance(bench.results["late"], Deferred)
    assert bench.results["a"] == bench.results["b"] == Applied(1)


async def test_each_is_judged_by_its_own_answer() -> None:
    bench = Bench([Accepted(), Rejected("0x1"), Conflict("http_412"), Unauthorized("http_401"), Transient("timeout")])
    await bench.bring(*"abcde")
    assert bench.requests == [[*"abcde"], [*"cde"]]
    assert bench.queued == {"b": "0x1"}
    assert bench.results["c"] == bench.results["d"] == Applied(1)
    assert bench.results["e"] == Applied(2, unanswered=True)
    assert bench.gateway.renewals == 1


async def test_a_failed_batch_may_have_been_written_in_part() -> None:
    bench = Bench(shared_by_batch(DOWN, 2))
    await bench.bring("a", "b")
    assert bench.results == dict.fromkeys("ab", Applied(2, unanswered=True))


async def test_the_probe_is_a_single_record_and_the_others_wait() -> None:
    bench = Bench(DOWN, threshold=1)
    await bench.bring("first")
    bench.clock.advance(60)
    await bench.bring(*ABC)
    assert bench.requests == [["first"], ["a"]]
    assert bench.results["a"] == Applied(1)
    assert {type(bench.results[key]) for key in "bc"} == {Deferred}
    assert (await bench.breaker.status()).state is CircuitState.CLOSED


async def test_an_open_circuit_keeps_all_of_them_back() -> None:
    bench = Bench(DOWN, threshold=1)
    await bench.bring("first")
    await bench.bring(*ABC)
    await bench.bring("spent", attempts=3)
    assert bench.requests == [["first"]]
    assert {type(bench.results[key]) for key in ABC} == {Deferred}
    assert bench.queued["spent"] == "circuit_open"


async def test_those_that_have_spent_their_requests_are_queued_and_the_others_sent() -> None:
    bench = Bench()
    await bench.bring_all(
        [SyncOperation("public.t", "spent", attempts=4, claim_id="1"), SyncOperation("public.t", "a", claim_id="1")]
    )
    assert bench.queued == {"spent": "internal_error"}
    assert bench.requests == [["a"]]


@pytest.mark.parametrize("error", [DatabaseError("gone"), StoppedError()])
async def test_where_it_ends_half_way_the_rest_goes_back(error: Exception) -> None:
    bench = Bench()
    bench.gateway.most, bench.gateway.unready = 1, [None, error]
    await bench.bring(*ABC)
    assert bench.results["a"] == Applied(1)
    assert {type(bench.results[key]) for key in "bc"} == {Deferred}


async def test_a_stop_while_they_rest_keeps_what_was_counted() -> None:
    bench = Bench([Accepted(), DOWN, DOWN], clock=StoppingClock())
    await bench.bring(*ABC)
    deferred = [bench.results[key] for key in "bc"]
    assert [(type(result), result.attempts) for result in deferred if isinstance(result, Deferred)] == [
        (Deferred, 1),
        (Deferred, 1),
    ]


async def test_without_an_outbox_a_lost_database_is_raised_and_the_rest_is_not_told_of() -> None:
    bench = Bench()
    bench.gateway.most, bench.gateway.unready = 1, [None, DatabaseError("gone")]
    with pytest.raises(DatabaseError):
        await bench.bring(*ABC, claimed=False)
    assert bench.results == {"a": Applied(1)}


async def test_an_error_while_sending_frees_the_probe() -> None:
    bench = Bench(DOWN, LookupError(), threshold=1)
    await bench.bring("first")
    bench.clock.advance(60)
    with pytest.raises(LookupError):
        await bench.bring(*ABC)
    await bench.bring("again")
    assert bench.results["again"] == Applied(1)


OUTCOMES: list[Outcome] = [
    *(Accepted(), Rejected("0x1"), Conflict("http_412"), Unauthorized("http_401"), Mismatch(), DOWN),
    *(Transient("timeout"), Transient("http_503", 7.0), Throttled("http_429", 3.0), TooMuch(), Undecided(), NotOurs()),
]
RECORDS = [*"abcdef"]
outcomes = st.sampled_from(OUTCOMES)


@settings(max_examples=500, deadline=None)
@given(
    script=st.lists(outcomes | st.lists(outcomes, min_size=len(RECORDS), max_size=len(RECORDS)), max_size=9),
    most=st.integers(1, len(RECORDS)),
    claimed=st.booleans(),
    attempts=st.integers(0, 4),
    threshold=st.integers(1, 4),
)
def test_whatever_happens_each_is_told_of_once_and_not_sent_afterwards(
    script: list[Answer], most: int, claimed: bool, attempts: int, threshold: int
) -> None:
    async def history() -> None:
        bench = Bench(*script, threshold=threshold)
        bench.gateway.most = most
        await bench.bring(*RECORDS, claimed=claimed, attempts=attempts)
        assert sorted(bench.results) == RECORDS
        assert bench.queued.keys() == {key for key, result in bench.results.items() if isinstance(result, Queued)}
        for key, told_after in bench.told_after.items():
            sent = [number for number, keys in enumerate(bench.requests, 1) if key in keys]
            assert all(number <= told_after for number in sent)
            assert sent or not isinstance(bench.results[key], Applied)

    with capture_logs():
        asyncio.run(history())
