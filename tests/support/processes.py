"""Commands in processes of their own, forked from one that has imported everything but runs nothing: to import it anew
for each of them would be most of what the tests do."""

import asyncio
import atexit
import multiprocessing
import os
import signal
import sys
from pathlib import Path

READY = multiprocessing.get_context("forkserver")
READY.set_forkserver_preload(
    [
        "dynamics_sync.cli",
        "dynamics_sync.cli.running",
        "dynamics_sync.demo",
        "dynamics_sync.dynamics.entra",
        "dynamics_sync.postgres.circuit_store",
        "fastapi.responses",
        "prometheus_client.exposition",
        "uvicorn",
        "uvloop",
    ]
)
"""What a command imports only where it needs it, too."""


class Process:
    """A command under way: as `asyncio.subprocess.Process`, but its output is in files.

    Args:
        environment: all of it.
        first: statements that the process runs before, to set what is no setting.
    """

    def __init__(
        self, words: tuple[str, ...], cwd: Path, environment: dict[str, str], out: Path, errors: Path, first: str = ""
    ) -> None:
        self._out, self._errors = out, errors
        for file in (out, errors):
            file.write_bytes(b"")
        self._process = READY.Process(target=_command, args=(words, cwd, environment, out, errors, first))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    @property
    def output(self) -> bytes:
        return self._out.read_bytes()

    @property
    def errors(self) -> bytes:
        return self._errors.read_bytes()

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def join(self, timeout_seconds: float | None = None) -> int | None:
        """Wait for its end; the exit status, if it has ended by then."""
        self._process.join(timeout_seconds)
        return self.returncode

    async def wait(self) -> int:
        """`join`, while others in this process work on."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
        status = self.join()
        assert status is not None
        return status

    async def communicate(self) -> tuple[bytes, bytes]:
        """What it has written, once it has ended."""
        await self.wait()
        return self.output, self.errors


def _command(
    words: tuple[str, ...], cwd: Path, environment: dict[str, str], out: Path, errors: Path, first: str
) -> None:
    from dynamics_sync.cli import main

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((1, out), (2, errors)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), stream)
    sys.argv = ["dynamics-sync", *words]
    try:
        exec(first, {})
        main()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
