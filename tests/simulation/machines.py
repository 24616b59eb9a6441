"""Machines: the real engine of a worker on one, a command of a person on another."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import (
    Accepted,
    AlreadyThere,
    Answer,
    Mismatch,
    NoRequest,
    Outcome,
    TooMuch,
    Transient,
    classify_bulk,
    classify_removal,
    classify_write,
    shared_by_batch,
    shared_by_bulk,
)
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.clock import StoppableClock
from dynamics_sync.sync.lease import LeasedGateway
from dynamics_sync.sync.pacer import PacedClock, PacedGateway, Pacer
from dynamics_sync.sync.ports import Prepared
from dynamics_sync.sync.replay import Replay
from dynamics_sync.sync.service import HLFDynamicsSyncService
from dynamics_sync.sync.worker import Worker, WorkerSettings
from simulation.loop import PROCESS, WORLD, Process, SimulationLoop
from simulation.networks import Said, Writes
from simulation.plan import Action, Kind, Point
from simulation.stores import EPOCH, ModelCircuitStore, ModelOutbox, ModelPaceStore, ModelRetryQueue

if TYPE_CHECKING:
    from simulation.world import World


class SimulatedClock:
    """A machine's clocks. Only the wall clock can be wrong."""

    def __init__(self, loop: SimulationLoop, skew: float = 0.0) -> None:
        self._loop = loop
        self.skew = skew

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._loop.time() + self.skew)

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Machine:
    """A machine that reaches the database, with one process on it."""

    number = -1
    """Of a worker: 0 or more."""

    def __init__(self, world: "World", name: str, skew: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.clock = SimulatedClock(world.loop, skew)
        self.process = Process(name)

    def reach(self, point: str) -> None:
        """It gets there, or what it sent does."""

    async def wire(self, name: str, key: str | None, transaction: Callable[[], Any]) -> Any:
        return await self.world.to_database.send(self, name, transaction)

    async def replay(self, ids: Sequence[UUID]) -> None:
        """What the command does; a lost database ends it, and the rest stays open."""
        world = self.world
        circuits = ModelCircuitStore(world.database, self.wire)
        replay = Replay(
            queue=ModelRetryQueue(world.database, self.wire, world.name),
            breaker=DynamicsCircuitBreaker(world.circuit_settings, circuits, self.clock),
            is_sending=self._is_sending,
            clock=self.clock,
            settings=world.knobs.replay,
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

    def __init__(self, world: "World", number: int) -> None:
        super().__init__(world, f"worker {number}", world.plan.skews[number])
        self.number = number
        self.is_prepared = False
        """A request is ready, and has not left yet."""
        self._worker: Worker | None = None
        self._main: asyncio.Task[None] | None = None

    def start(self) -> None:
        """A new process."""
        world = self.world
        self.process = Process(self.name)
        self.is_prepared = False
        clock = StoppableClock(self.clock)
        wire = self.wire
        outbox = ModelOutbox(world.database, wire, world.name, world.knobs.leases.lease_seconds, world.plan.taken_from)
        gateway = ModelGateway(self)
        pacer = Pacer(ModelPaceStore(world.database, wire), clock, world.plan.concurrency, self.name)
        paced = PacedGateway(gateway, pacer, clock)
        leases = LeasedGateway(paced, outbox, clock, world.knobs.leases)
        circuits = ModelCircuitStore(world.database, wire)
        breaker = DynamicsCircuitBreaker(world.circuit_settings, circuits, clock, world.knobs.trust_seconds)
        service = HLFDynamicsSyncService(
            breaker=breaker,
            policy=world.policy,
            gateway=leases,
            queue=ModelRetryQueue(world.database, wire, world.name),
            clock=PacedClock(clock, pacer),
        )
        settings = WorkerSettings(world.plan.concurrency, world.knobs.poll_seconds, world.knobs.shutdown_seconds)
        self._worker = Worker(
            service=service,
            breaker=breaker,
            outbox=outbox,
            leases=leases,
            pacer=pacer,
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
        self.world.reach(self.number, point)
        if point == Point.READ_CIRCUIT and self.is_prepared:
            self.world.reach(self.number, Point.PERMIT)

    def suffer(self, action: Action) -> None:
        """What the plan does to a worker."""
        if self.process.is_dead or self.process.is_stopped:
            return
        process, loop, shutdown_seconds = self.process, self.world.loop, self.world.knobs.shutdown_seconds
        match action.kind:
            case Kind.CRASH:
                process.kill()
                loop.call_later(action.seconds, self._start_again, process, context=WORLD)
            case Kind.PAUSE:
                process.stop()
                loop.call_later(action.seconds, self._go_on, process, context=WORLD)
            case Kind.CANCEL if self._main is not None:
                self._in_process(self._main.cancel)
                loop.call_later(shutdown_seconds + action.seconds, self._start_again, process, context=WORLD)
            case Kind.SHUT_DOWN if self._worker is not None:
                self._in_process(self._worker.stop)
                loop.call_later(2 * shutdown_seconds + action.seconds, self._start_again, process, context=WORLD)
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
        context.run(PROCESS.set, process)
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


_Row: TypeAlias = tuple[int | None, bytes | None]
"""A row's state, and what Dynamics is known to hold."""


class ModelGateway:
    """`dynamics.gateway` and `postgres.records`: rows are read, and a request made of them."""

    def __init__(self, worker: SimulatedWorker) -> None:
        self._worker = worker
        self._size = worker.world.plan.bundle
        self._ahead: dict[tuple[int, int], tuple[_Row, float]] = {}

    def most_together(self, source_table: str) -> int:
        return self._size

    async def read_ahead(self, operations: Sequence[SyncOperation]) -> None:
        read_at = self._worker.world.loop.time()
        rows = await self._read([operation.record_key for operation in operations])
        for operation, row in zip(operations, rows, strict=True):
            self._ahead[operation.outbox_id, operation.version] = row, read_at

    async def prepare(self, operations: Sequence[SyncOperation], *, one_by_one: bool = False) -> Prepared:
        world = self._worker.world
        fresh = world.loop.time() - world.knobs.rows_ahead_seconds
        rows: dict[int, _Row] = {}
        for place, operation in enumerate(operations):
            row, read_at = self._ahead.pop((operation.outbox_id, operation.version), ((None, None), float("-inf")))
            if read_at > fresh:
                rows[place] = row
        missing = [place for place in range(len(operations)) if place not in rows]
        if missing:
            read = await self._read([operations[place].record_key for place in missing])
            rows |= zip(missing, read, strict=True)
        instead: dict[int, NoRequest] = {
            place: AlreadyThere()
            for place, (state, known) in rows.items()
            if known is not None and known == _hash(state)
        }
        places = sorted(rows.keys() - instead.keys())
        upserts = [place for place in places if rows[place][0] is not None]
        if len(upserts) > 1 and not one_by_one:
            places = upserts
        else:
            one_by_one = len(places) > 1
        places = places[: self._size]
        if not places:
            return Prepared(instead=instead)
        self._worker.is_prepared = True
        writes = [(operations[place].record_key, rows[place][0]) for place in places]
        request = ModelRequest(self._worker, self, writes, one_by_one and len(writes) > 1, self._size)
        return Prepared(request, places, instead)

    def learn(self, outcome: Outcome, count: int) -> None:
        """How large requests may be."""
        too_much = isinstance(outcome, TooMuch)
        self._size = max(count // 2, 1) if too_much else min(self._size + 1, self._worker.world.plan.bundle)

    async def renew_token(self) -> None:
        """There is none."""

    async def _read(self, keys: Sequence[str]) -> list[_Row]:
        world = self._worker.world
        found: list[_Row] = await world.to_database.send(
            self._worker,
            "read rows",
            lambda: [(world.promises.committed.get(key), world.database.known_payload(key)) for key in keys],
        )
        return found


def _hash(state: int | None) -> bytes | None:
    return None if state is None else str(state).encode()


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request that is ready to leave."""

    worker: SimulatedWorker
    gateway: ModelGateway
    writes: Writes
    one_by_one: bool
    most: int
    """As many records would have had room in it."""

    async def send(self) -> Sequence[Outcome]:
        self.worker.is_prepared = False
        network = self.worker.world.to_dynamics
        flight, answer = network.send(self.worker, self.writes, one_by_one=self.one_by_one, most=self.most)
        try:
            outcomes = self.outcomes(await answer)
        finally:
            flight.has_ended = True
        self.gateway.learn(outcomes[-1], len(self.writes))
        return outcomes

    def outcomes(self, said: Said) -> Sequence[Outcome]:
        """For each record."""
        count = len(self.writes)
        if isinstance(said, list):
            return [_outcome(write, each) for write, each in zip(self.writes, said, strict=True)]
        if self.one_by_one:
            whole = said if isinstance(said, Transient) else classify_bulk(said) if said.status != 200 else Mismatch()
            return shared_by_batch(whole, count)
        if isinstance(said, Transient):
            return [said] * count
        if count == 1:
            return [_outcome(self.writes[0], said)]
        whole = classify_bulk(said)
        if isinstance(whole, Accepted):
            return [_outcome(write, said) for write in self.writes]
        return shared_by_bulk(whole, count)

    def alone(self) -> "ModelRequest":
        return replace(self, writes=self.writes[:1], one_by_one=False)


def _outcome(write: tuple[str, int | None], said: Answer) -> Outcome:
    state = write[1]
    outcome = classify_removal(said) if state is None else classify_write(said)
    return replace(outcome, payload_hash=_hash(state)) if isinstance(outcome, Accepted) else outcome
