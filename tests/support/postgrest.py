"""The real PostgREST, between a test and a database as Supabase has it."""

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import make_conninfo

from support.npm import postgrest
from support.ports import free_port
from support.supabase import PASSWORD

EXPOSED = "public, graphql_public"
"""Supabase's own setting."""


@contextmanager
def rest_server(database: str, jwt_secret: str, log: Path) -> Iterator[str]:
    """Its address, once it answers. As on Supabase it logs in as `authenticator`, and takes the token's role."""
    port, admin_port = free_port(), free_port()
    settings = {
        "PGRST_DB_URI": make_conninfo(database, user="authenticator", password=PASSWORD),
        "PGRST_DB_SCHEMAS": EXPOSED,
        "PGRST_DB_EXTRA_SEARCH_PATH": "public, extensions",
        "PGRST_DB_ANON_ROLE": "anon",
        "PGRST_JWT_SECRET": jwt_secret,
        "PGRST_SERVER_HOST": "127.0.0.1",
        "PGRST_SERVER_PORT": str(port),
        "PGRST_ADMIN_SERVER_PORT": str(admin_port),
    }
    with log.open("wb") as output:
        process = subprocess.Popen([postgrest()], env={**os.environ, **settings}, stdout=output, stderr=output)
    try:
        _until_ready(process, f"http://127.0.0.1:{admin_port}/ready", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _until_ready(process: subprocess.Popen[bytes], page: str, log: Path) -> None:
    """Until it has read the database's schema."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(page, timeout=5):
                return
        except (OSError, urllib.error.HTTPError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
