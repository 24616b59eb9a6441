"""The seed's tests, by name, and what the requirements add."""

import asyncio

import pytest
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
    QueueInsertError,
    RetryPolicy,
    SyncOperation,
)
from dynamics_sync.core.outcome import (
    Accepted,
    Conflict,
    Mismatch,
    NothingToSend,
    NotReady,
    Outcome,
    Rejected,
    Throttled,
    Transient,
    Unauthorized,
    Unsendable,
)
from dynamics_sync.core.redaction import LOG_FIELDS
from dynamics_sync.sync.ports import Failure
from support.clock import FakeClock
from support.gateway import ScriptedGateway

DOWN = Transient("http_503")
OPERATION = SyncOperation("public.certifications", "7a0e")
CLAIMED = SyncOperation("public.certifications", "7a0e", version=1, claim_id="claim")


class Bench:
    """A service with a scripted Dynamics."""

    def __init__(
        self, *outcomes: Outcome | BaseException, threshold: int = 3, policy: RetryPolicy | None = None
    ) -> None:
        self.clock = FakeClock()
        self.gateway = ScriptedGateway(*outcomes)
        self.queue = InMemoryRetryQueue()
        self.breaker = DynamicsCircuitBreaker(CircuitSettings(failure_threshold=threshold), clock=self.clock)
        self.service = HLFDynamicsSyncService(
            breaker=self.breaker,
            policy=policy or RetryPolicy(),
            gateway=self.gateway,
            queue=self.queue,
            clock=self.clock,
        )

    async def open(self) -> None:
        permit = await self.breaker.admit()
        while await self.breaker.record_failure(permit, "http_503") is not CircuitState.OPEN:  # type: ignore[arg-type]
            pass


async def test_all_3_retry_attempts_exhausted_makes_a_queue_entry() -> None:
    bench = Bench(DOWN, DOWN, DOWN, DOWN, threshold=10)
    result = await bench.service.sync(OPERATION)
    assert isinstance(result, Queued)
    assert (result.status, result.attempt_count, result.reason) == ("pending_manual_replay", 4, "retries_exhausted")
    assert bench.clock.sleeps == [2, 4, 8]
    assert len(bench.queue.entries) == 1


async def test_failure_on_attempt_1_and_success_on_attempt_2_makes_no_queue_entry() -> None:
    bench = Bench(DOWN)
    assert await bench.service.sync(OPERATION) == Applied(2)
    assert bench.queue.entries == {}
    assert bench.clock.sleeps == [2]


@pytest.mark.parametrize("refusal", [Rejected("http_400"), Rejected("http_404")])
async def test_4xx_is_queued_at_once_as_requires_investigation(refusal: Rejected) -> None:
    bench = Bench(refusal)
    result = await bench.service.sync(OPERATION)
    assert isinstance(result, Queued)
    assert (result.status, result.attempt_count) == ("requires_investigation", 1)
    assert len(bench.gateway.sent) == 1
    assert (await bench.breaker.status()).failure_count == 0


async def test_circuit_closed_open_half_open_closed() -> None:
    bench = Bench(DOWN, DOWN, DOWN)
    await bench.service.sync(OPERATION)
    assert await bench.service.get_circuit_state() is CircuitState.OPEN
    bench.clock.advance(60)
    assert await bench.service.get_circuit_state() is CircuitState.HALF_OPEN
    assert await bench.service.sync(OPERATION) == Applied(1)
    assert await bench.service.get_circuit_state() is CircuitState.CLOSED


async def test_circuit_closed_open_half_open_open() -> None:
    bench = Bench(DOWN, DOWN, DOWN, DOWN)
    await bench.service.sync(OPERATION)
    bench.clock.advance(60)
    await bench.service.sync(OPERATION)
    assert await bench.service.get_circuit_state() is CircuitState.OPEN
    assert len(bench.gateway.sent) == 4


async def test_an_open_circuit_blocks_calls_without_hitting_http() -> None:
    bench = Bench()
    await bench.open()
    result = await bench.service.sync(OPERATION)
    assert isinstance(result, Queued)
    assert (result.attempt_count, result.reason, result.error_code) == (0, "circuit_open", "circuit_open")
    assert bench.gateway.sent == []


async def test_3_consecutive_503_open_the_circuit_and_queue_one_entry_with_attempt_count_3() -> None:
    bench = Bench(DOWN, DOWN, DOWN)
    with capture_logs() as logs:
        result = await bench.service.sync(CLAIMED)
    assert isinstance(result, Queued)
    assert (result.attempt_count, result.status) == (3, "pending_manual_replay")
    assert await bench.service.get_circuit_state() is CircuitState.OPEN
    assert len(bench.queue.entries) == 1
    failed = [log for log in logs if log["event"] == "sync.attempt_failed"]
    assert [(log["attempt_number"], log["delay_ms"]) for log in failed] == [(1, 2000), (2, 4000), (3, 0)]
    assert {log["certification_id"] for log in failed} == {"7a0e"}
    assert {log["operation_type"] for log in failed} == {"upsert"}
    assert {log["error_code"] for log in failed} == {"http_503"}
    assert all(set(log) - {"log_level"} <= LOG_FIELDS for log in logs)


@pytest.mark.parametrize("attempts", [0, 1, 2])
async def test_a_blocked_operation_with_fewer_than_3_requests_waits_in_the_outbox(attempts: int) -> None:
    bench = Bench()
    await bench.open()
    claimed = SyncOperation("public.certifications", "7a0e", attempts=attempts, claim_id="claim")
    result = await bench.service.sync(claimed)
    assert isinstance(result, Deferred)
    assert result.attempts == attempts


async def test_a_blocked_operation_with_3_requests_behind_it_is_queued() -> None:
    bench = Bench()
    await bench.open()
    claimed = SyncOperation("public.certifications", "7a0e", attempts=3, claim_id="claim")
    result = await bench.service.sync(claimed)
    assert isinstance(result, Queued)
    assert result.attempt_count == 3


async def test_429_counts_neither_as_failure_nor_as_retry() -> None:
    bench = Bench(Throttled("http_429", 30), Accepted('W/"1"'))
    assert await bench.service.sync(OPERATION) == Applied(1, 'W/"1"')
    assert bench.clock.sleeps == [30]


async def test_503_with_retry_after_counts_and_is_waited_out() -> None:
    bench = Bench(Transient("http_503", 30))
    assert await bench.service.sync(OPERATION) == Applied(2)
    assert bench.clock.sleeps == [2, 28]


@pytest.mark.parametrize(
    ("asks_for_silence", "attempts"), [(Throttled("http_429", 30), 0), (Transient("http_503", 30), 1)]
)
async def test_retry_after_sends_a_claimed_operation_back_and_pauses_everybody(
    asks_for_silence: Outcome, attempts: int
) -> None:
    bench = Bench(asks_for_silence)
    result = await bench.service.sync(CLAIMED)
    assert isinstance(result, Deferred)
    assert result.attempts == attempts
    assert isinstance(await bench.service.sync(CLAIMED), Deferred)
    assert len(bench.gateway.sent) == 1


async def test_without_an_outbox_a_pause_is_waited_out_but_not_for_ever() -> None:
    bench = Bench(*[Throttled("http_429", 500)] * 3)
    result = await bench.service.sync(OPERATION)
    assert isinstance(result, Queued)
    assert (result.reason, result.attempt_count) == ("throttled", 0)
    await bench.breaker.pause(900)
    waiting = Bench()
    await waiting.breaker.pause(10)
    assert await waiting.service.sync(OPERATION) == Applied(1)


async def test_401_renews_the_token_once() -> None:
    bench = Bench(Unauthorized("http_401"))
    assert await bench.service.sync(OPERATION) == Applied(1)
    assert bench.gateway.renewals == 1
    refused = Bench(Unauthorized("http_401"), Unauthorized("http_401"))
    result = await refused.service.sync(OPERATION)
    assert isinstance(result, Queued)
    assert (result.reason, result.status, refused.gateway.renewals) == ("unauthorized", "requires_investigation", 1)


async def test_412_is_decided_again_once() -> None:
    assert await Bench(Conflict("http_412")).service.sync(OPERATION) == Applied(1)
    result = await Bench(Conflict("http_412"), Conflict("http_412")).service.sync(OPERATION)
    assert isinstance(result, Queued)
    assert (result.reason, result.status) == ("conflict", "requires_investigation")


async def test_a_contract_mismatch_is_no_success() -> None:
    bench = Bench(Mismatch())
    result = await bench.service.sync(OPERATION)
    assert isinstance(result, Queued)
    assert (result.reason, result.status) == ("contract_mismatch", "requires_investigation")
    assert (await bench.breaker.status()).failure_count == 1


async def test_what_cannot_be_sent_is_queued_without_a_request() -> None:
    result = await Bench(Unsendable("mapping.unknown_choice")).service.sync(CLAIMED)
    assert isinstance(result, Queued)
    assert (result.reason, result.attempt_count, result.error_code) == ("unsendable", 0, "mapping.unknown_choice")


async def test_nothing_to_send_is_done() -> None:
    assert await Bench(NothingToSend()).service.sync(CLAIMED) == Applied(0)


async def test_without_a_token_the_change_waits() -> None:
    result = await Bench(NotReady("token", 30)).service.sync(CLAIMED)
    assert isinstance(result, Deferred)
    lonely = await Bench(*[NotReady("token", 800)] * 2).service.sync(OPERATION)
    assert isinstance(lonely, Queued)
    assert (lonely.reason, lonely.status) == ("no_token", "pending_manual_replay")


async def test_an_error_of_the_gateway_frees_the_probe() -> None:
    bench = Bench(LookupError(), threshold=1)
    await bench.open()
    bench.clock.advance(60)
    with pytest.raises(LookupError):
        await bench.service.sync(CLAIMED)
    assert await bench.service.sync(CLAIMED) == Applied(1)


class SlowQueue(InMemoryRetryQueue):
    async def add(self, failure: Failure) -> str:
        await asyncio.Event().wait()
        raise AssertionError


class BrokenQueue(InMemoryRetryQueue):
    async def add(self, failure: Failure) -> str:
        raise OSError


@pytest.mark.parametrize("queue", [SlowQueue(), BrokenQueue()])
async def test_a_queue_that_cannot_take_it_leaves_the_change_in_the_outbox_and_says_so(
    queue: InMemoryRetryQueue,
) -> None:
    bench = Bench(Rejected("http_400"), Rejected("http_400"))
    service = HLFDynamicsSyncService(
        breaker=bench.breaker, policy=RetryPolicy(), gateway=bench.gateway, queue=queue, clock=bench.clock
    )
    with capture_logs() as logs:
        assert isinstance(await service.sync(CLAIMED), Deferred)
        with pytest.raises(QueueInsertError, match="within 500 ms"):
            await service.sync(OPERATION)
    assert [log["event"] for log in logs].count("queue.insert_failed") == 2


async def test_a_record_has_one_entry_in_memory_too() -> None:
    bench = Bench(Rejected("a"), Rejected("b"))
    first, second = [await bench.service.sync(OPERATION) for _ in range(2)]
    assert isinstance(first, Queued)
    assert isinstance(second, Queued)
    assert first.entry_id == second.entry_id


async def test_an_operation_that_has_spent_its_requests_is_queued_without_another() -> None:
    bench = Bench()
    spent = SyncOperation("public.certifications", "7a0e", attempts=4, claim_id="claim")
    result = await bench.service.sync(spent)
    assert isinstance(result, Queued)
    assert (result.attempt_count, bench.gateway.sent) == (4, [])
