"""Machines: the real engine of a worker on one, a command of a person on another."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import (
    NothingToSend,
    NotReady,
    Outcome,
    Transient,
    Unsendable,
    classify_removal,
    classify_write,
)
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.clock import StoppableClock
from dynamics_sync.sync.lease import LeasedGateway
from dynamics_sync.sync.ports import Request
from dynamics_sync.sync.replay import Replay
from dynamics_sync.sync.service import HLFDynamicsSyncService
from dynamics_sync.sync.worker import Worker, WorkerSettings
from simulation.loop import PROCESS, WORLD, Process
from simulation.plan import Action, Kind
from simulation.stores import EPOCH, ModelCircuitStore, ModelOutbox, ModelRetryQueue

if TYPE_CHECKING:
    from simulation.world import World


class SimulatedClock:
    """A machine's clocks. Only the wall clock can be wrong."""

    def __init__(self, world: "World", skew: float = 0.0) -> None:
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

    number = -1
    """Of a worker: 0 or more."""

    def __init__(self, world: "World", name: str, skew: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.clock = SimulatedClock(world, skew)
        self.process = Process(name)

    def reach(self, point: str) -> None:
        """It gets there, or what it sent does."""

    async def wire(self, name: str, key: str | None, transaction: Callable[[], Any]) -> Any:
        return await self.world.to_database.send(self, name, key, transaction)

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
        outbox = ModelOutbox(world.database, wire, world.name, world.knobs.leases.lease_seconds)
        gateway = ModelGateway(self)
        leases = LeasedGateway(gateway, outbox, clock, world.knobs.leases)
        circuits = ModelCircuitStore(world.database, wire)
        breaker = DynamicsCircuitBreaker(world.circuit_settings, circuits, clock, world.knobs.trust_seconds)
        service = HLFDynamicsSyncService(
            breaker=breaker,
            policy=world.knobs.policy,
            gateway=leases,
            queue=ModelRetryQueue(world.database, wire, world.name),
            clock=clock,
        )
        settings = WorkerSettings(world.plan.concurrency, world.knobs.poll_seconds, world.knobs.shutdown_seconds)
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
        if read_at <= self._worker.world.loop.time() - self._worker.world.knobs.rows_ahead_seconds:
            (state,) = await self._read([operation.record_key])
        return ModelRequest(self._worker, operation, state)

    async def renew_token(self) -> None:
        """There is none."""

    async def _read(self, keys: Sequence[str]) -> list[int | None]:
        world = self._worker.world
        found: list[int | None] = await world.to_database.send(
            self._worker, "read rows", None, lambda: [world.promises.committed.get(key) for key in keys]
        )
        return found


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request that is ready to leave."""

    worker: SimulatedWorker
    operation: SyncOperation
    state: int | None

    async def send(self) -> Outcome:
        flight, answer = self.worker.world.to_dynamics.send(self.worker, self.operation.record_key, self.state)
        try:
            said = await answer
        finally:
            flight.has_ended = True
        if isinstance(said, Transient):
            return said
        return classify_removal(said) if self.state is None else classify_write(said)
