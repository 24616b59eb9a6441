"""The parts that a run starts, breaks and repairs: the database, Dynamics, the roads to them, the workers."""

import asyncio
import json
import shutil
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import aiohttp

from chaos.history import TORN, Event, Request, State, Write
from chaos.load import number_of
from chaos.namespaces import Namespace
from chaos.preamble import Point
from dynamics_sync.postgres import embedded
from dynamics_sync.postgres.embedded import EmbeddedPostgres
from support.commands import COMMAND, START, environment, free_port
from support.engine import ENTITY_SET
from support.postgres import binaries

MOST_PASSES = {Point.AFTER_CLAIM: 8, Point.AFTER_WRITE: 25, Point.BEFORE_SETTLE: 8, Point.IN_QUEUE_INSERT: 3}
"""At which pass, at most, a process dies at a point, as long as none has died there in this run."""
LATER_LIVES = 20
"""So many times as often it may pass where others have died: a process that starts does no work."""

LATENCY_SECONDS = 0.06
"""What a good answer takes: what is in flight must be so for a while, or nothing could ever happen meanwhile."""

TESTS = Path(__file__).parent.parent


@dataclass
class Diary:
    """What was done, and how often."""

    counts: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)

    def note(self, what: str, detail: str = "") -> None:
        self.counts[what] += 1
        self.events.append(Event(time.time(), f"{what} {detail}".strip()))


class CrashingPostgres(EmbeddedPostgres):
    """A durable server that can be stopped as if its machine had failed, and comes back at its port."""

    def crash(self) -> None:
        """An immediate shutdown: no checkpoint, every connection cut, recovery from the log at the next start."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()
        self._process = None


@contextmanager
def own_postgres(server: str) -> Iterator[CrashingPostgres]:
    """A server with fsync, whose data lies on a disk."""
    directory = Path(mkdtemp(prefix="dynamics-sync-chaos-"))
    directory.chmod(0o755)
    port = free_port()
    try:
        with (
            patch.object(embedded, "_free_port", lambda: port),
            CrashingPostgres(directory / "postgres", binaries(server)) as started,
        ):
            yield started
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def stop(process: Process | None) -> None:
    """SIGKILL; returns when it is gone."""
    if process is not None and process.returncode is None:
        process.kill()
        await process.wait()


@dataclass
class Road:
    """A relay in front of one server: see `relay.py`."""

    target_port: int
    addresses: list[str]
    port: int = field(default_factory=free_port)
    process: Process | None = None

    async def open(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(TESTS / "chaos" / "relay.py"), str(self.target_port), str(self.port)),
            *self.addresses,
            stdin=DEVNULL,
        )
        await answers("127.0.0.1", self.port)

    async def close(self) -> None:
        """In the middle of everything."""
        await stop(self.process)

    def reset(self) -> None:
        """Reset what is open; the relay goes on."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGUSR1)


async def answers(host: str, port: int) -> None:
    """Until somebody listens there."""
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


@dataclass
class Dynamics:
    """The simulator in a process of its own. What it noted is fetched before it is killed."""

    directory: Path
    http: aiohttp.ClientSession
    port: int = field(default_factory=free_port)
    process: Process | None = None
    life: int = 0
    whole: bool = True
    """Not between its death and the `resync` with which a person repairs what it lost."""
    refused: list[str] = field(default_factory=list)
    """Keys of records that it does not take: they fill the queue."""
    writes: list[Write] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)

    async def start(self) -> None:
        with (self.directory / "simulator.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *COMMAND, "simulator", "--port", str(self.port), cwd=self.directory, stdout=log, stderr=STDOUT
            )
        await answers("127.0.0.1", self.port)
        await self.weather()

    async def stop(self) -> None:
        await stop(self.process)

    async def kill(self) -> None:
        """It loses its records."""
        self.whole = False
        await self.fetch()
        await stop(self.process)
        self.life += 1

    async def weather(self, *faults: Mapping[str, object]) -> None:
        """These faults instead of those so far. Some records are always refused, and no answer is there at once."""
        async with self.http.delete(self._control("faults")) as response:
            assert response.status == 204
        refused = [{"kind": "status", "status": 400, "key": key} for key in self.refused]
        for fault in (*refused, *faults, {"kind": "delay", "seconds": LATENCY_SECONDS}):
            async with self.http.post(self._control("faults"), json={"entity_set": ENTITY_SET, **fault}) as response:
                assert response.status == 201, await response.text()

    async def fetch(self) -> None:
        """Take over what this life has noted so far; once in each life."""
        async with self.http.get(self._control("requests")) as response:
            self.requests += [noted for noted in await response.json() if noted["entity_set"] == ENTITY_SET]
        async with self.http.get(self._control(f"records/{ENTITY_SET}")) as response:
            self.writes += [
                Write(record["key"], version["at"], state_of(version["attributes"]), self.life)
                for record in await response.json()
                for version in record["versions"]
            ]

    def _control(self, page: str) -> str:
        return f"http://127.0.0.1:{self.port}/_simulator/{page}"


def state_of(attributes: Mapping[str, Any]) -> State:
    """The state that these attributes are; TORN if they are of several."""
    if attributes["statecode"] != 0:
        return None
    return number_of(attributes["hlf_expireson"], attributes["hlf_issuedon"], attributes["hlf_status"]) or TORN


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every worker of a run has in common."""

    directory: Path
    database: str
    """With the port of the road; the host is each worker's own."""
    database_port: int
    dynamics_port: int
    request_timeout_seconds: float
    request_seconds: float
    """The longest that one may take, with what surrounds it."""
    late_seconds: float
    cool_down_seconds: float


@dataclass
class Life:
    """One process of a worker."""

    process: Process
    trace: Path
    log: Path
    started: float
    killed: bool = False
    """By us, from outside."""
    ended: float = float("inf")


@dataclass
class Worker:
    """A worker as a machine runs it: whenever it ends, it is started again."""

    name: str
    settings: WorkerSettings
    diary: Diary
    random: Random
    namespace: Namespace | None = None
    lives: list[Life] = field(default_factory=list)
    unforeseen: list[str] = field(default_factory=list)
    """The end of each log that has what it should not have."""

    @property
    def process(self) -> Process | None:
        """The one that runs."""
        return self.lives[-1].process if self.lives and self.lives[-1].process.returncode is None else None

    @property
    def is_sending(self) -> bool:
        """The process that runs has sent something."""
        return self.process is not None and _sent(self.lives[-1].trace) > 0

    @property
    def sent(self) -> int:
        """Requests of all its processes."""
        return sum(_sent(life.trace) for life in self.lives)

    async def keep_running(self) -> None:
        """Until cancelled."""
        try:
            while True:
                life = await self._start()
                status = await life.process.wait()
                life.ended = time.time()
                self._note_end(life, status)
                await asyncio.sleep(self.random.uniform(0.05, 0.3))
        finally:
            await stop(self.process)
            if self.lives:
                self.lives[-1].ended = min(self.lives[-1].ended, time.time())

    def kill(self) -> bool:
        """SIGKILL; False if it does not run now."""
        return self._signal(signal.SIGKILL)

    def pause(self) -> bool:
        return self._signal(signal.SIGSTOP)

    def go_on(self) -> bool:
        return self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> bool:
        if self.process is None:
            return False
        self.lives[-1].killed |= number is signal.SIGKILL
        self.process.send_signal(number)
        return True

    async def _start(self) -> Life:
        given, count = self.settings, len(self.lives)
        deaths = {
            str(point): self.random.randint(1, most * (LATER_LIVES if self.diary.counts[point.death] else 1))
            for point, most in MOST_PASSES.items()
        }
        files = given.directory / f"{self.name}.{count + 1}"
        trace, log = (files.with_name(f"{files.name}.{kind}") for kind in ("trace", "log"))
        arguments = f"{str(trace)!r}, {given.request_seconds}, {given.late_seconds}, {deaths}"
        first = (
            f"import sys; sys.path.insert(0, {str(TESTS)!r})\nfrom chaos.preamble import install; install({arguments})"
        )
        command = (sys.executable, "-c", f"{first}\n{START}", "run", "--no-web")
        host = self.namespace.here if self.namespace else "127.0.0.1"
        dynamics = f"http://{host}:{given.dynamics_port}"
        settings = {
            "database_url": given.database.format(host=host, port=given.database_port),
            "dynamics_url": dynamics,
            "authority_url": dynamics,
            "tenant_id": "demo",
            "client_id": "demo",
            "client_secret": "demo",
            "poll_seconds": "0.2",
            "base_delay_ms": "50",
            "token_pause_seconds": "0.5",
            "cool_down_seconds": str(given.cool_down_seconds),
            "request_timeout_seconds": str(given.request_timeout_seconds),
            "concurrency": "8",
        }
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *(self.namespace.inside(*command) if self.namespace else command),
                cwd=given.directory,
                env=environment(settings),
                stdin=DEVNULL,
                stderr=errors,
            )
        life = Life(process, trace, log, time.time())
        self.lives.append(life)
        return life

    def _note_end(self, life: Life, status: int) -> None:
        told = life.log.read_text()
        died = [line["died"] for line in trace_lines(life.trace) if "died" in line]
        if died:
            self.diary.note(Point(died[0]).death, self.name)
        elif status == 1 and "Traceback" not in told:
            self.diary.note("start refused", self.name)
        elif not life.killed or "Traceback" in told:
            self.diary.note("ended by itself", f"{self.name}, status {status}")
            self.unforeseen.append(f"{self.name}, status {status}\n{told[-3000:]}")


def _sent(trace: Path) -> int:
    return trace.read_bytes().count(b"began") if trace.exists() else 0


def trace_lines(trace: Path) -> list[dict[str, Any]]:
    """What the preamble noted."""
    if not trace.exists():
        return []
    return [json.loads(line) for line in trace.read_text().splitlines() if line.endswith("}")]


def requests_of(worker: Worker) -> list[Request]:
    """What left the worker."""
    return [
        request
        for number, life in enumerate(worker.lives, 1)
        for request in requests_in(life.trace, f"{worker.name}.{number}", worker.settings.request_seconds, life.ended)
    ]


def requests_in(trace: Path, sender: str, request_seconds: float, killed_at: float) -> list[Request]:
    """What left one process, as it saw it; see `Request` for how a request ends."""
    found: list[Request] = []
    under_way: dict[int, dict[str, Any]] = {}

    def end(begun: dict[str, Any], ended: float, how: str) -> None:
        found.append(Request(begun["key"], sender, begun["at"], min(ended, begun["at"] + request_seconds), how))

    for line in trace_lines(trace):
        if "began" in line:
            under_way[line["began"]] = line
        elif "ended" in line:
            end(under_way.pop(line["ended"]), line["at"], line["how"])
    for begun in under_way.values():
        end(begun, killed_at, "nothing: it was killed")
    return found
