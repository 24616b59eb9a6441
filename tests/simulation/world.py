"""One history: the real engine of several workers, a model of the database and of Dynamics, and all that can happen
between them. What must always hold is checked after every step; see `docs/guarantees.md`."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import structlog

from dynamics_sync.core.circuit import Circuit, CircuitSettings, CircuitState
from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.core.operation import WAITING_STATUSES, SyncOperation
from dynamics_sync.core.outcome import (
    Answer,
    NothingToSend,
    NotReady,
    Outcome,
    Transient,
    Unsendable,
    classify_removal,
    classify_write,
)
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.clock import StoppableClock
from dynamics_sync.sync.lease import LeasedGateway, LeaseTimes
from dynamics_sync.sync.ports import Request
from dynamics_sync.sync.replay import Replay, ReplaySettings
from dynamics_sync.sync.service import HLFDynamicsSyncService
from dynamics_sync.sync.worker import Worker, WorkerSettings
from simulation.dynamics_model import DynamicsModel, Fault
from simulation.loop import WORLD, Process, SimulationLoop
from simulation.plan import END_OF_TROUBLE, Action, Kind, Mood, Plan, Point
from simulation.stores import EPOCH, Database, ModelCircuitStore, ModelOutbox, ModelRetryQueue, direct

TIMES = LeaseTimes(lease_seconds=6.0, prepare_seconds=1.0, request_seconds=2.0)
CIRCUIT = CircuitSettings(cool_down_seconds=5.0, probe_lease_seconds=6.0, notice_seconds=0.5, max_pause_seconds=30.0)
TRUST_SECONDS = 0.1
POLICY = RetryPolicy(max_retries=3, base_delay_ms=1000)
POLL_SECONDS = 4.0
SHUTDOWN_SECONDS = 3.0
REPLAY = ReplaySettings(window=2, look_seconds=0.5, patience_seconds=4.0, blocked_patience_seconds=8.0)
LATE_SECONDS = 12.0
"""An unanswered request takes effect no later than so long after it left."""
END = 200.0
"""By then everything must have arrived."""
ROWS_AHEAD_SECONDS = 0.3
NEWS_SECONDS = 0.6
"""By then every worker that reaches the database knows what another one heard."""

GONE = "gone"
"""What Dynamics must hold of a record whose row was deleted: nothing, or an inactive record."""
INACTIVE = {"statecode": 1, "statuscode": 2}
ACTIVE = {"statecode": 0, "statuscode": 1}


class Violation(Exception):
    """Something happened that must never happen."""


@dataclass(slots=True)
class Flight:
    """A request under way, as its sender sees it: until it is answered, given up, or its sender is dead."""

    key: str
    worker: "SimulatedWorker"
    process: Process
    left_at: float
    is_probe: bool
    has_ended: bool = False

    def is_under_way(self, now: float) -> bool:
        return not self.has_ended and not self.process.is_dead and now < self.left_at + TIMES.request_seconds


@dataclass(slots=True)
class World:
    """All that there is."""

    plan: Plan
    tell: Callable[[float, str, str], None] | None = None
    """Takes the lines of a time line: when, who, what."""

    loop: SimulationLoop = field(default_factory=SimulationLoop)
    dynamics: DynamicsModel = field(default_factory=DynamicsModel)
    circuit_settings: CircuitSettings = field(init=False)
    database: Database = field(init=False)
    random: Random = field(init=False)
    committed: dict[str, int | None] = field(default_factory=dict)
    """The newest committed state of each record; None if its row was deleted."""
    settled_by_person: set[str] = field(default_factory=set)
    """Records whose queue entry a person discarded: Dynamics keeps what it has."""
    flights: list[Flight] = field(default_factory=list)
    late_writes: int = 0
    dynamics_moods: list[Action] = field(default_factory=list)
    database_moods: list[Action] = field(default_factory=list)
    workers: list["SimulatedWorker"] = field(default_factory=list)
    operators: list[Process] = field(default_factory=list)
    """Commands that are running."""
    violations: list[str] = field(default_factory=list)
    waiting_for_locks: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    requests: int = 0
    unneeded: dict[str, int] = field(default_factory=dict)
    """Requests for each record, less its changes."""
    failed_at: list[float] = field(default_factory=list)
    """When workers heard of failures, since the circuit changed."""
    succeeded_at: float = 0.0
    """When a worker last heard of a success. It may be noted after failures that were heard of a little later."""
    changed_at: float = 0.0
    """When the circuit changed its state."""
    silent_from: float = 0.0
    silent_until: float = 0.0
    """Dynamics asked for silence; workers that hear of it and reach the database leave it alone until then."""
    has_probe_succeeded: bool = False
    _names: int = 0
    _state: int = 0
    _is_past: bool = False

    def __post_init__(self) -> None:
        self.circuit_settings = replace(CIRCUIT, failure_threshold=self.plan.failure_threshold)
        self.random = Random(-1 - self.plan.seed)
        self.database = Database(self.loop.time, LATE_SECONDS)

    # --- running -----------------------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Let it happen; what was violated."""
        for number in range(self.plan.workers):
            self.workers.append(SimulatedWorker(self, number))
            self.workers[-1].start()
        for action in self.plan.actions:
            self.loop.call_at(action.at, self.act, action, context=WORLD)
        self.loop.call_at(END_OF_TROUBLE, self.repair, context=WORLD)
        arrived = self.loop.run(self._is_over, END)
        for error in self.loop.errors:
            self.violate(f"an exception that nobody took: {error}")
        if not arrived and not self.violations:
            waiting = ", ".join(self.database.outbox) or ", ".join(self.database.unanswered)
            self.violate(f"after {END - END_OF_TROUBLE:.0f} s without trouble records still wait: {waiting}")
        if arrived and not self.violations:
            self._check_arrived()
        self._is_past = True
        return self.violations

    def _is_over(self) -> bool:
        if self.violations:
            return True
        return (
            self.loop.time() > END_OF_TROUBLE
            and not self.database.outbox
            and not self.database.unanswered
            and not self.late_writes
            and not self.operators
        )

    def violate(self, what: str) -> None:
        if self._is_past:
            return
        self.violations.append(f"{self.loop.time():.3f} s: {what}")
        self.note("CHECK", what)

    def note(self, who: str, what: str) -> None:
        if self.tell is not None:
            self.tell(self.loop.time(), who, what)

    def name(self) -> str:
        """A new id each time, the same in each run of a seed."""
        self._names += 1
        return str(UUID(int=self._names))

    # --- what must always hold ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """I1: each committed change is in the outbox, in an open queue entry, or applied in its newest state."""
        database = self.database
        for key, state in self.committed.items():
            if key in database.outbox or key in database.open_entries or key in database.unanswered:
                continue
            if key not in self.settled_by_person and not self._holds(key, state):
                self.violate(f"I1 {key} is lost: Dynamics holds {self._held(key)}, not {state}, and nothing waits")

    def check_leaving(self, key: str, process: Process) -> None:
        """I3, I4, I5: may this request leave?"""
        now = self.loop.time()
        self.flights = under_way = [flight for flight in self.flights if flight.is_under_way(now)]
        if any(flight.key == key for flight in under_way):
            self.violate(f"I3 two requests for {key} at once")
        circuit = self.database.circuit
        if circuit.state is CircuitState.HALF_OPEN and under_way:
            self.violate("I4 a request leaves while a probe is under way")
        if circuit.state is CircuitState.OPEN and self._has_begun(circuit.opened_at):
            self.violate(f"I5 a request for {key} leaves while the circuit is open")
        if self.plan.spares_workers:
            failures = sum(self.succeeded_at + NEWS_SECONDS < at < now - NEWS_SECONDS for at in self.failed_at)
            if circuit.state is CircuitState.CLOSED and failures >= self.plan.failure_threshold:
                self.violate(f"R3 a request for {key} leaves after {failures} failures in a row")
            if self.silent_from + NEWS_SECONDS < now < self.silent_until:
                self.violate(f"R8 a request for {key} leaves although Dynamics asked for silence")

    def check_circuit(self, before: Circuit, after: Circuit) -> None:
        """R5, R11: a circuit closes by a probe that succeeded, or by a person; it is probed after a whole cool-down."""
        closes = before.state is not CircuitState.CLOSED and after.state is CircuitState.CLOSED
        if closes and (before.state is CircuitState.OPEN or not self.has_probe_succeeded):
            self.violate("R5 the circuit closes although no probe succeeded")
        is_probed = before.state is CircuitState.OPEN and after.state is CircuitState.HALF_OPEN
        if is_probed and not self._has_begun((before.opened_at or EPOCH) + CIRCUIT.cool_down):
            self.violate("R5 a probe is let through before the cool-down is over")

    def hear(self, flight: Flight, said: "Answer | Transient") -> None:
        """An answer reaches a worker."""
        flight.has_ended = True
        if flight.process.is_dead:
            return
        if isinstance(said, Answer) and said.status == 429:
            self.silent_from = self.loop.time()
            self.silent_until = self.silent_from + (said.retry_after_seconds or 0.0)
        elif isinstance(said, Transient) or said.status in (200, 503):
            if flight.left_at > self.changed_at:
                self.failed_at.append(self.loop.time())
        else:
            self.succeeded_at = self.loop.time()
            self.has_probe_succeeded |= flight.is_probe

    def _has_begun(self, moment: datetime | None) -> bool:
        return moment is not None and moment <= self.database.now()

    def _check_arrived(self) -> None:
        """I2: Dynamics holds exactly the newest state of every record that is not left in the queue."""
        for key, state in self.committed.items():
            is_left = key in self.database.open_entries or key in self.settled_by_person
            if not is_left and not self._holds(key, state):
                self.violate(f"I2 {key} is stale: Dynamics holds {self._held(key)}, not {state}")
            if self.plan.is_calm and self.unneeded.get(key, 0) > 0:
                self.violate(f"I6 {key} cost {self.unneeded[key]} requests more than it changed")

    def _held(self, key: str) -> object:
        state = self.dynamics.state(key)
        return GONE if state is None or state["statecode"] == 1 else state["n"]

    def _holds(self, key: str, state: int | None) -> bool:
        return self._held(key) == (GONE if state is None else state)

    # --- users and operators -----------------------------------------------------------------------------------------

    def act(self, action: Action) -> None:
        """Let an action of the plan happen, now or at its point."""
        self.note("plan", str(action)[9:])
        if action.point is not None:
            self.workers[action.worker].ambushes.append(action)
            return
        match action.kind:
            case Kind.CHANGE | Kind.DELETE:
                if action.key not in self.database.locked:
                    self.commit(action)
            case Kind.TRANSACTION:
                if action.key not in self.database.locked:
                    self.database.locked.add(action.key)
                    self.loop.call_later(action.seconds, self.end_transaction, action, context=WORLD)
            case Kind.DYNAMICS:
                self.dynamics_moods.append(action)
                self.loop.call_later(action.seconds, self.dynamics_moods.remove, action, context=WORLD)
            case Kind.DATABASE:
                self.database_moods.append(action)
                self.loop.call_later(action.seconds, self.database_moods.remove, action, context=WORLD)
            case Kind.REPLAY:
                self._replay()
            case Kind.DISCARD:
                self._discard(action.key)
            case Kind.FORCE_OPEN | Kind.FORCE_CLOSED:
                breaker = DynamicsCircuitBreaker(
                    CIRCUIT, ModelCircuitStore(self.database, direct), SimulatedClock(self)
                )
                forced = breaker.force_open() if action.kind is Kind.FORCE_OPEN else breaker.force_closed()
                self.loop.start(Process("operator"), forced)
                self.changed_at = self.loop.time()
                self.failed_at.clear()
            case _:
                self.workers[action.worker].suffer(action)

    def commit(self, action: Action) -> None:
        """A user's transaction commits, and with it the trigger's row."""
        self._state += 1
        self.unneeded[action.key] = self.unneeded.get(action.key, 0) - 1
        self.committed[action.key] = None if action.kind is Kind.DELETE else self._state
        self.settled_by_person.discard(action.key)
        self.database.mark_dirty(action.key)
        self.note("user", f"{action.key} is {self.committed[action.key]}")
        self._notify()
        self.check()

    def end_transaction(self, action: Action) -> None:
        self.database.locked.discard(action.key)
        if action.commits:
            self.commit(action)
        waiting, self.waiting_for_locks = self.waiting_for_locks, []
        for key, go_on in waiting:
            if key == action.key:
                go_on()
            else:
                self.waiting_for_locks.append((key, go_on))

    def _replay(self) -> None:
        """`queue replay --all`, a process of its own."""
        ids = [UUID(entry.id) for entry in self.database.open_entries.values() if entry.status in WAITING_STATUSES]
        if ids:
            operator = Machine(self, "operator")
            self.operators.append(operator.process)
            self.loop.start(operator.process, operator.replay(ids))

    def _discard(self, key: str) -> None:
        entry = self.database.open_entries.get(key)
        if entry is not None and self.database.discard(entry.id):
            self.note("operator", f"discards {key}")
            self.settled_by_person.add(key)
        self.check()

    def _notify(self) -> None:
        if self.plan.notifies:
            for worker in self.workers:
                worker.wake()

    def repair(self) -> None:
        """All trouble is over; in every other history a person replays the queue."""
        self.note("plan", "everything is repaired")
        for worker in self.workers:
            worker.ambushes.clear()
            worker.repair()
        if self.plan.seed % 2:
            self._replay()

    # --- the way to the database -------------------------------------------------------------------------------------

    def to_database(
        self, machine: "Machine", name: str, key: str | None, transaction: Callable[[], Any]
    ) -> "asyncio.Future[Any]":
        """Send a transaction there. Its result comes back, unless something happens."""
        random, loop = self.random, self.loop
        answer = loop.create_future()
        mood = self._database_mood(machine, name)
        there, back = random.random() * 0.008, random.random() * 0.008
        if random.random() < 0.02:
            there *= 40
        match mood:
            case Mood.DOWN | Mood.RESETS | Mood.CUT_OFF:
                seconds = 3.0 if mood is Mood.CUT_OFF else there
                loop.call_later(seconds, self._fail, answer, machine, name, context=WORLD)
                return answer
            case Mood.SLOW:
                there, back = random.random() * 0.8, random.random() * 0.8
            case Mood.SLOW_INSERTS:
                there = 0.3 + random.random()
                if random.random() < 0.5:  # the server's own time-out
                    loop.call_later(min(there, 0.45), self._fail, answer, machine, name, context=WORLD)
                    return answer

        def arrive() -> None:
            if answer.cancelled() and random.random() < 0.5:
                return  # the cancellation was there first
            if key is not None and key in self.database.locked:
                self.waiting_for_locks.append((key, arrive))
                return
            before = self.database.circuit
            result = transaction()
            self._note_circuit(before, machine)
            self.note(machine.name, f"database: {name}")
            self.check()
            machine.reach(name)
            if mood is Mood.LOSES_ANSWERS:
                loop.call_later(back, self._fail, answer, machine, name, context=WORLD)
            else:
                loop.call_later(back, _give, answer, result, context=WORLD)

        loop.call_later(there, arrive, context=WORLD)
        return answer

    def _fail(self, answer: "asyncio.Future[Any]", machine: "Machine", name: str) -> None:
        if not answer.done():
            self.note(machine.name, f"database: {name} FAILED")
            answer.set_exception(DatabaseError("simulated"))

    def _note_circuit(self, before: Circuit, machine: "Machine") -> None:
        circuit = self.database.circuit
        if circuit is before:
            return
        self.check_circuit(before, circuit)
        if circuit.generation != before.generation:
            self.note(machine.name, f"circuit: {circuit.state}, {circuit.failure_count} failures")
            self.changed_at = self.loop.time()
            self.failed_at.clear()
            if circuit.state is CircuitState.HALF_OPEN:
                self.has_probe_succeeded = False
            self._notify()

    def _database_mood(self, machine: "Machine", name: str) -> Mood | None:
        for action in self.database_moods:
            if action.mood is Mood.CUT_OFF and action.worker != machine.number:
                continue
            if action.mood is Mood.SLOW_INSERTS and name != "queue insert":
                continue
            if self.random.random() < action.share:
                return action.mood
        return None

    # --- the way to Dynamics -----------------------------------------------------------------------------------------

    def to_dynamics(
        self, worker: "SimulatedWorker", key: str, state: int | None
    ) -> "tuple[Flight, asyncio.Future[Answer | Transient]]":
        """A request leaves. Its answer comes back, unless something happens."""
        self.requests += 1
        self.unneeded[key] += 1
        self.check_leaving(key, worker.process)
        is_probe = self.database.circuit.state is CircuitState.HALF_OPEN
        flight = Flight(key, worker, worker.process, self.loop.time(), is_probe)
        self.flights.append(flight)
        worker.reach(Point.PROBE if is_probe else Point.REQUEST)
        self.note(worker.name, f"request: {key} = {GONE if state is None else state}")
        answer: asyncio.Future[Answer | Transient] = self.loop.create_future()
        random = self.random
        there = 0.01 + random.random() * (0.1 if random.random() < 0.9 else 1.0)
        self.late_writes += 1
        self.loop.call_later(there, self._reach_dynamics, flight, state, answer, context=WORLD)
        return flight, answer

    def _reach_dynamics(self, flight: Flight, state: int | None, answer: "asyncio.Future[Answer | Transient]") -> None:
        self.late_writes -= 1
        random = self.random
        mood, works_in = self._dynamics_mood(flight), random.random() * 0.05
        match mood:
            case None:
                self._write(works_in, flight, state, answer)
            case Mood.SLOW:
                self._write(random.uniform(0.3, 2 * TIMES.request_seconds), flight, state, answer)
            case Mood.LATE:
                latest = LATE_SECONDS - (self.loop.time() - flight.left_at) - 0.001
                self._write(random.uniform(0.2, 1.0) * latest, flight, state, None)
            case Mood.LOSES_ANSWERS:
                self._write(works_in, flight, state, None)
                self._answer(works_in, flight, answer, Transient("connection_reset"))
            case Mood.SILENT:
                self.note("Dynamics", f"says nothing to {flight.key}")
            case Mood.RESETS:
                self._answer(works_in, flight, answer, Transient("connection_reset"))
            case Mood.CUT_OFF:
                self._answer(works_in, flight, answer, Transient("connection_refused"))
            case Mood.GARBLES:
                self._answer(works_in, flight, answer, Answer(200))
            case _:
                status, retry_after = STATUSES[mood], None
                if mood is Mood.THROTTLES:
                    retry_after = random.uniform(1.0, 6.0)
                said = Fault("status", status=status, retry_after=retry_after).answer()
                error = Answer(status, said.code or None, True, retry_after)
                self._answer(works_in, flight, answer, error)

    def _write(
        self,
        seconds: float,
        flight: Flight,
        state: int | None,
        answer: "asyncio.Future[Answer | Transient] | None",
    ) -> None:
        self.late_writes += 1
        self.loop.call_later(seconds, self._take_effect, flight, state, answer, context=WORLD)

    def _take_effect(
        self, flight: Flight, state: int | None, answer: "asyncio.Future[Answer | Transient] | None"
    ) -> None:
        self.late_writes -= 1
        if state is None:
            said = self.dynamics.apply("PATCH", flight.key, INACTIVE, if_match=True)
        else:
            said = self.dynamics.apply("PATCH", flight.key, {"n": state, **ACTIVE})
        self.note("Dynamics", f"{flight.key} = {self._held(flight.key)}")
        self.check()
        if answer is not None:
            found = Answer(said.status or 0, said.code, said.code is not None)
            self._answer(self.random.random() * 0.1, flight, answer, found)

    def _answer(
        self, seconds: float, flight: Flight, answer: "asyncio.Future[Answer | Transient]", said: Answer | Transient
    ) -> None:
        worker = flight.worker

        def arrive() -> None:
            if not answer.done():
                self.hear(flight, said)
                worker.reach(Point.ANSWER)
                self.note(
                    "Dynamics", f"answers {flight.key}: {said.status if isinstance(said, Answer) else said.error_code}"
                )
                answer.set_result(said)

        self.loop.call_later(seconds, arrive, context=WORLD)

    def _dynamics_mood(self, flight: Flight) -> Mood | None:
        for action in self.dynamics_moods:
            if action.mood is Mood.CUT_OFF and action.worker != flight.worker.number:
                continue
            if action.key and action.key != flight.key:
                continue
            if self.random.random() < action.share:
                return action.mood
        return None


STATUSES = {Mood.DOWN: 503, Mood.REFUSES: 400, Mood.THROTTLES: 429, Mood.UNAUTHORIZED: 401}


def _give(answer: "asyncio.Future[Any]", result: object) -> None:
    if not answer.done():
        answer.set_result(result)


class SimulatedClock:
    """A machine's clocks. Only the wall clock can be wrong."""

    def __init__(self, world: World, skew: float = 0.0) -> None:
        self._world = world
        self.skew = skew

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._world.loop.time() + self.skew)

    def monotonic(self) -> float:
        return self._world.loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Machine:
    """A machine that reaches the database, with one process on it."""

    number: int | None = None
    """Of a worker."""

    def __init__(self, world: World, name: str, skew: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.clock = SimulatedClock(world, skew)
        self.process = Process(name)

    def reach(self, point: str) -> None:
        """It gets there, or what it sent does."""

    async def wire(self, name: str, key: str | None, transaction: Callable[[], Any]) -> Any:
        return await self.world.to_database(self, name, key, transaction)

    async def replay(self, ids: Sequence[UUID]) -> None:
        """What the command does; a lost database ends it, and the rest stays open."""
        world = self.world
        circuits = ModelCircuitStore(world.database, self.wire)
        replay = Replay(
            queue=ModelRetryQueue(world.database, self.wire, world.name),
            breaker=DynamicsCircuitBreaker(world.circuit_settings, circuits, self.clock),
            is_sending=self._is_sending,
            clock=self.clock,
            settings=REPLAY,
        )
        try:
            report = await replay.run(ids, self.name)
            world.note(self.name, f"replayed {report.progress.arrived} of {len(ids)}: {report.end}")
        except DatabaseError:
            world.note(self.name, "the replay ends: the database is lost")
        finally:
            world.operators.remove(self.process)

    async def _is_sending(self) -> bool:
        return bool(await self.wire("look at leases", None, self.world.database.is_sending))


class SimulatedWorker(Machine):
    """A machine on which one worker runs, process after process."""

    number: int

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, f"worker {number}", world.plan.skews[number])
        self.number = number
        self.ambushes: list[Action] = []
        """What happens to it when it gets to some point."""
        self._worker: Worker | None = None
        self._main: asyncio.Task[None] | None = None

    def start(self) -> None:
        """A new process."""
        world = self.world
        self.process = Process(self.name)
        clock = StoppableClock(self.clock)
        wire = self.wire
        outbox = ModelOutbox(world.database, wire, world.name, TIMES.lease_seconds)
        gateway = ModelGateway(self)
        leases = LeasedGateway(gateway, outbox, clock, TIMES)
        circuits = ModelCircuitStore(world.database, wire)
        breaker = DynamicsCircuitBreaker(world.circuit_settings, circuits, clock, TRUST_SECONDS)
        service = HLFDynamicsSyncService(
            breaker=breaker,
            policy=POLICY,
            gateway=leases,
            queue=ModelRetryQueue(world.database, wire, world.name),
            clock=clock,
        )
        settings = WorkerSettings(world.plan.concurrency, POLL_SECONDS, SHUTDOWN_SECONDS)
        self._worker = Worker(
            service=service,
            breaker=breaker,
            outbox=outbox,
            leases=leases,
            read_ahead=gateway.read_ahead,
            clock=clock,
            settings=settings,
        )
        self._main = world.loop.start(self.process, self._run(self._worker))

    async def _run(self, worker: Worker) -> None:
        try:
            await worker.run()
        except Exception as error:
            self.world.violate(f"{self.name} died of {error!r}")

    def wake(self) -> None:
        """A notification arrives."""
        worker, process = self._worker, self.process
        if worker is not None and not process.is_dead:
            self._in_process(worker.wake.set)

    def reach(self, point: str) -> None:
        """It gets there, or what it sent does."""
        for action in self.ambushes:
            if action.point == point:
                self.ambushes.remove(action)
                if action.passes:
                    self.ambushes.append(replace(action, passes=action.passes - 1))
                else:
                    self.world.loop.call_soon(self.world.act, replace(action, point=None), context=WORLD)
                return

    def suffer(self, action: Action) -> None:
        """What the plan does to a worker."""
        if self.process.is_dead or self.process.is_stopped:
            return
        process, loop = self.process, self.world.loop
        match action.kind:
            case Kind.CRASH:
                process.kill()
                loop.call_later(action.seconds, self._start_again, process, context=WORLD)
            case Kind.PAUSE:
                process.stop()
                loop.call_later(action.seconds, self._go_on, process, context=WORLD)
            case Kind.CANCEL if self._main is not None:
                self._in_process(self._main.cancel)
                loop.call_later(SHUTDOWN_SECONDS + action.seconds, self._start_again, process, context=WORLD)
            case Kind.SHUT_DOWN if self._worker is not None:
                self._in_process(self._worker.stop)
                loop.call_later(2 * SHUTDOWN_SECONDS + action.seconds, self._start_again, process, context=WORLD)
            case Kind.CLOCK:
                self.clock.skew += action.seconds

    def repair(self) -> None:
        if self.process.is_stopped:
            self._go_on(self.process)
        if self.process.is_dead:
            self._start_again(self.process)

    def _in_process(self, call: Callable[[], object]) -> None:
        process = self.process
        context = WORLD.copy()
        context.run(_enter, process)
        self.world.loop.call_soon(call, context=context)

    def _go_on(self, process: Process) -> None:
        if process is self.process and process.is_stopped:
            self.world.note(self.name, "goes on")
            self.world.loop.continue_process(process)

    def _start_again(self, process: Process) -> None:
        if process is self.process:
            process.kill()
            self.world.note(self.name, "is started")
            self.start()


def _enter(process: Process) -> None:
    from simulation.loop import PROCESS

    PROCESS.set(process)


class ModelGateway:
    """`dynamics.gateway` and `postgres.records`: a row is read, and a request made of it."""

    def __init__(self, worker: SimulatedWorker) -> None:
        self._worker = worker
        self._ahead: dict[tuple[int, int], tuple[int | None, float]] = {}

    async def read_ahead(self, operations: Sequence[SyncOperation]) -> None:
        world = self._worker.world
        read_at = world.loop.time()
        keys = [operation.record_key for operation in operations]
        states = await self._read(keys)
        for operation, state in zip(operations, states, strict=True):
            self._ahead[operation.outbox_id, operation.version] = state, read_at

    async def prepare(self, operation: SyncOperation) -> Request | NothingToSend | Unsendable | NotReady:
        state, read_at = self._ahead.pop((operation.outbox_id, operation.version), (None, float("-inf")))
        if read_at <= self._worker.world.loop.time() - ROWS_AHEAD_SECONDS:
            (state,) = await self._read([operation.record_key])
        return ModelRequest(self._worker, operation, state)

    async def renew_token(self) -> None:
        """There is none."""

    async def _read(self, keys: Sequence[str]) -> list[int | None]:
        world = self._worker.world
        found: list[int | None] = await world.to_database(
            self._worker, "read rows", None, lambda: [world.committed.get(key) for key in keys]
        )
        return found


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request that is ready to leave."""

    worker: SimulatedWorker
    operation: SyncOperation
    state: int | None

    async def send(self) -> Outcome:
        flight, answer = self.worker.world.to_dynamics(self.worker, self.operation.record_key, self.state)
        try:
            said = await answer
        finally:
            flight.has_ended = True
        if isinstance(said, Transient):
            return said
        return classify_removal(said) if self.state is None else classify_write(said)


def simulate(plan: Plan, tell: Callable[[float, str, str], None] | None = None) -> World:
    """Let one history happen. The engine's own log goes into the time line, too."""

    def log(logger: object, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        words = " ".join(f"{name}={value}" for name, value in event.items() if name not in ("event", "level"))
        world.note("log", f"{event['event']} {words}")
        raise structlog.DropEvent

    world = World(plan, tell)
    if tell is None:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    else:
        structlog.configure(processors=[log])
    try:
        world.run()
        world.loop.close()
    finally:
        structlog.reset_defaults()
    return world
