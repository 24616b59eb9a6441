"""Deliberate bugs. Each is a mistake that somebody could make in the engine or in the SQL behind it; the simulation has
to find it, or it is worth nothing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

from dynamics_sync.core import circuit as decide
from dynamics_sync.core.circuit import Admission, Blocked, Circuit, CircuitSettings, CircuitState, Permit
from dynamics_sync.core.operation import Applied, FailedAttempt, SyncOperation
from dynamics_sync.core.outcome import UNANSWERED_CODES, Accepted, Outcome, Transient
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.lease import LeasedGateway
from dynamics_sync.sync.ports import CircuitReading, Failure, Prepared
from dynamics_sync.sync.service import HLFDynamicsSyncService
from dynamics_sync.sync.worker import Worker
from simulation.machines import ModelGateway, ModelRequest
from simulation.stores import Database, ModelOutbox, ModelRetryQueue

Patches = Iterator[None]


@dataclass(frozen=True, slots=True)
class Bug:
    """A mistake, and how to make it."""

    name: str
    apply: Callable[[], Any]
    """A context manager: the bug is there within."""


BUGS: list[Bug] = []


def bug(make: Callable[[], Patches]) -> Callable[[], Any]:
    """Note one; its name is the function's."""
    made = contextmanager(make)
    BUGS.append(Bug(make.__name__.replace("_", " "), made))
    return made


@bug
def settles_without_comparing_the_version() -> Patches:
    def give_back(self: Database, operation: SyncOperation) -> str:
        row = self._ours(operation)
        if row is None:
            return "lost"
        del self.outbox[operation.record_key]
        return "gone"

    with patch.object(Database, "_give_back", give_back):
        yield


@bug
def probes_without_a_lease() -> Patches:
    """A probe whose worker died keeps its place for ever."""
    transition = decide._transition

    def for_ever(circuit: Circuit, **fields: Any) -> Circuit:
        if fields.get("probe_until") is not None:
            fields["probe_until"] += timedelta(days=1)
        return transition(circuit, **fields)

    def retry_at(circuit: Circuit, now: datetime, settings: CircuitSettings) -> datetime:
        found = original(circuit, now, settings)
        return max(found, circuit.probe_until) if circuit.probe_until is not None else found

    original = decide.retry_at
    with (
        patch.object(decide, "_transition", for_ever),
        patch.object(decide, "retry_at", retry_at),
        patch.object(decide, "_without_future_times", lambda circuit, now, settings: circuit),
    ):
        yield


@bug
def lets_everybody_probe() -> Patches:
    original = decide.admit

    def admit(circuit: Circuit, now: datetime, owner: str, settings: CircuitSettings) -> Admission:
        if circuit.state is CircuitState.HALF_OPEN:
            return Admission(circuit, Permit(owner, circuit.generation, is_probe=True))
        return original(circuit, now, owner, settings)

    with patch.object(decide, "admit", admit):
        yield


@bug
def counts_failures_per_worker() -> Patches:
    original = decide.on_failure

    async def record_failure(self: DynamicsCircuitBreaker, permit: Permit, error_code: str) -> CircuitState:
        self.mine = getattr(self, "mine", 0) + 1  # type: ignore[attr-defined]
        if self.mine < self._settings.failure_threshold and not permit.is_probe:  # type: ignore[attr-defined]
            return CircuitState.CLOSED
        self.mine = 0  # type: ignore[attr-defined]
        certain = replace(self._settings, failure_threshold=1)
        circuit = await self._apply(lambda reading: original(reading.circuit, permit, reading.now, error_code, certain))
        return circuit.state

    with patch.object(DynamicsCircuitBreaker, "record_failure", record_failure):
        yield


@bug
def closes_on_a_success_from_before_the_opening() -> Patches:
    def on_success(circuit: Circuit, permit: Permit) -> Circuit:
        return circuit if decide.Circuit() == circuit else decide._closed(circuit)

    with patch.object(decide, "on_success", on_success):
        yield


@bug
def believes_a_healthy_circuit_for_long() -> Patches:
    original = DynamicsCircuitBreaker.__init__

    def init(self: DynamicsCircuitBreaker, *arguments: Any) -> None:
        original(self, *arguments[:3])
        self._trust_seconds = 5.0

    with patch.object(DynamicsCircuitBreaker, "__init__", init):
        yield


@bug
def opens_without_notice() -> Patches:
    """Others may not know yet."""

    def opened(circuit: Circuit, now: datetime, settings: CircuitSettings, **fields: Any) -> Circuit:
        return decide._transition(circuit, state=CircuitState.OPEN, opened_at=now, **fields)

    with patch.object(decide, "_opened", opened):
        yield


@bug
def asks_the_breaker_before_it_gets_ready() -> Patches:
    async def attempt(self: HLFDynamicsSyncService, runs: Any) -> Any:
        verdict = await self._breaker.admit()
        if isinstance(verdict, Blocked):
            return [(run, verdict) for run in runs]
        admit = self._breaker.admit
        self._breaker.admit = lambda: _given(verdict)  # type: ignore[method-assign]
        try:
            return await tries(self, runs)
        finally:
            self._breaker.admit = admit  # type: ignore[method-assign]

    tries = HLFDynamicsSyncService._try
    with patch.object(HLFDynamicsSyncService, "_try", attempt):
        yield


async def _given(verdict: Permit | Blocked) -> Permit | Blocked:
    return verdict


@bug
def sends_on_a_permit_of_any_age() -> Patches:
    with patch.object(DynamicsCircuitBreaker, "_is_too_old", lambda self, asked_at: False):
        yield


@bug
def stores_the_circuit_without_comparing() -> Patches:
    def compare_and_set(self: Database, expected: Circuit, new: Circuit, not_after: datetime | None = None) -> bool:
        self.circuit = new
        return True

    with patch.object(Database, "compare_and_set_circuit", compare_and_set):
        yield


@bug
def ignores_retry_after() -> Patches:
    async def pause(self: DynamicsCircuitBreaker, seconds: float) -> None: ...

    with patch.object(DynamicsCircuitBreaker, "pause", pause):
        yield


@bug
def drops_what_it_cannot_queue() -> Patches:
    original = ModelRetryQueue.add

    async def add(self: ModelRetryQueue, failure: Failure) -> str:
        try:
            return await original(self, failure)
        except BaseException:
            self._database.outbox.pop(failure.operation.record_key, None)
            raise

    with patch.object(ModelRetryQueue, "add", add):
        yield


@bug
def acknowledges_before_it_writes() -> Patches:
    async def nothing(results: Any) -> None: ...

    async def bring_home(self: Worker, operations: Sequence[SyncOperation]) -> None:
        await self._outbox.settle([(operation, Applied(1)) for operation in operations])
        await self._service.sync_many(operations, nothing)
        self._drop(operations)

    with patch.object(Worker, "_bring_home", bring_home):
        yield


@bug
def has_leases_shorter_than_its_requests() -> Patches:
    original = ModelOutbox.__init__

    def init(
        self: ModelOutbox, database: Database, wire: Any, names: Any, lease_seconds: float, taken_from: int
    ) -> None:
        original(self, database, wire, names, 1.0, taken_from)

    with patch.object(ModelOutbox, "__init__", init):
        yield


@bug
def sends_whatever_became_of_its_lease() -> Patches:
    original = LeasedGateway.begin

    def begin(self: LeasedGateway, operation: SyncOperation, claimed_at: float) -> None:
        original(self, operation, claimed_at + 1_000.0)

    with patch.object(LeasedGateway, "begin", begin):
        yield


@bug
def claims_what_others_hold() -> Patches:
    original = Database.claim

    def claim(self: Database, *claimed: Any) -> list[SyncOperation]:
        for row in self.outbox.values():
            row.lease_until = 0.0
        return original(self, *claimed)

    with patch.object(Database, "claim", claim):
        yield


@bug
def forgets_requests_that_were_never_answered() -> Patches:
    with patch.object(Database, "note_unanswered", lambda self, key: None):
        yield


@bug
def forgets_requests_of_workers_that_died() -> Patches:
    original = Database.claim

    def claim(self: Database, *claimed: Any) -> list[SyncOperation]:
        known = dict(self.unanswered)
        operations = original(self, *claimed)
        self.unanswered = known
        return operations

    with patch.object(Database, "claim", claim):
        yield


@bug
def reads_the_row_once_for_all_tries() -> Patches:
    original = ModelGateway._read

    async def read(self: Any, keys: Sequence[str]) -> list[Any]:
        kept = self.__dict__.setdefault("kept", {})
        for key in keys:
            if key not in kept:
                (kept[key],) = await original(self, [key])
        return [(kept[key][0], None) for key in keys]

    with patch.object(ModelGateway, "_read", read):
        yield


@bug
def takes_a_lost_answer_for_a_success() -> Patches:
    original = ModelRequest.send

    async def send(self: ModelRequest) -> Sequence[Outcome]:
        outcomes = await original(self)
        return [Accepted() if outcome == Transient("connection_reset") else outcome for outcome in outcomes]

    with patch.object(ModelRequest, "send", send):
        yield


@bug
def forgets_the_record_when_a_worker_stops() -> Patches:
    original = Database.release

    def release(
        self: Database, operation: SyncOperation, attempts: int, failures: Sequence[FailedAttempt], unanswered: bool
    ) -> bool:
        is_locked = original(self, operation, attempts, failures, unanswered)
        if not failures:
            self.outbox.pop(operation.record_key, None)
        return is_locked

    with patch.object(Database, "release", release):
        yield


@bug
def closes_a_replayed_entry_before_it_arrived() -> Patches:
    original = Database.replay

    def replay(self: Database, entry_id: str) -> bool:
        done = original(self, entry_id)
        if done:
            entry = self.queue[entry_id]
            self._close(entry, entry.status)
            del self.outbox[entry.key]
        return done

    with patch.object(Database, "replay", replay):
        yield


@bug
def relies_on_notifications() -> Patches:
    original = Worker._step

    async def step(self: Worker) -> float:
        rest = await original(self)
        return 10_000.0 if rest == self._settings.poll_seconds else rest

    with patch.object(Worker, "_step", step):
        yield


@bug
def compares_the_cool_down_with_its_own_clock() -> Patches:
    original = DynamicsCircuitBreaker.look

    async def look(self: DynamicsCircuitBreaker) -> CircuitReading:
        reading = await original(self)
        return CircuitReading(reading.circuit, self._clock.now())

    with patch.object(DynamicsCircuitBreaker, "look", look):
        yield


@bug
def settles_in_two_turns() -> Patches:
    original = Database._give_back

    def give_back(self: Database, operation: SyncOperation) -> str:
        row = self._ours(operation)
        if row is not None and row.attempts == 0:
            row.attempts, row.lease_owner = 1, None
            return "changed"
        return original(self, operation)

    with patch.object(Database, "_give_back", give_back):
        yield


@bug
def dies_of_a_lost_database() -> Patches:
    async def step_or_wait(self: Worker) -> float:
        return await self._step()

    with patch.object(Worker, "_step_or_wait_for_database", step_or_wait):
        yield


@bug
def gives_a_cancelled_probe_a_verdict() -> Patches:
    """A probe that was cancelled counts as a success."""

    async def release(self: DynamicsCircuitBreaker, permit: Permit) -> None:
        if permit.is_probe:
            await self.record_success(permit)

    with patch.object(DynamicsCircuitBreaker, "release", release):
        yield


@bug
def counts_a_failed_request_once_for_each_record() -> Patches:
    original = HLFDynamicsSyncService._report

    async def report(self: HLFDynamicsSyncService, permit: Permit, outcomes: Sequence[Outcome]) -> bool:
        return [await original(self, permit, [outcome]) for outcome in outcomes][-1]

    with patch.object(HLFDynamicsSyncService, "_report", report):
        yield


@bug
def probes_with_many_records() -> Patches:
    with patch.object(ModelRequest, "alone", lambda self: self), patch.object(Worker, "_most_together", _as_ever):
        yield


def _as_ever(self: Worker, source_table: str) -> int:
    return self._leases.most_together(source_table)


@bug
def notes_only_the_first_of_many_unanswered() -> Patches:
    original = HLFDynamicsSyncService._try

    async def attempt(self: HLFDynamicsSyncService, runs: Any) -> Any:
        tried = await original(self, runs)
        for run, _ in tried[1:]:
            run.unanswered = False
        return tried

    with patch.object(HLFDynamicsSyncService, "_try", attempt):
        yield


@bug
def takes_a_batch_that_broke_off_for_one_that_wrote_nothing() -> Patches:
    def is_answered(self: Transient) -> bool:
        return self.error_code not in UNANSWERED_CODES

    with patch.object(Transient, "is_answered", property(is_answered)):
        yield


@bug
def mixes_up_the_records_of_a_batch() -> Patches:
    original = ModelRequest.outcomes

    def outcomes(self: ModelRequest, said: Any) -> Sequence[Outcome]:
        return [*reversed(original(self, said))] if isinstance(said, list) else original(self, said)

    with patch.object(ModelRequest, "outcomes", outcomes):
        yield


@bug
def sends_what_was_refused_together_together_again() -> Patches:
    original = ModelGateway.prepare

    async def prepare(self: ModelGateway, operations: Any, *, one_by_one: bool = False) -> Prepared:
        return await original(self, operations)

    with patch.object(ModelGateway, "prepare", prepare):
        yield


@bug
def looks_for_what_was_refused_together_by_halves() -> Patches:
    original = ModelGateway.prepare

    async def prepare(self: ModelGateway, operations: Any, *, one_by_one: bool = False) -> Prepared:
        some = operations[: (len(operations) + 1) // 2] if one_by_one else operations
        return await original(self, some, one_by_one=one_by_one)

    with patch.object(ModelGateway, "prepare", prepare):
        yield


@bug
def believes_what_dynamics_held_before_an_unanswered_request() -> Patches:
    def note(self: Database, key: str) -> None:
        self.unanswered[key] = self.clock() + self.late_seconds

    with patch.object(Database, "note_unanswered", note):
        yield


@bug
def believes_what_dynamics_holds_whatever_failed() -> Patches:
    with patch.object(Database, "forget_payload", lambda self, key: None):
        yield


@bug
def believes_a_write_that_an_earlier_one_may_overtake() -> Patches:
    original = Database.settle

    def settle(self: Database, arrived: Sequence[tuple[SyncOperation, Applied]]) -> dict[int, str]:
        outcomes = original(self, arrived)
        for operation, applied in arrived:
            known = self.record_state.get(operation.record_key)
            if applied.payload_hash is not None and known is not None:
                self.record_state[operation.record_key] = (*known[:2], applied.payload_hash)
        return outcomes

    with patch.object(Database, "settle", settle):
        yield


@bug
def takes_what_is_under_way() -> Patches:
    original = Database.take

    def take(self: Database, *claimed: Any) -> list[SyncOperation]:
        there, self.outbox = self.outbox, {}
        taken = original(self, *claimed)
        self.outbox = there | self.outbox
        return taken

    with patch.object(Database, "take", take):
        yield
