"""A backlog that real workers drain, against a Dynamics that limits them as the real one does, on a simulated clock."""

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random

import structlog
from rich.console import Console
from rich.table import Table

from dynamics_sync.core.circuit import CircuitSettings
from dynamics_sync.core.operation import Applied, FailedAttempt, OperationType, SyncOperation
from dynamics_sync.core.outcome import Answer, Outcome, classify_write
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.dynamics.limits import hints_from
from dynamics_sync.simulator.errors import DataverseError
from dynamics_sync.simulator.limits import LimitKeeper, Limits
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.clock import StoppableClock
from dynamics_sync.sync.lease import LeasedGateway, LeaseTimes
from dynamics_sync.sync.memory import InMemoryCircuitStore, InMemoryRetryQueue
from dynamics_sync.sync.pacer import PacedClock, PacedGateway, Pacer
from dynamics_sync.sync.ports import Claim, Prepared
from dynamics_sync.sync.service import HLFDynamicsSyncService
from dynamics_sync.sync.worker import Worker, WorkerSettings
from simulation.loop import Process, SimulationLoop
from simulation.machines import SimulatedClock
from simulation.stores import TABLE, Database, ModelPaceStore, direct

USER = "the application user"


@dataclass(frozen=True, slots=True)
class Drain:
    """How a backlog was drained."""

    records: int
    seconds: float
    """Of simulated time."""
    requests: int
    refused_at: Sequence[float]
    """When Dynamics answered 429."""
    queued: int

    def most_refused(self, window_seconds: float) -> int:
        """429s in the worst of all windows."""
        return max(
            (sum(at <= other < at + window_seconds for other in self.refused_at) for at in self.refused_at), default=0
        )


class Backlog:
    """An outbox in which records wait that nobody changes any more. Leases never run out here."""

    def __init__(self, clock: SimulatedClock, circuits: InMemoryCircuitStore, records: int) -> None:
        self._clock = clock
        self._circuits = circuits
        self._claims = 0
        self.left = records
        self._waiting = deque(
            SyncOperation(TABLE, str(number), OperationType.UPSERT, number, outbox_id=number)
            for number in range(records)
        )

    async def claim(self, limit: int) -> Claim:
        taken = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
        self._claims += 1
        claim_id = str(self._claims)
        return Claim([replace(each, claim_id=claim_id) for each in taken], await self._circuits.load())

    async def renew(self, operations: Sequence[SyncOperation]) -> AbstractSet[tuple[int, str | None]]:
        return {(operation.outbox_id, operation.claim_id) for operation in operations}

    async def settle(self, arrived: Sequence[tuple[SyncOperation, Applied]]) -> None:
        self.left -= len(arrived)

    async def release(
        self,
        operation: SyncOperation,
        attempts: int,
        failures: Sequence[FailedAttempt] = (),
        unanswered: bool = False,
    ) -> None:
        self._waiting.append(operation)

    async def resend_unanswered(self) -> None:
        """None is."""


class LimitedDynamics:
    """Answers after the time that the records take, if the limits allow."""

    def __init__(self, loop: SimulationLoop, limits: Limits, random: Random) -> None:
        self._loop = loop
        self._random = random
        self._keeper = LimitKeeper(limits, loop.time)
        self.requests = 0
        self.refused_at: list[float] = []

    async def write(self, count: int) -> tuple[Answer, dict[str, str]]:
        """Write so many records."""
        self.requests += 1
        await asyncio.sleep(0.01)
        try:
            self._keeper.begin(USER)
        except DataverseError as error:
            self.refused_at.append(self._loop.time())
            wait_seconds = float(error.headers["Retry-After"])
            return Answer(error.status, error.code, True, wait_seconds), self._keeper.headers(USER)
        seconds = (0.06 + 0.004 * count) * self._random.uniform(0.8, 1.5)
        await asyncio.sleep(seconds)
        self._keeper.end(USER, seconds)
        return Answer(204), self._keeper.headers(USER)


class LimitedGateway:
    """A way to it, for requests of some size. Rows need no reading here."""

    def __init__(self, dynamics: LimitedDynamics, together: int) -> None:
        self.dynamics = dynamics
        self._together = together
        self.pacer: Pacer | None = None

    def most_together(self, source_table: str) -> int:
        return self._together

    async def prepare(self, operations: Sequence[SyncOperation], *, one_by_one: bool = False) -> Prepared:
        count = min(len(operations), self._together)
        return Prepared(LimitedRequest(self, count), range(count))

    async def renew_token(self) -> None:
        """There is none."""


@dataclass(frozen=True, slots=True)
class LimitedRequest:
    gateway: LimitedGateway
    count: int

    async def send(self) -> Sequence[Outcome]:
        answer, headers = await self.gateway.dynamics.write(self.count)
        if self.gateway.pacer is not None:
            self.gateway.pacer.hear(hints_from(headers))
        return [classify_write(answer)] * self.count

    def alone(self) -> "LimitedRequest":
        return replace(self, count=1)


def drain(records: int, *, together: int, workers: int, limits: Limits, seed: int = 0) -> Drain:
    """Let workers drain a backlog, with requests for so many records each."""
    loop = SimulationLoop()
    clock = SimulatedClock(loop)
    dynamics = LimitedDynamics(loop, limits, Random(seed))
    circuits = InMemoryCircuitStore(clock)
    backlog = Backlog(clock, circuits, records)
    database = Database(loop.time, late_seconds=180.0)
    queue = InMemoryRetryQueue()
    times = LeaseTimes(lease_seconds=90.0, prepare_seconds=10.0, request_seconds=35.0)
    for number in range(workers):
        stoppable = StoppableClock(clock)
        pacer = Pacer(ModelPaceStore(database, direct), stoppable, 48, f"worker {number}")
        gateway = LimitedGateway(dynamics, together)
        gateway.pacer = pacer
        leases = LeasedGateway(PacedGateway(gateway, pacer, stoppable), backlog, stoppable, times)
        breaker = DynamicsCircuitBreaker(CircuitSettings(notice_seconds=0.5), circuits, stoppable, trust_seconds=0.1)
        worker = Worker(
            service=HLFDynamicsSyncService(
                breaker=breaker, policy=RetryPolicy(), gateway=leases, queue=queue, clock=PacedClock(stoppable, pacer)
            ),
            breaker=breaker,
            outbox=backlog,
            leases=leases,
            pacer=pacer,
            read_ahead=_read_ahead,
            clock=stoppable,
            settings=WorkerSettings(concurrency=48),
        )
        loop.start(Process(f"worker {number}"), worker.run())
    loop.run(lambda: backlog.left == 0, end=1_000_000.0)
    seconds = loop.time()
    loop.close()
    return Drain(records, seconds, dynamics.requests, dynamics.refused_at, len(queue.entries))


def main() -> None:
    """A backlog drained one by one: `make drain RECORDS=… WORKERS=…`."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    records, workers = int(os.environ.get("RECORDS") or 200_000), int(os.environ.get("WORKERS") or 3)
    limits = Limits(dop_hint=10)
    drained = drain(records, together=1, workers=workers, limits=limits)
    allowed = limits.requests * drained.seconds / limits.window_seconds
    table = Table("records", "workers", "simulated time", "requests", "of what the limits allow", "429s", "in a window")
    table.add_row(
        f"{records:,}",
        str(workers),
        str(timedelta(seconds=round(drained.seconds))),
        f"{drained.requests:,}",
        f"{drained.requests / allowed:.0%}",
        str(len(drained.refused_at)),
        f"at most {drained.most_refused(limits.window_seconds)}",
    )
    Console().print(table)


async def _read_ahead(operations: Sequence[SyncOperation]) -> None:
    """Rows need no reading here."""


if __name__ == "__main__":
    main()
