"""The workers: real processes, started again whenever they end, and what they noted of their requests."""

import asyncio
import json
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from chaos.history import Request
from chaos.namespaces import Namespace
from chaos.parts import TESTS, Diary, stop
from chaos.preamble import Point
from support.commands import START, environment

MOST_PASSES = {Point.AFTER_CLAIM: 8, Point.AFTER_WRITE: 8, Point.BEFORE_SETTLE: 8, Point.IN_QUEUE_INSERT: 3}
"""At which pass, at most, a process dies at a point. As long as none has died there in this run, that is all it dies of."""
LATER_LIVES = 20
"""So many times as often it may pass once there were deaths at all points: a process that starts does no work."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every worker of a run has in common."""

    directory: Path
    database_url: str
    dynamics_url: str
    """The roads to both, with the same address for all of them."""
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
    continued: list[float] = field(default_factory=list)
    """When it went on after it had been stopped."""


@dataclass
class Worker:
    """A worker as a machine runs it: whenever it ends, it is started again."""

    name: str
    settings: WorkerSettings
    diary: Diary
    random: Random
    namespace: Namespace | None = None
    lives: list[Life] = field(default_factory=list)

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
        if self.process is None:
            return False
        self.lives[-1].killed = True
        self.process.kill()
        return True

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """SIGSTOP until the end, then SIGCONT, if it is still the same process."""
        life = self.lives[-1]
        life.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            if life.process.returncode is None:
                life.continued.append(time.time())
                life.process.send_signal(signal.SIGCONT)

    async def _start(self) -> Life:
        given, count = self.settings, len(self.lives)
        if missing := [point for point in Point if not self.diary.counts[point.death]]:
            point = self.random.choice(missing)
            deaths = {str(point): self.random.randint(1, MOST_PASSES[point])}
        else:
            deaths = {str(point): self.random.randint(1, most * LATER_LIVES) for point, most in MOST_PASSES.items()}
        files = given.directory / f"{self.name}.{count + 1}"
        trace, log = (files.with_name(f"{files.name}.{kind}") for kind in ("trace", "log"))
        arguments = f"{str(trace)!r}, {given.request_seconds}, {given.late_seconds}, {deaths}"
        first = (
            f"import sys; sys.path.insert(0, {str(TESTS)!r})\nfrom chaos.preamble import install; install({arguments})"
        )
        command = (sys.executable, "-c", f"{first}\n{START}", "run", "--no-web")
        settings = {
            "database_url": given.database_url,
            "dynamics_url": given.dynamics_url,
            "authority_url": given.dynamics_url,
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
            self.diary.unforeseen.append(f"{self.name}, status {status}\n{told[-3000:]}")


def _sent(trace: Path) -> int:
    return trace.read_bytes().count(b"began") if trace.exists() else 0


def trace_lines(trace: Path) -> list[dict[str, Any]]:
    """What the preamble noted."""
    if not trace.exists():
        return []
    return [json.loads(line) for line in trace.read_text().splitlines() if line.endswith("}")]


def requests_of(worker: Worker) -> list[Request]:
    """What left the worker."""
    found: list[Request] = []
    for number, life in enumerate(worker.lives, 1):
        sender = f"{worker.name}.{number}"
        found += requests_in(life.trace, sender, worker.settings.request_seconds, life.ended, life.continued)
    return found


def requests_in(
    trace: Path, sender: str, request_seconds: float, killed_at: float, continued: Sequence[float] = ()
) -> list[Request]:
    """What left one process, as it saw it: of a request for many records, one for each. See `Request` for how a request
    ends, and which are frozen."""
    found: list[Request] = []
    under_way: dict[int, dict[str, Any]] = {}

    def end(begun: dict[str, Any], ended: float, how: str) -> None:
        began, admitted = begun["at"], begun["admitted"] or begun["at"]
        frozen = any(admitted < at <= began for at in continued)
        ended = min(ended, began + request_seconds)
        found.extend(Request(key, sender, began, ended, how, frozen) for key in begun["keys"])

    for line in trace_lines(trace):
        if "began" in line:
            under_way[line["began"]] = line
        elif "ended" in line:
            end(under_way.pop(line["ended"]), line["at"], line["how"])
    for begun in under_way.values():
        end(begun, killed_at, "nothing: it was killed")
    return found
