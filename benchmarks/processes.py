"""Processes that are measured or take part: started, waited for, ended."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
READY_SECONDS = 60.0
STOP_SECONDS = 60.0
LONGEST_SECONDS = 600.0
"""What takes longer than this to be sent is stuck."""

Command = Sequence[str]


class BenchmarkError(Exception):
    """Something that was to be measured did not work; the message has the end of what it said."""


def module(name: str, *arguments: object, python: str = sys.executable) -> Command:
    """A command that runs a module of this package, with this interpreter or another."""
    return [python, "-m", f"benchmarks.{name}", *map(str, arguments)]


def output_of(command: Command, **environment: str) -> str:
    """What a command prints.

    Raises:
        BenchmarkError: it failed.
    """
    done = subprocess.run(command, env=_environment(environment), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def result_of(command: Command, **environment: str) -> Any:
    """What a command prints as JSON.

    Raises:
        BenchmarkError: it failed.
    """
    return json.loads(output_of(command, **environment))


@contextmanager
def running(command: Command, **environment: str) -> Iterator["Running"]:
    """A process. It is asked to stop at the end."""
    with TemporaryDirectory(prefix="dynamics-sync-bench-") as directory:
        log = Path(directory, "log")
        with log.open("wb") as output:
            # Not in the working directory, whose dynamics-sync.toml would be read.
            process = subprocess.Popen(
                command, env=_environment(environment), cwd=directory, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            yield Running(process, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Running:
    """A process and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def says(self, word: str) -> str:
        """What it has said, once the word is in it.

        Raises:
            BenchmarkError: it ended before, or takes too long.
        """
        deadline = time.monotonic() + READY_SECONDS
        while word not in (said := self._log.read_text()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"{self._process.args!r} is not ready:\n{said[-2000:]}")
            time.sleep(0.02)
        return said

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def peak_mebibytes(self) -> float:
        """The most memory that it has had resident so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


class Cpu:
    """What processes use of the processors, from now on. What begins later counts in full, what ends before it is asked
    for does not count."""

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        self._pids = pids
        self._before = self._seconds()

    def seconds(self) -> float:
        """Until now."""
        return sum(used - self._before.get(pid, 0.0) for pid, used in self._seconds().items())

    def _seconds(self) -> Mapping[int, float]:
        return {pid: used for pid in self._pids() if (used := _cpu_seconds(pid)) is not None}


def _cpu_seconds(pid: int) -> float | None:
    """Of all its threads; None where it has ended."""
    try:
        threads = [Path(each, "schedstat").read_text() for each in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return sum(int(thread.split()[0]) for thread in threads) / 1e9


def children(pid: int) -> Sequence[int]:
    """Those that a process has at present."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Target:
    """The server that all send to, seen from here."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.url = f"http://127.0.0.1:{port}"

    def reset(self) -> None:
        """Forget what was counted."""
        self._ask("/bench/reset")

    def until(self, records: int) -> Mapping[str, float]:
        """Once so many records have arrived: `first`, `at` (monotonic seconds, of the first write and of this moment),
        `requests` and `records`."""
        reached: Mapping[str, float] = self._ask(f"/bench/until?records={records}")
        return reached

    @property
    def arrivals(self) -> Sequence[float]:
        """When each write arrived since the reset (monotonic seconds), of the first thousand."""
        times: Sequence[float] = self._ask("/bench/arrivals")["arrivals"]
        return times

    def _ask(self, address: str) -> Any:
        """
        Raises:
            BenchmarkError: there is no answer for too long.
        """
        connection = HTTPConnection("127.0.0.1", self._port, timeout=LONGEST_SECONDS)
        try:
            connection.request("GET", address)
            return json.load(connection.getresponse())
        except TimeoutError:
            raise BenchmarkError(f"what was asked for in {address} did not happen") from None
        finally:
            connection.close()


@contextmanager
def target() -> Iterator[Target]:
    """The server that all send to."""
    with running(module("server")) as server:
        yield Target(int(server.says("\n")))


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Without the settings of whoever runs this, but with their PYTHONPATH."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("DYNAMICS_SYNC_")}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**ours, "PYTHONPATH": os.pathsep.join(paths), **more}
