"""What goes wrong: faults by name, each from its beginning to its repair. Lanes of them run side by side."""

import asyncio
import contextlib
import signal
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import psycopg

from chaos.load import Load, patient
from chaos.parts import CrashingPostgres, Diary, Dynamics, Road, stop
from chaos.workers import Worker
from dynamics_sync.core.errors import DatabaseError
from support import commands

CUT_ALL = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname is not null"

RESYNC = "select dynamics_sync.resync('public.certifications')"

LOCK_QUEUE = "lock table public.dynamics_sync_retry_queue in access exclusive mode"

KILL, PAUSE = "kill -9 at any moment", "SIGSTOP past the lease"
CRASH, CUT = "PostgreSQL crash", "all database connections terminated"
RESET_DATABASE, RESET_DYNAMICS = "database connections reset", "Dynamics connections reset"
ROAD_KILLED, DYNAMICS_KILLED = "road to Dynamics killed", "simulator killed, then resync"
QUEUE_LOCKED, REPLAY = "queue locked", "queue replay --all"
NO_DATABASE, NO_DYNAMICS, NO_NETWORK = "cut off from the database", "cut off from Dynamics", "cut off from both"
NO_ANSWERS = "cut off from answers"

PARTITIONS = (NO_DATABASE, NO_DYNAMICS, NO_NETWORK, NO_ANSWERS)
WEATHER = (
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503, "share": 1.0},
    {"kind": "status", "status": 429, "retry_after": 1},
    {"kind": "status", "status": 400},
    {"kind": "delay"},
    {"kind": "timeout"},
    {"kind": "reset"},
    {"kind": "reset_after_write"},
    {"kind": "garbled"},
)


def name_of(weather: dict[str, object]) -> str:
    return f"Dynamics: {weather['kind']} {weather.get('status', '')}".strip()


WAIT_FOR_REQUESTS_SECONDS = 3.0
"""How long a fault of Dynamics waits for somebody to meet it."""

REPLAY_SECONDS = 15.0
"""How long an operator waits."""

Fault = Callable[[Random], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things last and what lies between, in seconds."""

    weather: tuple[float, float]
    partition: tuple[float, float]
    rest: tuple[float, float]
    slow: tuple[float, float]
    """A delayed answer; some longer than a request may take."""
    late: float
    """For how long the product must reckon with a request that was never answered: longer than a partition, and than
    the pause that TCP makes before it sends once more what got lost in one."""


@dataclass
class Faults:
    """Everything that can be broken."""

    postgres: CrashingPostgres
    dynamics: Dynamics
    to_database: Road
    to_dynamics: Road
    workers: Sequence[Worker]
    load: Load
    diary: Diary
    pace: Pace
    lease_seconds: float
    _simulator_is_ours: asyncio.Lock = field(default_factory=asyncio.Lock)

    def lanes(self, *, with_partitions: bool) -> list[dict[str, Fault]]:
        """Faults of one lane come one after the other."""
        machines: dict[str, Fault] = {KILL: self.kill, PAUSE: self.pause}
        servers: dict[str, Fault] = {
            CRASH: self.crash,
            CUT: self.cut,
            RESET_DATABASE: self.reset_database,
            RESET_DYNAMICS: self.reset_dynamics,
            ROAD_KILLED: self.kill_road,
            DYNAMICS_KILLED: self.kill_dynamics,
            QUEUE_LOCKED: self.lock_queue,
            REPLAY: self.replay,
        }
        weather = {name_of(each): self._weather(each) for each in WEATHER}
        partitions = {name: self._partition(name) for name in PARTITIONS} if with_partitions else {}
        return [lane for lane in (machines, servers, weather, partitions) if lane]

    async def kill(self, random: Random) -> None:
        worker = random.choice(self.workers)
        if worker.kill():
            self.diary.note(KILL, worker.name)

    async def pause(self, random: Random) -> None:
        """Stopped, with whatever is under way, until its leases are over and others have what it held."""
        while not (sending := [worker for worker in self.workers if worker.is_sending]):
            await asyncio.sleep(0.1)
        worker = random.choice(sending)
        seconds = self.lease_seconds + random.uniform(0.2, 1.5)
        self.diary.note(PAUSE, f"{worker.name}, {seconds:.1f} s")
        with worker.stopped():
            await asyncio.sleep(seconds)
        self.diary.note("SIGCONT", worker.name)

    async def crash(self, random: Random) -> None:
        self.diary.note(CRASH)
        await asyncio.to_thread(self.postgres.crash)
        await asyncio.sleep(random.uniform(0.0, 1.5))
        await asyncio.to_thread(self.postgres.start)
        self.diary.note("PostgreSQL is back")

    async def cut(self, random: Random) -> None:
        async with patient(self.load.database) as connection:
            await connection.execute(CUT_ALL)
        self.diary.note(CUT)

    async def reset_database(self, random: Random) -> None:
        self.to_database.reset()
        self.diary.note(RESET_DATABASE)

    async def reset_dynamics(self, random: Random) -> None:
        self.to_dynamics.reset()
        self.diary.note(RESET_DYNAMICS)

    async def kill_road(self, random: Random) -> None:
        """Connections die in the middle of a request, and nothing listens for a while; Dynamics keeps its records."""
        self.diary.note(ROAD_KILLED)
        await self.to_dynamics.close()
        await asyncio.sleep(random.uniform(0.0, 1.0))
        await self.to_dynamics.open()

    async def kill_dynamics(self, random: Random) -> None:
        """Dynamics itself dies and loses its records, as one that is restored from an old backup does. The product
        cannot know that; a person says so with `resync`."""
        async with self._simulator_is_ours:
            self.diary.note(DYNAMICS_KILLED)
            await self.dynamics.kill()
            await asyncio.sleep(random.uniform(0.0, 0.5))
            await self.dynamics.start()
        while not self.dynamics.whole:
            try:
                async with patient(self.load.database) as connection:
                    await connection.execute(RESYNC)
            except psycopg.Error:
                continue
            self.diary.note("resync")
            self.dynamics.whole = True

    async def lock_queue(self, random: Random) -> None:
        """An entry cannot be written within 500 ms."""
        async with patient(self.load.database) as connection:
            await connection.execute("begin")
            await connection.execute(LOCK_QUEUE)
            self.diary.note(QUEUE_LOCKED)
            await asyncio.sleep(random.uniform(0.5, 1.0))
            await connection.execute("rollback")

    async def replay(self, random: Random) -> None:
        """What an operator does now and then."""
        self.diary.note(REPLAY)
        await self.replay_all()

    async def replay_all(self) -> bool:
        """`queue replay --all --yes`, whose patience with a Dynamics that is down is longer than ours: then Ctrl-C.
        False where it did not get to its end."""
        process = await asyncio.create_subprocess_exec(
            *(*commands.COMMAND, "queue", "replay", "--all", "--yes"),
            cwd=self.dynamics.directory,
            env=commands.environment({"database_url": self.load.database}),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
        )
        told = asyncio.create_task(process.communicate())
        try:
            await asyncio.wait({told}, timeout=REPLAY_SECONDS)
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
            _, errors = await told
        finally:
            await stop(process)
        if b"Traceback" in errors:
            self.diary.unforeseen.append(f"queue replay\n{errors.decode()[-3000:]}")
        return process.returncode == 0

    def _weather(self, declared: dict[str, object]) -> Fault:
        async def weather(random: Random) -> None:
            fault = dict(declared)
            faults = [fault]
            match fault:
                case {"kind": "delay"}:
                    # Some only: so a later request overtakes an earlier one that its sender has given up.
                    fault |= {"seconds": random.uniform(*self.pace.slow), "share": 0.3}
                case {"status": 400}:
                    keys = [*self.load.often_changed, *random.sample(self.load.keys, 10)]
                    faults = [fault | {"key": key} for key in keys]
                case _:
                    fault.setdefault("share", random.choice((0.1, 0.3, 1.0)))
            async with self._simulator_is_ours:
                self.diary.note(name_of(declared), f"{fault.get('share', '')}".strip())
                await self.dynamics.weather(*faults)
                sent = self._sent()
                await asyncio.sleep(random.uniform(*self.pace.weather))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WAIT_FOR_REQUESTS_SECONDS):
                        while self._sent() < sent + 5:
                            await asyncio.sleep(0.1)
                await self.dynamics.weather()

        return weather

    def _sent(self) -> int:
        """How many requests have left the workers so far."""
        return sum(worker.sent for worker in self.workers)

    def _partition(self, name: str) -> Fault:
        ports = {
            NO_DATABASE: [self.to_database.port],
            NO_DYNAMICS: [self.to_dynamics.port],
            NO_NETWORK: [self.to_database.port, self.to_dynamics.port],
            NO_ANSWERS: [self.to_dynamics.port],
        }

        async def partition(random: Random) -> None:
            worker = random.choice([worker for worker in self.workers if worker.namespace])
            assert worker.namespace is not None
            seconds = random.uniform(*self.pace.partition)
            self.diary.note(name, f"{worker.name}, {seconds:.1f} s")
            with worker.namespace.cut(ports[name], answers_only=name == NO_ANSWERS):
                await asyncio.sleep(seconds)
            self.diary.note("healed", worker.name)

        return partition


async def run_lane(lane: dict[str, Fault], random: Random, pace: Pace, is_over: Callable[[bool], bool]) -> None:
    """One after the other, each as often as the others, in an order of chance; `is_over` is told whether all had
    their turn."""
    done: set[str] = set()
    while True:
        for name in random.sample(sorted(lane), len(lane)):
            if is_over(done == set(lane)):
                return
            try:
                await lane[name](random)
                done.add(name)
            except (psycopg.Error, DatabaseError):
                pass  # another lane took the database away meanwhile: this one's turn comes again
            await asyncio.sleep(random.uniform(*pace.rest))
