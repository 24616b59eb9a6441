"""The parts that a run starts, breaks and repairs: the database, Dynamics, the roads to them."""

import asyncio
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
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import aiohttp

from chaos.history import TORN, Event, State, Write
from chaos.load import number_of
from dynamics_sync.postgres import embedded
from dynamics_sync.postgres.embedded import EmbeddedPostgres
from support.commands import COMMAND
from support.engine import ENTITY_SET
from support.ports import free_port
from support.postgres import binaries

LATENCY_SECONDS = 0.06
"""What a good answer takes: what is in flight must be so for a while, or nothing could ever happen meanwhile."""

TESTS = Path(__file__).parent.parent


@dataclass
class Diary:
    """What was done, and how often."""

    counts: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)
    unforeseen: list[str] = field(default_factory=list)
    """What a command said that met an error nobody foresaw, or a worker that ended by itself."""

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
    host: str
    port: int = field(default_factory=free_port)
    process: Process | None = None

    async def open(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(TESTS / "chaos" / "relay.py"), str(self.target_port), self.host, str(self.port)),
            stdin=DEVNULL,
        )
        await answers(self.host, self.port)

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
        """It loses its records. What it wrote since they were fetched is not seen: `resync` sends it once more."""
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
        """Take over what was written in this life; once in each."""
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
