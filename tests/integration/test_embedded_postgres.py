"""The embedded server on this machine: what it survives, what it refuses, and that it leaves nothing behind."""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from dynamics_sync.postgres.binaries import EmbeddedPostgresError, find_binaries, wheel_binaries
from dynamics_sync.postgres.embedded import EmbeddedPostgres

HOLD = """
import sys, time
from pathlib import Path
from dynamics_sync.postgres.binaries import wheel_binaries
from dynamics_sync.postgres.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1]), wheel_binaries(), durable=False):
    print("ready", flush=True)
    time.sleep(60)
"""

ENDLESS = """#!/bin/sh
n=0
while [ $n -lt 100000 ]; do n=$((n + 1)); mkdir -p "$2/$n"; done
exit 1
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become `nobody`: sudo make test")


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not pytest's own directory: for root that one is closed to `nobody`."""
    made = Path(tempfile.mkdtemp(prefix="dynamics-sync-test-"))
    made.chmod(0o755)
    yield made / "postgres"
    shutil.rmtree(made)


def server(directory: Path | None, *, durable: bool = False) -> EmbeddedPostgres:
    return EmbeddedPostgres(directory, wheel_binaries(), durable=durable)


def postmaster(directory: Path) -> int:
    return int((directory / "data" / "postmaster.pid").read_text().splitlines()[0])


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(happened: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def test_data_outlives_a_restart(directory: Path) -> None:
    with server(directory) as first, psycopg.connect(first.url) as connection:
        connection.execute("create table kept as select 42 as answer")
    with server(directory) as second, psycopg.connect(second.url) as connection:
        assert connection.execute("select answer from kept").fetchone() == (42,)


def test_the_password_is_needed_and_only_its_owner_can_read_it(directory: Path) -> None:
    with server(directory) as running:
        assert stat.S_IMODE((directory / "server.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((directory / "data").stat().st_mode) == 0o700
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(running.url, password="wrong")


def test_a_killed_server_starts_again_with_what_was_committed(directory: Path) -> None:
    with server(directory, durable=True) as first:
        with psycopg.connect(first.url) as connection:
            connection.execute("create table kept as select 42 as answer")
        os.kill(postmaster(directory), signal.SIGKILL)
    assert (directory / "data" / "postmaster.pid").exists()
    with server(directory) as second, psycopg.connect(second.url) as connection:
        assert connection.execute("select answer from kept").fetchone() == (42,)


def test_a_second_one_on_the_same_directory_uses_the_first(directory: Path) -> None:
    with server(directory) as first:
        with server(directory) as second:
            assert second.url == first.url
        psycopg.connect(first.url).close()


def test_a_cluster_that_was_never_finished_is_made_anew(directory: Path) -> None:
    (directory / "data.unfinished").mkdir(parents=True)
    (directory / "data.unfinished" / "PG_VERSION").write_text("18\n")
    with server(directory) as running:
        psycopg.connect(running.url).close()


def test_data_without_its_password_is_left_alone(directory: Path) -> None:
    with server(directory):
        pass
    (directory / "server.json").unlink()
    with pytest.raises(EmbeddedPostgresError, match="move the directory away"):
        server(directory).start()
    assert (directory / "data" / "PG_VERSION").exists()


def test_damaged_data_is_told_with_the_servers_own_words(directory: Path) -> None:
    with server(directory):
        pass
    (directory / "data" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(EmbeddedPostgresError, match="incompatible"):
        server(directory).start()


def test_a_temporary_one_leaves_nothing(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(directory.parent))
    with server(None) as running:
        psycopg.connect(running.url).close()
    assert list(directory.parent.iterdir()) == []


def test_one_that_cannot_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(directory.parent))
    with pytest.raises(EmbeddedPostgresError, match="PG_BINDIR"):
        EmbeddedPostgres(bindir=directory / "absent").start()
    assert list(directory.parent.iterdir()) == []


def test_a_bindir_without_a_server_is_told(directory: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="PG_BINDIR"):
        find_binaries(directory)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_program_that_started_it(directory: Path, number: signal.Signals) -> None:
    if number is not signal.SIGINT and sys.platform != "linux":
        pytest.skip("only Linux can stop a server whose parent is killed")
    parent = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        pid = postmaster(directory)
        parent.send_signal(number)
    wait_until(lambda: gone(pid), "the server outlived its parent")


@pytest.fixture
def endless(directory: Path) -> Path:
    """The binaries of a server whose cluster is never finished. They give up by themselves, should nobody end them."""
    programs = directory.parent / "bin"
    programs.mkdir()
    for name in ("initdb", "postgres"):
        (programs / name).write_text(ENDLESS)
        (programs / name).chmod(0o755)
    return programs


def end_the_demo(directory: Path, binaries: Path, moment: Callable[[], bool]) -> tuple[int, bytes]:
    """Its exit status and what it said, when SIGTERM comes at that moment."""
    directory.mkdir()
    environment = {**os.environ, "TMPDIR": str(directory), "PG_BINDIR": str(binaries)}
    demo = [sys.executable, "-c", "from dynamics_sync.cli import main; main()", "demo"]
    with subprocess.Popen(demo, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        wait_until(moment, "the demo did not come that far")
        process.terminate()
        _, errors = process.communicate(timeout=30)
    return process.returncode, errors


def test_a_command_that_is_told_to_end_leaves_nothing(directory: Path) -> None:
    def is_at_work() -> bool:
        """The schema is there. Until asyncio runs, Python may swallow the signal, as it may Ctrl-C."""
        for note in directory.glob("*/server.json"):
            with contextlib.suppress(OSError, ValueError, psycopg.OperationalError):  # half written, not up yet
                noted = json.loads(note.read_text())
                url = f"postgresql://postgres:{noted['password']}@127.0.0.1:{noted['port']}/postgres"
                with psycopg.connect(url) as connection:
                    return connection.execute("select to_regclass('public.certifications')").fetchone() != (None,)
        return False

    assert end_the_demo(directory, wheel_binaries(), is_at_work) == (128 + signal.SIGINT, b"")
    assert list(directory.iterdir()) == []


def test_neither_does_one_that_is_making_its_cluster(directory: Path, endless: Path) -> None:
    def has_begun() -> bool:
        return any(directory.glob("*/data.unfinished"))

    assert end_the_demo(directory, endless, has_begun) == (128 + signal.SIGINT, b"")
    assert list(directory.iterdir()) == []


@needs_root
def test_as_root_it_runs_as_nobody_from_a_closed_directory_without_opening_it(directory: Path) -> None:
    closed = directory.parent / "closed"
    closed.mkdir(mode=0o700)
    binaries = wheel_binaries()
    package = binaries.parent.parent
    for part in package, package.with_name(f"{package.name}.libs"):
        if part.exists():
            shutil.copytree(part, closed / part.name, symlinks=True)
    with EmbeddedPostgres(directory, closed / package.name / binaries.parent.name / binaries.name, durable=False):
        assert Path(f"/proc/{postmaster(directory)}").stat().st_uid == directory.stat().st_uid != 0
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    with pytest.raises(EmbeddedPostgresError, match="DYNAMICS_SYNC_DATA_DIR"):
        server(closed / "postgres").start()


@needs_root
def test_as_root_a_temporary_directory_that_nobody_can_enter_is_told(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    directory.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    with pytest.raises(EmbeddedPostgresError, match="name another directory in TMPDIR"):
        server(None).start()
    assert list(directory.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(directory: Path) -> None:
    directory.write_text("a file, where a directory is wanted")
    with pytest.raises(EmbeddedPostgresError, match="DYNAMICS_SYNC_DATA_DIR"):
        server(directory).start()


def test_programs_that_cannot_be_run_are_told(directory: Path) -> None:
    programs = directory.parent / "bin"
    programs.mkdir()
    for name in ("initdb", "postgres"):
        (programs / name).write_text("no program")
        (programs / name).chmod(0o755)
    with pytest.raises(EmbeddedPostgresError, match="PG_BINDIR"):
        EmbeddedPostgres(directory, programs).start()
