"""The worker: claims records, lets the service send them, settles.

Many records are in flight, never two requests for one: a record is claimed under a lease, and right before each
request the lease is checked to last longer than the request may take (I3). Where one request takes many records, as
many go into it as are ready.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from dynamics_sync.core.bundle import MOST
from dynamics_sync.core.circuit import CircuitState
from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.core.operation import Applied, Deferred, Queued, QueueStatus, SyncOperation, SyncResult
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.clock import StoppableClock
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.lease import LeasedGateway
from dynamics_sync.sync.pacer import Pacer
from dynamics_sync.sync.ports import Outbox
from dynamics_sync.sync.ready import Ready
from dynamics_sync.sync.service import HLFDynamicsSyncService, Results

SETTLE_LINGER_SECONDS = 0.08
"""How long an arrival waits to be settled together with others that are on their way: one transaction for many."""

READY_SECONDS = 0.2
"""For how long the records that wait for their turn should last, at the speed at which they leave."""

DROWSY_SECONDS = 0.01
"""How long a worker rests first when there is nothing more to claim. While it claims, nobody wakes it (`attention`): so
it looks again soon, and then after twice as long each time, for what transactions changed that have not ended yet."""

REST_SECONDS = 1.0
"""How long a worker rests before it claims a record again that came back although the circuit is closed."""

KEEP_SECONDS = 5.0
"""How often a worker looks whether its leases last."""

CLAIM_TRUST_SECONDS = 1.0
"""For how long a healthy circuit is reason enough to claim without another look: each claim brings the next one, and
each request asks for itself."""

RESEND_SECONDS = 5.0
"""How often a worker looks whether unanswered requests are over."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How much a worker does at once, and how long it waits."""

    concurrency: int = 64
    """Requests under way at once, at most."""
    poll_seconds: float = 1.0
    """How soon a change is found without a wake-up."""
    shutdown_seconds: float = 50.0
    """How long a stop waits for requests in flight."""

    @property
    def most_held(self) -> int:
        """Records claimed and not yet settled: a slow database keeps memory bounded (I8)."""
        return max(16 * self.concurrency, 4 * MOST)


class Worker:
    """One of any number of workers on one database.

    A claim fills `_ready`, with more where Dynamics is fast, so that no request waits for the database; as the pace
    allows, requests take from it; what arrived is settled in batches. `wake` is set from outside when
    something was committed; without it everything is found by polling.
    """

    def __init__(
        self,
        *,
        service: HLFDynamicsSyncService,
        breaker: DynamicsCircuitBreaker,
        outbox: Outbox,
        leases: LeasedGateway,
        pacer: Pacer,
        read_ahead: Callable[[Sequence[SyncOperation]], Awaitable[None]],
        clock: StoppableClock,
        settings: WorkerSettings,
    ) -> None:
        self._service = service
        self._breaker = breaker
        self._outbox = outbox
        self._leases = leases
        self._pacer = pacer
        self._read_ahead = read_ahead
        self._clock = clock
        self._settings = settings
        self.wake = asyncio.Event()
        self._held = 0
        self._more_room = asyncio.Event()
        self._ready = Ready(self._most_together)
        self._reading: asyncio.Task[None] | None = None
        self._being_read = 0
        self._most_ready = settings.concurrency
        self._largest = 1
        self._taken = 0
        self._taken_since = 0.0
        self._senders: set[asyncio.Task[None]] = set()
        self._settles_now = asyncio.Event()
        self._arrived: list[tuple[SyncOperation, Applied]] = []
        self._settlements: set[asyncio.Task[None]] = set()
        self._cautious = True
        self._came_back = False
        self._resend_at = 0.0
        self._keep_at = 0.0
        self._rest_seconds = settings.poll_seconds

    @property
    def in_flight(self) -> int:
        """Records that this worker holds."""
        return self._held

    def stop(self) -> None:
        """Claim nothing more. `run` returns once the requests in flight are answered and settled."""
        self._clock.stop()

    async def run(self) -> None:
        """Work until `stop`. A lost database or a Dynamics that is down is waited for, never died of."""
        emit("worker.started")
        jobs = [asyncio.create_task(self._send()), asyncio.create_task(self._pacer.run())]
        try:
            while not self._clock.stopped:
                for job in (*jobs, self._reading):
                    if job is not None and job.done():
                        job.result()  # one that fails must not go unnoticed
                rest_seconds = await self._step_or_wait_for_database()
                if rest_seconds > 0:
                    await self._clock.sleep_or(self.wake, rest_seconds)
        finally:
            await self._finish(jobs)

    async def _step_or_wait_for_database(self) -> float:
        try:
            return await self._step()
        except DatabaseError as error:
            emit("database.unavailable", "error", exception_type=type(error).__name__)
            return self._settings.poll_seconds

    async def _step(self) -> float:
        """Claim what may be sent now; give the seconds to rest before the next look."""
        if self._pacer.has_no_part:
            self.wake.clear()
            waiting = self._ready.waiting()
            self._ready.remove(waiting)
            await self._give_back(waiting)
            return self._settings.poll_seconds
        await self._keep_leases()
        if (limit := self._room()) == 0:
            self._more_room.clear()
            await self._clock.sleep_or(self._more_room, self._settings.poll_seconds)
            return 0.0
        came_back, self._came_back = self._came_back, False
        self.wake.clear()
        if not self._breaker.was_healthy(CLAIM_TRUST_SECONDS):
            reading = await self._breaker.look()
            if (blocked_seconds := self._breaker.seconds_until_admission(reading)) > 0:
                self._pacer.look_first()
                await self._outbox.gather()  # a record that changes often during an outage waits once
                return min(blocked_seconds, self._settings.poll_seconds)
            self._cautious |= reading.circuit.state is not CircuitState.CLOSED
        if came_back:
            return min(REST_SECONDS, self._settings.poll_seconds)
        await self._resend_unanswered()
        operations = await self._claim(1 if self._cautious else limit)
        if self._reading is not None and 0 < len(operations) < limit:
            await asyncio.wait([self._reading])  # nothing else waits: these leave first
        rest_seconds = 0.0 if operations else self._rest_seconds
        self._rest_seconds = min(max(2 * rest_seconds, DROWSY_SECONDS), self._settings.poll_seconds)
        return rest_seconds

    async def _give_back(self, unsent: Sequence[SyncOperation]) -> None:
        """Leave records that wait for their turn no more to other workers."""
        try:
            await asyncio.gather(*(self._outbox.release(operation, operation.attempts) for operation in unsent))
        finally:
            self._drop(unsent)

    async def _keep_leases(self) -> None:
        """Now and then, of records that wait for their turn: where requests leave slowly, they would not last."""
        if self._clock.monotonic() < self._keep_at:
            return
        self._keep_at = self._clock.monotonic() + KEEP_SECONDS
        waiting = self._ready.waiting()
        if lost := await self._leases.keep(waiting):
            gone = [each for each in waiting if (each.outbox_id, each.claim_id) in lost]
            self._drop(self._ready.remove(gone))  # the others were sent meanwhile

    async def _claim(self, limit: int) -> Sequence[SyncOperation]:
        """Take records from the outbox. Their rows are read while they wait for their turn, and more are claimed."""
        operations: Sequence[SyncOperation] = ()
        self._ready.expect()
        try:
            claimed_at = self._clock.monotonic()
            claim = await self._outbox.claim(limit)
            operations = claim.operations
            self._held += len(operations)
            for operation in operations:
                self._leases.begin(operation, claimed_at)
            self._look_ahead()
            self._breaker.observe(claim.reading, claimed_at)
        finally:
            if operations:
                self._being_read += len(operations)
                self._reading = asyncio.create_task(self._read(operations, self._reading))
            else:
                self._ready.put(operations)
        return operations

    async def _read(self, operations: Sequence[SyncOperation], before: asyncio.Task[None] | None) -> None:
        """After those that were claimed before them."""
        try:
            if before is not None:
                await before
            with contextlib.suppress(DatabaseError):  # then they are read when they are sent
                await self._read_ahead(operations)
        finally:
            self._being_read -= len(operations)
            self._ready.put(operations)

    async def _resend_unanswered(self) -> None:
        """Now and then."""
        if self._clock.monotonic() >= self._resend_at:
            self._resend_at = self._clock.monotonic() + RESEND_SECONDS
            await self._outbox.resend_unanswered()

    def _room(self) -> int:
        """How many records to claim. One alone while cautious; else none until half of those ready are on their way,
        so that a claim is worth its round trip."""
        if self._cautious:
            return 1 if self._held == 0 else 0
        ready = len(self._ready) + self._being_read
        if ready > self._most_ready // 2:
            return 0
        return min(self._most_ready - ready, self._settings.most_held - self._held, MOST)

    def _most_together(self, source_table: str) -> int:
        return 1 if self._cautious else self._leases.most_together(source_table)

    def _look_ahead(self) -> None:
        """After a claim: how many may be ready from now on, by how fast they left since the one before. Enough for two
        full requests, so that one can be filled while the other is taken."""
        now = self._clock.monotonic()
        leaving = self._taken * READY_SECONDS / max(now - self._taken_since, 0.001)
        wanted = max(self._settings.concurrency, 2 * self._largest, round(leaving))
        self._most_ready = min(wanted, self._settings.most_held)
        self._taken, self._taken_since = 0, now

    async def _send(self) -> None:
        """Let requests leave, one after the other, as the pace allows."""
        while await self._ready.filled():
            await self._pacer.enter()
            operations = self._ready.take()
            if not operations:
                self._pacer.leave()
                continue
            self._largest = self._most_together(operations[0].source_table)
            if self._room():
                self._more_room.set()
            self._taken += len(operations)
            sender = asyncio.create_task(self._bring_home(operations))
            self._senders.add(sender)
            sender.add_done_callback(self._is_home)
            if len(operations) > 1:
                await asyncio.sleep(0)  # a full request is much work: the next records are asked for meanwhile

    def _is_home(self, sender: asyncio.Task[None]) -> None:
        self._senders.discard(sender)
        self._pacer.leave()
        if not self._senders and not self._ready:
            self._settles_now.set()

    async def _bring_home(self, operations: Sequence[SyncOperation]) -> None:
        """Sync records and record the results. Whatever goes wrong here, the outbox still has the changes."""
        left = {(operation.outbox_id, operation.claim_id): operation for operation in operations}

        async def record(results: Results) -> None:
            for operation, _ in results:
                del left[operation.outbox_id, operation.claim_id]
            await self._record(results)

        try:
            await self._service.sync_many(operations, record)
        except DatabaseError as error:
            self._drop([*left.values()], error)  # the leases end by themselves
        except asyncio.CancelledError as error:
            await self._let_go([*left.values()], error, failed=False)
            raise
        except Exception as error:
            # Counted, so that a record that we cannot handle ends in the queue instead of coming back for ever.
            await self._let_go([*left.values()], error, failed=True)

    async def _record(self, results: Results) -> None:
        """What arrived is settled soon, what did not is let go of."""
        arrived = [(operation, result) for operation, result in results if isinstance(result, Applied)]
        if arrived:
            self._settle_soon(arrived)
        others = [(operation, result) for operation, result in results if not isinstance(result, Applied)]
        if not others:
            return
        try:
            await asyncio.gather(*(self._release(operation, result) for operation, result in others))
        finally:
            self._drop([operation for operation, _ in others])

    async def _release(self, operation: SyncOperation, result: SyncResult) -> None:
        try:
            match result:
                case Deferred(attempts, _, failures, unanswered):
                    self._cautious = self._came_back = True
                    await _persist(lambda: self._outbox.release(operation, attempts, failures, unanswered))
                case Queued(status=status):
                    self._cautious &= status is not QueueStatus.REQUIRES_INVESTIGATION
                    # Where a user's transaction had its row, the outbox still has the record.
                    await _persist(lambda: self._outbox.release(operation, operation.attempts))
        except DatabaseError as error:
            _tell_interrupted(operation, error)  # the lease ends by itself

    async def _let_go(self, operations: Sequence[SyncOperation], cause: BaseException, *, failed: bool) -> None:
        """Release the leases if the database lets us; otherwise they end by themselves. A request may have been cut
        off."""
        self._cautious = self._came_back = True
        try:
            with contextlib.suppress(DatabaseError):
                await asyncio.gather(
                    *(
                        self._outbox.release(operation, operation.attempts + failed, unanswered=True)
                        for operation in operations
                    )
                )
        finally:
            self._drop(operations, cause)

    def _settle_soon(self, arrived: Sequence[tuple[SyncOperation, Applied]]) -> None:
        """Settle them together with what arrives in the next moments; at once if nothing will, if they are as many as a
        full bulk request, or while stopping."""
        if not self._arrived:
            self._settles_now.clear()
            settlement = asyncio.create_task(self._settle())
            self._settlements.add(settlement)
            settlement.add_done_callback(self._settlements.discard)
        self._arrived += arrived
        if len(self._arrived) >= MOST:
            self._settles_now.set()
        if self._cautious:
            self._cautious = False
            self._more_room.set()

    async def _settle(self) -> None:
        await self._clock.sleep_or(self._settles_now, SETTLE_LINGER_SECONDS)
        arrived, self._arrived = self._arrived, []
        try:
            await _persist(lambda: self._outbox.settle(arrived))
            if sent := sum(applied.is_sent for _, applied in arrived):
                emit("sync.applied", count=sent, target=arrived[0][0].target)
        except DatabaseError as error:
            # Their leases end by themselves, and they are sent once more.
            emit("database.unavailable", "error", exception_type=type(error).__name__)
        finally:
            self._drop([operation for operation, _ in arrived])

    def _drop(self, operations: Sequence[SyncOperation], cause: BaseException | None = None) -> None:
        """These are no longer ours."""
        for operation in operations:
            self._leases.end(operation)
            if cause is not None:
                _tell_interrupted(operation, cause)
        self._held -= len(operations)
        self._more_room.set()

    async def _finish(self, jobs: Sequence[asyncio.Task[None]]) -> None:
        """Let requests in flight end, then cancel what is left; leases are released either way."""
        if self._reading is not None:
            await asyncio.wait([self._reading])
        unsent = self._ready.close()
        self._pacer.close()
        with contextlib.suppress(DatabaseError):
            await self._give_back(unsent)
        senders = [*self._senders]
        if senders:
            await asyncio.wait(senders, timeout=self._settings.shutdown_seconds)
        for task in (*jobs, *senders):
            task.cancel()
        await asyncio.gather(*jobs, *senders, *self._settlements, return_exceptions=True)
        emit("worker.stopped")


async def _persist(write: Callable[[], Awaitable[None]]) -> None:
    """Once more where it fails: a lost connection is not a lost database. What fails again is left to its lease."""
    try:
        await write()
    except DatabaseError:
        await write()


def _tell_interrupted(operation: SyncOperation, cause: BaseException) -> None:
    emit(
        "sync.interrupted",
        "warning",
        exception_type=type(cause).__name__,
        certification_id=operation.record_key,
        source_table=operation.source_table,
    )
