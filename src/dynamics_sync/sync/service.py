"""HLFDynamicsSyncService: what happens to operations until each has arrived, waits, or is in the queue.

The retry loop stands outside the breaker: it decides whether to try again, the breaker only whether anybody may (R11).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
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
    AlreadyThere,
    Conflict,
    IsWell,
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
)
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.clock import StoppedError, SystemClock
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.one_by_one import as_bulk
from dynamics_sync.sync.ports import BulkGateway, Clock, Failure, Gateway, RetryQueue

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


Results = Sequence[tuple[SyncOperation, SyncResult]]


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
    one_by_one: bool = False
    """A request for it and others was refused as a whole."""
    wait_seconds: float = 0.0
    """How long to rest before the next try."""
    waited_seconds: float = 0.0
    """How long it waited because Dynamics asked for silence."""
    is_over: bool = False


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
        gateway: Gateway | BulkGateway,
        queue: RetryQueue,
        clock: Clock | None = None,
    ) -> None:
        self._breaker = breaker
        self._policy = policy
        self._gateway = as_bulk(gateway)
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
        known: list[SyncResult] = []

        async def note(results: Results) -> None:
            known.extend(result for _, result in results)

        await self.sync_many([operation], note)
        return known[0]

    async def sync_many(self, operations: Sequence[SyncOperation], tell: Callable[[Results], Awaitable[None]]) -> None:
        """Bring many records of one table up to date in Dynamics, with as few requests as the gateway needs.

        What is counted is counted for each record by itself. For the circuit a request is one, however many records
        are in it.

        Args:
            tell: what became of some of them, as soon as it is known; each operation is told of once.

        Raises:
            As `sync`; those without a result are as they were.
        """
        runs = [_Run(operation, operation.attempts) for operation in operations]
        while runs:
            try:
                results = await self._step(runs)
            except (DatabaseError, StoppedError):
                if runs[0].operation.claim_id is None:
                    raise
                results = [self._over(run, self._defer(run, self._clock.now())) for run in runs]
            runs = [run for run in runs if not run.is_over]
            if results:
                await tell(results)

    async def _step(self, runs: Sequence[_Run]) -> Results:
        """Give up what has spent its tries; or else wait until another one makes sense, and make it."""
        spent = [run for run in runs if run.attempts >= self._policy.max_requests]
        if spent:
            return [self._over(run, await self._give_up(run, FailureReason.RETRIES_EXHAUSTED)) for run in spent]
        await self._rest(runs)
        results = []
        for run, outcome in await self._try(runs):
            if (result := await self._judge(run, outcome)) is not None:
                results.append(self._over(run, result))
        return results

    def _over(self, run: _Run, result: SyncResult) -> tuple[SyncOperation, SyncResult]:
        run.is_over = True
        return run.operation, result

    async def _rest(self, runs: Sequence[_Run]) -> None:
        """Wait until another try makes sense."""
        wait_seconds = max(run.wait_seconds for run in runs)
        if wait_seconds > 0:
            await self._clock.sleep(wait_seconds)
            for run in runs:
                run.wait_seconds = 0.0

    async def _try(self, runs: Sequence[_Run]) -> list[tuple[_Run, Outcome | Blocked]]:
        """Get ready, ask the breaker, send at once, and tell the breaker how it went. What came of it, for all that
        went into the request or will not go into one."""
        chosen = [run for run in runs if run.one_by_one] or runs
        prepared = await self._gateway.prepare([run.operation for run in chosen], one_by_one=chosen[0].one_by_one)
        tried: list[tuple[_Run, Outcome | Blocked]] = [(chosen[place], why) for place, why in prepared.instead.items()]
        request, sent = prepared.request, [chosen[place] for place in prepared.places]
        if request is None:
            return tried
        verdict = await self._breaker.admit()
        if isinstance(verdict, Blocked):
            return [*tried, *((run, verdict) for run in sent)]
        if verdict.is_probe and len(sent) > 1:
            waits = Blocked(self._clock.now(), CircuitState.HALF_OPEN)
            tried += [(run, waits) for run in sent[1:]]
            request, sent = request.alone(), sent[:1]
        try:
            outcomes = await request.send()
            for run, outcome in zip(sent, outcomes, strict=True):
                run.unanswered |= isinstance(outcome, Transient) and not outcome.is_answered
            opened = await self._report(verdict, outcomes)
        except BaseException:
            await self._breaker.release(verdict)
            raise
        for run in sent:
            run.circuit_opened = opened
        return [*tried, *zip(sent, outcomes, strict=True)]

    async def _report(self, permit: Permit, outcomes: Sequence[Outcome]) -> bool:
        """Tell the breaker, once for the whole request; whether the circuit is open now."""
        throttled = [outcome for outcome in outcomes if isinstance(outcome, Throttled)]
        if throttled:
            longest = max(throttled, key=lambda outcome: outcome.retry_after_seconds)
            emit(
                "sync.throttled",
                "warning",
                error_code=longest.error_code,
                retry_after_seconds=longest.retry_after_seconds,
            )
            await self._breaker.pause(longest.retry_after_seconds)
            await self._breaker.release(permit)
            return False
        # Beside a failure, those that are merely to be tried in another way say nothing of Dynamics.
        telling = [outcome for outcome in outcomes if not isinstance(outcome, Undecided | TooMuch)] or outcomes
        if any(isinstance(outcome, IsWell) for outcome in telling):
            await self._breaker.record_success(permit)
            return False
        for outcome in telling:
            if isinstance(outcome, Transient | Mismatch):
                state = await self._breaker.record_failure(permit, outcome.error_code)
                if isinstance(outcome, Transient) and outcome.retry_after_seconds:
                    await self._breaker.pause(outcome.retry_after_seconds)
                return state is not CircuitState.CLOSED
        await self._breaker.release(permit)
        return False

    async def _judge(self, run: _Run, outcome: Outcome | Blocked) -> SyncResult | None:
        """What the record's journey ends with; None if it goes on.

        A new token after a 401 and a fresh look at the record after a 412 belong to the same try, once each (R8); so
        does waiting out a pause, where no outbox keeps the operation meanwhile.
        """
        attempt_number = run.attempts + 1
        match outcome:
            case Accepted(etag, payload_hash):
                return Applied(attempt_number, etag, run.unanswered, payload_hash)
            case NothingToSend():
                return Applied(run.attempts, unanswered=run.unanswered)
            case AlreadyThere():
                return Applied(run.attempts, unanswered=run.unanswered, is_sent=False)
            case Undecided():
                run.one_by_one = True
            case TooMuch():
                pass
            case Transient(error_code):
                return await self._after_failure(run, attempt_number, error_code)
            case Unauthorized() if not run.token_renewed:
                run.token_renewed = True
                await self._gateway.renew_token()
            case Conflict() if not run.conflict_seen:
                run.conflict_seen = True
            case Blocked(retry_at, None) if self._can_wait(run, retry_at):
                self._wait(run, retry_at)
            case Throttled(_, seconds) | NotReady(_, seconds) if self._can_wait(run, self._in(seconds)):
                self._wait(run, self._in(seconds))
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
            case NotOurs():
                return self._defer(run, self._clock.now())
            case Unsendable(error_code, place):
                run.error_code, run.place = error_code, place
                return await self._give_up(run, FailureReason.UNSENDABLE)
            case Rejected() | Unauthorized() | Conflict() | Mismatch() as refusal:
                run.place = refusal.place if isinstance(refusal, Mismatch) else None
                self._note_failure(run, attempt_number, refusal.error_code, 0)
                return await self._give_up(run, _REFUSALS[type(refusal)])
            case other:
                assert_never(other)
        return None

    async def _after_failure(self, run: _Run, attempt_number: int, error_code: str) -> SyncResult | None:
        delay_ms = 0 if run.circuit_opened else self._policy.delay_ms(attempt_number)
        self._note_failure(run, attempt_number, error_code, delay_ms)
        if run.circuit_opened:
            return await self._when_circuit_blocks(run, self._clock.now())
        run.wait_seconds = delay_ms / 1000
        return None

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

    def _wait(self, run: _Run, until: datetime) -> None:
        run.wait_seconds = max((until - self._clock.now()).total_seconds(), 0.0)
        run.waited_seconds += run.wait_seconds

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
