"""An embedded PostgreSQL: for trying things out, for tests, for one machine without a database server.

Written here because the launchers that come with the wheels run `useradd` and open every parent directory to others.
This one makes no users and changes no modes outside its own data directory. As root, PostgreSQL refuses to run, so
it runs as `nobody`; binaries that `nobody` cannot reach are copied into the data directory while it runs.

It listens on 127.0.0.1 with a random password, not in a socket's directory: then it does not matter which user runs it.
On Linux the kernel stops it when the program that started it dies without a word (SIGKILL); everywhere, `stop` does.
"""

import atexit
import ctypes
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from dynamics_sync.postgres.binaries import EmbeddedPostgresError, copy_installation, find_binaries, others_can_reach

START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 10.0


class EmbeddedPostgres:
    """One server on 127.0.0.1, in a directory of its own: `with EmbeddedPostgres(directory) as server: server.url`.

    The directory keeps the data, a log, and the port and password that were chosen (readable by its owner only). A
    server that another process of ours has started there is used as it is, and left running.

    Args:
        directory: where the cluster lives; None for a temporary one that is removed at the end.
        bindir: the server's binaries, as `find_binaries` gives them.
        durable: False gives up fsync, for tests.
    """

    def __init__(self, directory: Path | None = None, bindir: Path | None = None, *, durable: bool = True) -> None:
        self._is_temporary = directory is None
        self._directory = directory or Path(tempfile.mkdtemp(prefix="dynamics-sync-"))
        self._bindir = bindir
        self._durable = durable
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._copied_binaries: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Make the cluster if there is none, start it, and wait until it answers.

        Raises:
            EmbeddedPostgresError: it cannot be started; the message says what to do.
        """
        try:
            self._start()
        except BaseException as error:
            self.stop()  # Ctrl-C while it starts, too: `__exit__` is not reached
            if isinstance(error, OSError):
                raise EmbeddedPostgresError(
                    f"The embedded PostgreSQL cannot be started ({error}). Name another place for its data in "
                    f"{self._setting}, another server in PG_BINDIR, or a database in DYNAMICS_SYNC_DATABASE_URL."
                ) from None
            raise

    def _start(self) -> None:
        self._directory = self._directory.resolve()
        self._directory.mkdir(parents=True, exist_ok=True)
        noted = self._read_note()
        if noted is not None and self._answers(noted):
            self.url = noted.url
            return
        self._check_reachable()
        self._hand_over(self._directory)
        keeps_its_version = self._bindir is None and noted is not None and noted.bindir.exists()
        bindir = noted.bindir if noted is not None and keeps_its_version else find_binaries(self._bindir)
        if noted is None and self._data.exists():
            raise EmbeddedPostgresError(
                f"{self._data} holds data, but {self._directory / 'server.json'}, which has its password, is missing "
                "or damaged. Put the file back, or move the directory away to start anew."
            )
        programs = self._runnable(bindir)
        if noted is None or not self._data.exists():
            noted = self._initialise(bindir, programs)
        self._launch(replace(noted, bindir=bindir), programs)

    def stop(self) -> None:
        """Stop the server, or what is making its cluster, if this object started it; remove what was temporary."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown
            try:
                self._process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
            self._process = None
        atexit.unregister(self.stop)
        if self._copied_binaries is not None:
            shutil.rmtree(self._copied_binaries, ignore_errors=True)
        if self._is_temporary:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _initialise(self, bindir: Path, programs: Path) -> "_Note":
        """Make the cluster under another name, so that one which was never finished is never taken for a whole one."""
        unfinished = self._directory / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        note = _Note(0, secrets.token_urlsafe(24), bindir)
        password_file = self._directory / "password"
        self._write_private(password_file, note.password)
        command = [
            *("--pgdata", str(unfinished), "--username", "postgres", "--encoding", "UTF8", "--locale", "C"),
            *("--auth", "scram-sha-256", "--pwfile", str(password_file), "--no-sync"),
        ]
        self._process = self._spawn(programs / "initdb", command)
        failed = self._process.wait() != 0
        self._process = None
        password_file.unlink()
        if failed:
            raise self._failed("could not make a cluster")
        self._write_private(self._directory / "server.json", note.as_json())
        unfinished.rename(self._data)
        return note

    def _launch(self, made: "_Note", programs: Path) -> None:
        """Start it on a free port. Another program may take the port first, and the lock of a server that has just
        died stands for a moment: so three tries."""
        for _ in range(3):
            noted = self._read_note()
            if noted is not None and self._answers(noted):  # another process was faster
                self._copied_binaries = None  # its server runs from them
                self.url = noted.url
                return
            note = replace(made, port=_free_port())
            options = ["listen_addresses=127.0.0.1", "unix_socket_directories=", f"port={note.port}"]
            if not self._durable:
                options += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
            settings = [word for option in options for word in ("-c", option)]
            self._process = self._spawn(programs / "postgres", ["-D", str(self._data), *settings])
            if self._wait_until_ready(note):
                self._write_private(self._directory / "server.json", note.as_json())
                self.url = note.url
                atexit.register(self.stop)
                return
            self._process = None
            time.sleep(0.5)
        raise self._failed("did not start")

    def _failed(self, what: str) -> EmbeddedPostgresError:
        """With the end of the log: a temporary directory, and the log in it, are gone when this is read."""
        lines = self._log.read_text(errors="replace").splitlines()[-5:] if self._log.exists() else []
        return EmbeddedPostgresError("\n  ".join([f"PostgreSQL {what}. The end of {self._log}:", *lines]))

    def _wait_until_ready(self, note: "_Note") -> bool:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while self._process is not None and self._process.poll() is None:
            if self._answers(note):
                return True
            if time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
            time.sleep(0.02)
        return False

    def _spawn(self, program: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
        """Run one of the server's programs, as `nobody` if we are root, apart from the terminal's Ctrl-C."""
        account = self._account
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own words only
                [str(program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": os.defpath, "HOME": "/", "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,
                preexec_fn=_stop_with_parent(),
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )

    def _runnable(self, bindir: Path) -> Path:
        """The binaries where the server's account can run them: copied if it cannot reach them."""
        if self._account is None or others_can_reach(bindir / "postgres"):
            return bindir
        copy = self._copied_binaries = self._directory / "binaries"
        shutil.rmtree(copy, ignore_errors=True)  # of a run that was killed
        copied = copy_installation(bindir, copy)
        for path in (copy, *copy.rglob("*")):
            self._hand_over(path)
        return copied

    def _hand_over(self, path: Path) -> None:
        """To the account that the server runs as, if that is not ours."""
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid, follow_symlinks=False)

    def _check_reachable(self) -> None:
        if self._account is not None and not others_can_reach(self._directory.parent):
            raise EmbeddedPostgresError(
                "PostgreSQL does not run as root, and the user `nobody`, as whom it would run, cannot enter "
                f"{self._directory.parent}. Run as an ordinary user, or name another directory in {self._setting}."
            )

    def _answers(self, note: "_Note") -> bool:
        if not note.port or not (self._data / "postmaster.pid").exists():
            return False
        try:
            psycopg.connect(note.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _read_note(self) -> "_Note | None":
        try:
            fields = json.loads((self._directory / "server.json").read_text())
            return _Note(int(fields["port"]), str(fields["password"]), Path(fields["bindir"]))
        except (OSError, ValueError, KeyError):
            return None

    def _write_private(self, path: Path, text: str) -> None:
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(text)
        self._hand_over(path)

    @property
    def _setting(self) -> str:
        """What a person sets to have the directory elsewhere."""
        return "TMPDIR" if self._is_temporary else "DYNAMICS_SYNC_DATA_DIR"

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    @property
    def _log(self) -> Path:
        return self._directory / "postgres.log"


@dataclass(frozen=True, slots=True)
class _Note:
    """What is remembered of a server, in a file that only its owner can read."""

    port: int
    password: str
    bindir: Path

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/postgres"

    def as_json(self) -> str:
        return json.dumps({"port": self.port, "password": self.password, "bindir": str(self.bindir)})


def _stop_with_parent() -> Callable[[], None] | None:
    """On Linux, a function for the child: have the kernel send SIGINT, a fast shutdown, when the thread that started
    it ends (prctl(2), PR_SET_PDEATHSIG). Loaded before the fork, as the child may not allocate much."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    pr_set_pdeathsig = 1
    return lambda: prctl(pr_set_pdeathsig, signal.SIGINT.value)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
