"""Engines that reach the database through a PgBouncer in transaction mode, as through Supabase's pooler at port 6543.

A server connection is theirs for one transaction only. What the test does itself, and its users, go straight there.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from support.ports import free_port

_ports: dict[str, int] = {}
"""The port that engines use instead of a server's own, by that one."""


@contextmanager
def pgbouncer(server_url: str) -> Iterator[int]:
    """The port of a pooler before all databases of a server."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer")
    server, port = conninfo_to_dict(server_url), free_port()
    with TemporaryDirectory(prefix="dynamics-sync-test-") as directory:
        users, config, log = (Path(directory) / name for name in ("users.txt", "pgbouncer.ini", "log"))
        users.write_text(f'"{server["user"]}" "{server["password"]}"\n')
        config.write_text(
            f"[databases]\n* = host={server['host']} port={server['port']}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\npool_mode = transaction\nmax_client_conn = 1000\n"
        )
        Path(directory).chmod(0o755)
        as_nobody = ["--user", "nobody"] if os.geteuid() == 0 else []
        with log.open("wb") as output:
            process = subprocess.Popen([program, *as_nobody, str(config)], stdout=output, stderr=output)
        try:
            _until_it_answers(process, pooled(server_url, port), log)
            yield port
        finally:
            process.terminate()
            process.wait()


def pooled(database_url: str, port: int) -> str:
    """The address of the same database through a pooler."""
    at = conninfo_to_dict(database_url)
    return f"postgresql://{at['user']}:{at['password']}@127.0.0.1:{port}/{at['dbname']}"


@contextmanager
def engines_through(port: int, server_url: str) -> Iterator[None]:
    """For a while engines reach that server through the pooler at that port."""
    server_port = _port_of(server_url)
    _ports[server_port] = port
    try:
        yield
    finally:
        del _ports[server_port]


def for_engine(database_url: str) -> str:
    """The address that an engine of a test is given: the database's own, unless engines go through a pooler."""
    try:
        port = _ports.get(_port_of(database_url))
    except (psycopg.ProgrammingError, ValueError):  # a test's own nonsense
        return database_url
    return database_url if port is None else pooled(database_url, port)


def _port_of(url: str) -> str:
    return str(conninfo_to_dict(url).get("port"))


def _until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        else:
            return
