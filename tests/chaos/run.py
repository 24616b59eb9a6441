"""One run: everything is started, loaded and broken, then repaired and drained; then the history is judged."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from uuid import UUID

import aiohttp
import psycopg

from chaos.checker import Violation, check, late_writes, overwritten
from chaos.faults import Faults, Pace, run_lane
from chaos.history import History, Look
from chaos.load import NOTE_CIRCUIT, PREPARE, Load, circuit_history, committed, look, patient, queued
from chaos.namespaces import Namespace, namespaces, why_not
from chaos.parts import CrashingPostgres, Diary, Dynamics, Road, own_postgres
from chaos.preamble import TRUCE, Point, lease_seconds
from chaos.workers import Worker, WorkerSettings, requests_of
from dynamics_sync.postgres.connections import Connection
from dynamics_sync.postgres.migrate import migrate
from support.postgres import EVERYTHING

REQUEST_TIMEOUT_SECONDS = 0.8
REQUEST_SECONDS = 1.0
COOL_DOWN_SECONDS = 1.0
LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 40.0
"""How long a run goes on for what has not happened yet."""
DRAIN_SECONDS = 90.0
"""By then everything that was repaired must have drained."""

WAITING = """
select (select count(*) from dynamics_sync.outbox) + (select count(*) from dynamics_sync.changes)
  + (select count(*) from dynamics_sync.unanswered)
"""

SHORT = Pace(weather=(0.5, 0.8), partition=(1.5, 2.0), rest=(0.1, 0.3), slow=(0.9, 1.2), late=4.0)
LONG = Pace(weather=(0.3, 2.5), partition=(1.0, 5.0), rest=(0.5, 4.0), slow=(0.4, 2.0), late=9.0)


@dataclass(frozen=True, slots=True)
class ChaosSettings:
    """What a person can choose."""

    seed: int
    duration_seconds: float = 600.0
    workers: int = 4
    users: int = 4
    records: int = 200
    server: str = "pg18"
    pace: Pace = field(default=LONG)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run."""

    settings: ChaosSettings
    history: History
    violations: Sequence[Violation]
    diary: Diary
    partitions: str | None
    """Why there were none; None if there were."""
    drained: bool
    healed: int
    late: int
    queued: Mapping[str, int]
    """Entries of the queue, by status."""

    @property
    def held(self) -> bool:
        return self.drained and not self.violations and not self.diary.unforeseen


Progress = Callable[[float, str], None]


async def run(settings: ChaosSettings, tell: Progress = lambda seconds, text: None) -> Result:
    """One run, whose chances all come from the seed. (Processes run as fast as the machine lets them, so a seed
    repeats the same faults, not the same interleaving.)"""
    reason = why_not()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="dynamics-sync-chaos-")))
        cables = stack.enter_context(namespaces((settings.workers + 1) // 2)) if reason is None else []
        postgres = await asyncio.to_thread(stack.enter_context, own_postgres(settings.server))
        await migrate(postgres.url, EVERYTHING)
        async with AsyncExitStack() as running:
            http = await running.enter_async_context(aiohttp.ClientSession())
            dynamics = Dynamics(directory, http)
            running.push_async_callback(dynamics.stop)
            await dynamics.start()
            stage = _Stage(settings, directory, cables, postgres, dynamics)
            for road in (stage.to_database, stage.to_dynamics):
                running.push_async_callback(road.close)
                await road.open()
            return await stage.perform(tell, reason)


class _Stage:
    """A run between its start and its end."""

    def __init__(
        self,
        settings: ChaosSettings,
        directory: Path,
        cables: Sequence[Namespace],
        postgres: CrashingPostgres,
        dynamics: Dynamics,
    ) -> None:
        self.settings = settings
        self.postgres = postgres
        self.dynamics = dynamics
        self.cables = cables
        self.diary = Diary()
        self.looks: list[Look] = []
        host = cables[0].here if cables else "127.0.0.1"
        self.to_database = Road(int(postgres.url.rsplit(":", 1)[1].split("/")[0]), host)
        self.to_dynamics = Road(dynamics.port, host)
        given = WorkerSettings(
            directory,
            f"{postgres.url.rsplit('@', 1)[0]}@{host}:{self.to_database.port}/postgres",
            f"http://{host}:{self.to_dynamics.port}",
            REQUEST_TIMEOUT_SECONDS,
            REQUEST_SECONDS,
            settings.pace.late,
            COOL_DOWN_SECONDS,
        )
        self.workers = [
            Worker(
                f"worker {number + 1}",
                given,
                self.diary,
                self._random(f"worker {number}"),
                cables[number] if number < len(cables) else None,
            )
            for number in range(settings.workers)
        ]
        keys = self._random("keys")
        self.load = Load(
            postgres.url,
            [str(UUID(int=keys.getrandbits(128), version=4)) for _ in range(settings.records)],
            self.diary.counts,
        )
        self.faults = Faults(
            postgres,
            dynamics,
            self.to_database,
            self.to_dynamics,
            self.workers,
            self.load,
            self.diary,
            settings.pace,
            lease_seconds(REQUEST_SECONDS),
        )

    def _random(self, part: str) -> Random:
        return Random(f"{self.settings.seed} {part}")

    async def perform(self, tell: Progress, reason: str | None) -> Result:
        async with patient(self.postgres.url) as connection:
            await connection.execute(NOTE_CIRCUIT)
            await connection.execute(PREPARE)
        self.dynamics.refused += [*self.load.often_changed[:3], *self.load.keys[-15:]]
        await self.dynamics.weather()
        jobs: list[asyncio.Task[None]] = []
        try:
            jobs += [asyncio.create_task(worker.keep_running()) for worker in self.workers]
            jobs.append(asyncio.create_task(self._keep_looking()))
            users = [asyncio.create_task(self.load.user(self._random(f"user {n}"))) for n in range(self.settings.users)]
            jobs += users
            await self._break_everything(tell)
            self.load.ended.set()
            (self.dynamics.directory / TRUCE).touch()
            self.dynamics.refused.clear()
            await self.dynamics.weather()
            self.diary.note("the load ends")
            await asyncio.gather(*users)
            tell(self.settings.duration_seconds, "repaired; draining")
            ends = await self._drain()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
        return await self._judge(ends, reason)

    async def _break_everything(self, tell: Progress) -> None:
        """Until the time is over and everything has happened at least once."""
        await self._all_have_sent()
        began = time.monotonic()
        points_seen = [point.death for point in Point]

        def is_over(done: bool) -> bool:
            seconds = time.monotonic() - began
            tell(seconds, self.diary.events[-1].text if self.diary.events else "")
            if seconds > self.settings.duration_seconds + PATIENCE_SECONDS:
                return True
            seen_all = all(self.diary.counts[point] for point in points_seen)
            return seconds > self.settings.duration_seconds and done and seen_all

        async with asyncio.TaskGroup() as group:
            for number, lane in enumerate(self.faults.lanes(with_partitions=bool(self.cables))):
                group.create_task(run_lane(lane, self._random(f"lane {number}"), self.settings.pace, is_over))

    async def _all_have_sent(self) -> None:
        """Until every worker has sent something, or some die again and again before they can."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not all(worker.sent for worker in self.workers):
                    await asyncio.sleep(0.05)

    async def _keep_looking(self) -> None:
        """Again and again: what must Dynamics have now?"""
        while True:
            try:
                async with patient(self.postgres.url) as connection:
                    while True:
                        life = self.dynamics.life
                        was_whole = self.dynamics.whole
                        seen = await look(connection, life)
                        if was_whole and self.dynamics.whole and self.dynamics.life == life:
                            self.looks.append(seen)
                        await asyncio.sleep(LOOK_SECONDS)
            except psycopg.Error:
                self.diary.counts["looks that failed"] += 1

    async def _drain(self) -> list[Look] | None:
        """Everything is repaired and nobody changes anything: two looks, before and after a last replay of the queue.
        None where it takes too long."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS), patient(self.postgres.url) as connection:
                await self._rest(connection)
                first = await look(connection, self.dynamics.life)
                self.diary.note("drained, but for the queue")
                while not await self.faults.replay_all():
                    pass
                await self._rest(connection)
                return [first, await look(connection, self.dynamics.life)]
        except TimeoutError:
            return None

    async def _rest(self, connection: Connection) -> None:
        """Until nothing waits, and no packet of a dead or impatient sender is still on its way."""
        while True:
            row = await (await connection.execute(WAITING)).fetchone()
            if row == (0,) and not any(cable.has_unsent() for cable in self.cables):
                return
            await asyncio.sleep(0.1)

    async def _judge(self, ends: list[Look] | None, reason: str | None) -> Result:
        await self.dynamics.fetch()
        async with patient(self.postgres.url) as connection:
            changes = await committed(connection)
            circuit = await circuit_history(connection)
            entries = await queued(connection)
        requests = [request for worker in self.workers for request in requests_of(worker)]
        self.diary.unforeseen += [f"{worker.name} never sent anything" for worker in self.workers if worker.sent == 0]
        history = History(
            changes=changes,
            acknowledged=frozenset(self.load.acknowledged),
            writes=self.dynamics.writes,
            requests=requests,
            circuit=circuit,
            looks=self.looks,
            ends=ends or [],
            events=self.diary.events,
        )
        return Result(
            settings=self.settings,
            history=history,
            violations=await asyncio.to_thread(check, history),
            diary=self.diary,
            partitions=reason,
            drained=ends is not None,
            healed=overwritten(history),
            late=late_writes(history),
            queued=entries,
        )
