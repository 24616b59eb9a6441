"""HLFDynamicsSyncService: what happens to one operation until it has arrived, waits, or is in the queue.

The retry loop stands outside the breaker: it decides whether to try again, the breaker only whether anybody may (R11).
"""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import assert_never

from dynamics_sync.core.circuit import Blocked, CircuitState, Permit
from dynamics_sync.core.errors import DatabaseError, QueueInsertError
from dynamics_sync.core.operation import (
    Applied,
    Deferred,
    FailedAttempt,
    FailureReason,
    Queued,
    SyncOperation,
    SyncResult,
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
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.clock import StoppedError, SystemClock
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.ports import Clock, Failure, Gateway, RetryQueue

QUEUE_INSERT_TIMEOUT_SECONDS = 0.5
"""R13."""

MAX_PATIENCE_SECONDS = 900.0
"""How long in all an operation that no outbox holds waits in memory while Dynamics asks for silence."""

_REFUSALS = {
    Rejected: FailureReason.REJECTED,
    Unauthorized: FailureReason.UNAUTHORIZED,
    Conflict: FailureReason.CONFLICT,
    Mismatch: FailureReason.CONTRACT_MISMATCH,
    Unsendable: FailureReason.UNSENDABLE,
}


@dataclass(slots=True)
class _Run:
    """One operation on its way: how often it failed and what happened."""

    operation: SyncOperation
    attempts: int
    failures: list[FailedAttempt] = field(default_factory=list)
    error_code: str = "internal_error"
    place: str | None = None
    unanswered: bool = False
    circuit_opened: bool = False
    token_renewed: bool = False
    conflict_seen: bool = False
    waited_seconds: float = 0.0


class HLFDynamicsSyncService:
    """Sends operations to Dynamics: with retries, behind a breaker, into a queue where that does not help.

    Everything it uses is given to it (R17). It keeps no state of its own between calls, so one instance serves any
    number of tasks.
    """

    def __init__(
        self,
        *,
        breaker: DynamicsCircuitBreaker,
        policy: RetryPolicy,
        gateway: Gateway,
        queue: RetryQueue,
        clock: Clock | None = None,
    ) -> None:
        self._breaker = breaker
        self._policy = policy
        self._gateway = gateway
        self._queue = queue
        self._clock = clock or SystemClock()
        self._late_inserts: set[asyncio.Task[str]] = set()

    async def get_circuit_state(self) -> CircuitState:
        """CLOSED, OPEN or HALF_OPEN (R9)."""
        return await self._breaker.state()

    async def sync(self, operation: SyncOperation) -> SyncResult:
        """Bring one record up to date in Dynamics.

        Returns:
            Applied: Dynamics has it.
            Queued: given up; an entry in the retry queue says why.
            Deferred: not now; the outbox that the operation was claimed from keeps it.

        Raises:
            QueueInsertError: it failed, could not be queued within 500 ms, and no outbox holds it.
            Exception: whatever kept the gateway from making a request. A lost database raises DatabaseError only where
                no outbox holds the operation.
        """
        run = _Run(operation, operation.attempts)
        try:
            return await self._try(run)
        except (DatabaseError, StoppedError):
            if operation.claim_id is None:
                raise
            return self._defer(run, self._clock.now())

    async def _try(self, run: _Run) -> SyncResult:
        for attempt_number in range(run.attempts + 1, self._policy.max_requests + 1):
            match await self._attempt(run):
                case Accepted(etag):
                    return Applied(attempt_number, etag, run.unanswered)
                case NothingToSend():
                    return Applied(run.attempts, unanswered=run.unanswered)
                case Transient(error_code):
                    delay_ms = 0 if run.circuit_opened else self._policy.delay_ms(attempt_number)
                    self._note_failure(run, attempt_number, error_code, delay_ms)
                    if run.circuit_opened:
                        return await self._when_circuit_blocks(run, self._clock.now())
                    if delay_ms:
                        await self._clock.sleep(delay_ms / 1000)
                case Blocked(retry_at, None):
                    return await self._when_paused(run, retry_at, FailureReason.THROTTLED)
                case Blocked(retry_at, _):
                    return await self._when_circuit_blocks(run, retry_at)
                case Throttled(error_code, seconds):
                    run.error_code = error_code
                    return await self._when_paused(run, self._in(seconds), FailureReason.THROTTLED)
                case NotReady(error_code, seconds):
                    run.error_code = error_code
                    return await self._when_paused(run, self._in(seconds), FailureReason.NO_TOKEN)
                case Unsendable(error_code, place):
                    run.error_code, run.place = error_code, place
                    return await self._give_up(run, FailureReason.UNSENDABLE)
                case Rejected() | Unauthorized() | Conflict() | Mismatch() as refusal:
                    run.place = refusal.place if isinstance(refusal, Mismatch) else None
                    self._note_failure(run, attempt_number, refusal.error_code, 0)
                    return await self._give_up(run, _REFUSALS[type(refusal)])
                case other:
                    assert_never(other)
        return await self._give_up(run, FailureReason.RETRIES_EXHAUSTED)

    async def _attempt(self, run: _Run) -> Outcome | Blocked:
        """One try: a request, and what belongs to the same try. That is one new token after a 401, one fresh look
        at the record after a 412 (R8), and waiting out a pause where no outbox keeps the operation meanwhile."""
        while True:
            outcome = await self._request(run)
            match outcome:
                case Unauthorized() if not run.token_renewed:
                    run.token_renewed = True
                    await self._gateway.renew_token()
                case Conflict() if not run.conflict_seen:
                    run.conflict_seen = True
                case Blocked(retry_at, None) if self._can_wait(run, retry_at):
                    await self._wait(run, retry_at)
                case Throttled(_, seconds) | NotReady(_, seconds) if self._can_wait(run, self._in(seconds)):
                    await self._wait(run, self._in(seconds))
                case _:
                    return outcome

    async def _request(self, run: _Run) -> Outcome | Blocked:
        """Get ready, ask the breaker, send at once, and tell the breaker how it went."""
        request = await self._gateway.prepare(run.operation)
        if isinstance(request, NothingToSend | Unsendable | NotReady):
            return request
        verdict = await self._breaker.admit()
        if isinstance(verdict, Blocked):
            return verdict
        try:
            outcome = await request.send()
            run.unanswered |= isinstance(outcome, Transient) and not outcome.is_answered
            await self._report(run, verdict, outcome)
        except BaseException:
            await self._breaker.release(verdict)
            raise
        return outcome

    async def _report(self, run: _Run, permit: Permit, outcome: Outcome) -> None:
        match outcome:
            case Accepted() | Rejected() | Unauthorized() | Conflict():
                await self._breaker.record_success(permit)
            case Transient(error_code) | Mismatch(error_code):
                state = await self._breaker.record_failure(permit, error_code)
                run.circuit_opened = state is not CircuitState.CLOSED
                if isinstance(outcome, Transient) and outcome.retry_after_seconds:
                    await self._breaker.pause(outcome.retry_after_seconds)
            case Throttled(error_code, seconds):
                emit("sync.throttled", "warning", error_code=error_code, retry_after_seconds=seconds)
                await self._breaker.pause(seconds)
                await self._breaker.release(permit)
            case Unsendable() | NotReady() | NothingToSend():
                await self._breaker.release(permit)
            case other:
                assert_never(other)

    def _note_failure(self, run: _Run, attempt_number: int, error_code: str, delay_ms: int) -> None:
        run.attempts = attempt_number
        run.error_code = error_code
        run.failures.append(FailedAttempt(attempt_number, self._clock.now(), error_code, delay_ms))
        emit(
            "sync.attempt_failed",
            "warning",
            attempt_number=attempt_number,
            delay_ms=delay_ms,
            error_code=error_code,
            **_identity(run.operation),
        )

    async def _when_circuit_blocks(self, run: _Run, retry_at: datetime) -> SyncResult:
        """R10: what has spent its retries is queued, what has not waits in the outbox."""
        if not run.failures:
            run.error_code = "circuit_open"
        enough = run.attempts >= self._policy.max_retries and run.attempts > 0
        if enough or run.operation.claim_id is None:
            return await self._give_up(run, FailureReason.CIRCUIT_OPEN)
        return self._defer(run, retry_at)

    async def _when_paused(self, run: _Run, retry_at: datetime, reason: FailureReason) -> SyncResult:
        if run.operation.claim_id is None:
            return await self._give_up(run, reason)
        return self._defer(run, retry_at)

    def _defer(self, run: _Run, retry_at: datetime) -> Deferred:
        emit("sync.deferred", "debug", attempts=run.attempts, retry_at=retry_at, **_identity(run.operation))
        return Deferred(run.attempts, retry_at, tuple(run.failures), run.unanswered)

    async def _give_up(self, run: _Run, reason: FailureReason) -> SyncResult:
        """Into the retry queue within 500 ms; else the outbox keeps it, and an event says so (R13)."""
        failure = Failure(
            run.operation, reason, run.error_code, run.attempts, tuple(run.failures), run.place, run.unanswered
        )
        about = {
            "failure_reason": reason,
            "attempt_count": run.attempts,
            "error_code": run.error_code,
            **_identity(run.operation),
        }
        try:
            entry_id = await self._insert(failure)
        except Exception as error:
            emit("queue.insert_failed", "error", exception_type=type(error).__name__, **about)
            if run.operation.claim_id is None:
                raise QueueInsertError(
                    "A failed operation could not be written to the retry queue within 500 ms, and no outbox holds "
                    "it: sync it again once the queue can be reached."
                ) from None
            return self._defer(run, self._clock.now())
        emit("sync.queued", "warning", queue_id=entry_id, status=reason.queue_status, **about)
        return Queued(entry_id, reason.queue_status, reason, run.attempts, run.error_code)

    async def _insert(self, failure: Failure) -> str:
        """`asyncio.timeout` would wait for the driver to take note of the cancellation, which can take seconds."""
        task = asyncio.ensure_future(self._queue.add(failure))
        self._late_inserts.add(task)
        task.add_done_callback(self._late_inserts.discard)
        try:
            done, _ = await asyncio.wait({task}, timeout=QUEUE_INSERT_TIMEOUT_SECONDS)
        finally:
            task.cancel()
        if not done:
            task.add_done_callback(lambda late: late.cancelled() or late.exception())
            raise TimeoutError
        return task.result()

    def _can_wait(self, run: _Run, until: datetime) -> bool:
        seconds = (until - self._clock.now()).total_seconds()
        return run.operation.claim_id is None and run.waited_seconds + seconds <= MAX_PATIENCE_SECONDS

    async def _wait(self, run: _Run, until: datetime) -> None:
        seconds = max((until - self._clock.now()).total_seconds(), 0.0)
        run.waited_seconds += seconds
        await self._clock.sleep(seconds)

    def _in(self, seconds: float) -> datetime:
        return self._clock.now() + timedelta(seconds=min(seconds, MAX_PATIENCE_SECONDS))


def _identity(operation: SyncOperation) -> dict[str, object]:
    """The fields that say which operation an event is about."""
    return {
        "operation_type": operation.operation_type,
        "certification_id": operation.record_key,
        "source_table": operation.source_table,
        "target": operation.target,
        "correlation_id": operation.correlation_id,
    }
