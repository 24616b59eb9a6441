"""The commands as a person runs them: real processes, with their settings in the environment."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from support.engine import Stage
from support.pooler import for_engine
from support.ports import free_port
from support.processes import Process

START = "from dynamics_sync.cli import main; main()"
COMMAND = [sys.executable, "-c", START]
NOWHERE = Path(os.devnull)


def environment(settings: dict[str, str]) -> dict[str, str]:
    if "database_url" in settings:
        settings = settings | {"database_url": for_engine(settings["database_url"])}
    return {**os.environ, **{f"DYNAMICS_SYNC_{name.upper()}": value for name, value in settings.items()}}


@contextmanager
def launched(*words: str, cwd: Path, first: str = "", **settings: str) -> Iterator[Process]:
    """A command under way, in a process of its own. What still runs at the end is killed.

    Args:
        first: statements that the process runs before, to set what is no setting.
    """
    with TemporaryDirectory() as directory:
        out, errors = Path(directory, "out"), Path(directory, "errors")
        process = Process(words, cwd, environment(settings), out, errors, first)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                process.join()


def run(*words: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command from its start to its end."""
    with launched(*words, cwd=cwd, **settings) as process:
        status = process.join(60)
        if status is None:
            raise subprocess.TimeoutExpired(words, 60, process.output, process.errors)
        return subprocess.CompletedProcess(words, status, process.output.decode(), process.errors.decode())


async def start(*words: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """`run`, for a test whose own servers must answer meanwhile."""
    return await asyncio.to_thread(run, *words, cwd=cwd, **settings)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in " ".join(done.stderr.split())


@dataclass
class WorkerProcess:
    """A running `dynamics-sync run`."""

    process: Process
    log: Path
    url: str
    http: aiohttp.ClientSession

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the JSON log says under that name."""
        complete, _, _ = self.log.read_text().rpartition("\n")
        told = [json.loads(line) for line in complete.splitlines() if line.startswith("{")]
        return [event for event in told if event["event"] == name]

    async def says(self, name: str, times: int = 1) -> None:
        """Until the log has that event."""
        async with asyncio.timeout(20):
            while len(self.events(name)) < times:
                await asyncio.sleep(0.02)

    async def health(self, page: str) -> tuple[int, Any]:
        async with self.http.get(f"{self.url}/health/{page}") as response:
            return response.status, await response.json()

    async def metrics(self) -> str:
        async with self.http.get(f"{self.url}/metrics") as response:
            assert response.status == 200
            return await response.text()

    async def answers(self, page: str, status: int) -> Any:
        """The page, once it has that status."""
        async with asyncio.timeout(30):
            while True:
                try:
                    found, document = await self.health(page)
                    if found == status:
                        return document
                except aiohttp.ClientConnectionError:
                    assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.02)

    async def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            return await self.process.wait()


@asynccontextmanager
async def worker_processes(
    on: Stage, database: str, cwd: Path, count: int, *, first: str = "", **settings: str
) -> AsyncIterator[list[Process]]:
    """Several `dynamics-sync run --no-web`, from when all of them work. They are asked to stop at the end.

    Args:
        first: statements that each runs before, with its own number in the place of `{number}`.
    """
    logs = [cwd / f"worker-{number}.log" for number in range(1, count + 1)]
    started = []
    try:
        for number, log in enumerate(logs, 1):
            given = environment(_connected(on, database) | settings)
            process = Process(("run", "--no-web"), cwd, given, NOWHERE, log, first.format(number=number))
            started.append(process)
        async with asyncio.timeout(60):
            while not all("worker.started" in log.read_text() for log in logs):
                assert all(process.returncode is None for process in started), [log.read_text() for log in logs]
                await asyncio.sleep(0.02)
        yield started
    finally:
        for process in started:
            if process.returncode is None:
                process.terminate()
        assert {await process.wait() for process in started} <= {0, -signal.SIGKILL}


def _connected(on: Stage, database: str) -> dict[str, str]:
    """The settings of a worker between a database and the stage's simulator, with a request for each record."""
    simulator = on.simulator
    given = {
        "database_url": database,
        "dynamics_url": simulator.url,
        "authority_url": simulator.url,
        "tenant_id": "demo",
        "client_id": "demo",
        "client_secret": "demo",
        "poll_seconds": "0.05",
        "bulk_size": "1",
    }
    if simulator.ca_file is not None:
        given["ca_file"] = str(simulator.ca_file)
    return given


@asynccontextmanager
async def worker_process(
    on: Stage, database: str, cwd: Path, *, first: str = "", **settings: str
) -> AsyncIterator[WorkerProcess]:
    """`dynamics-sync run` between a database and the stage's simulator, from when it is ready.

    Args:
        first: statements that the process runs before, to set what is no setting.
    """
    port = free_port()
    given = _connected(on, database) | {"port": str(port)}
    log = cwd / "worker.log"
    process = Process(("run",), cwd, environment(given | settings), NOWHERE, log, first)
    running = WorkerProcess(process, log, f"http://127.0.0.1:{port}", on.http)
    try:
        await running.answers("live", 200)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
