"""Runs inside a worker process before `main`. It notes each write request as its sender sees it, in a file that
outlives the process, and kills the process at a named point. The product knows nothing of it.

It also sets what is no setting, so that nobody waits for minutes: leases, patience with the database.
"""

import json
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
import psycopg

from dynamics_sync import app
from dynamics_sync.dynamics import checks, tokens
from dynamics_sync.postgres import connections, listener, retry_queue
from dynamics_sync.postgres.outbox import PostgresOutbox

Method = Callable[..., Awaitable[Any]]

_WRITE = re.compile(r"/api/data/v9\.2/[a-z_]+\([a-z_]+='([^']+)'\)")


class Point(StrEnum):
    """Where a worker dies."""

    AFTER_CLAIM = "after the claim"
    AFTER_WRITE = "after the write"
    """The answer is there; nobody but this process knows it."""
    BEFORE_SETTLE = "before settling"
    IN_QUEUE_INSERT = "in the queue insert"
    """The entry is written, its transaction not committed."""


def install(trace: str, send_seconds: float, point: str | None = None, passes: int = 1) -> None:
    """Begin to note, and to count down to the process's death.

    Args:
        send_seconds: the longest that one try may take; leases last twice as long.
        point: where to die, at the n-th pass (`passes`).
    """
    noted = _Trace(Path(trace))
    _be_quick(send_seconds)
    death = _Death(noted, Point(point) if point else None, passes)
    request = aiohttp.ClientSession._request
    aiohttp.ClientSession._request = _traced(request, noted, death)  # type: ignore[method-assign]
    PostgresOutbox.claim = _deadly_after(PostgresOutbox.claim, death)  # type: ignore[method-assign]
    PostgresOutbox.settle = _deadly_before(PostgresOutbox.settle, death)  # type: ignore[method-assign]
    psycopg.AsyncConnection.execute = _deadly_insert(psycopg.AsyncConnection.execute, death)  # type: ignore[method-assign]


def _be_quick(send_seconds: float) -> None:
    app._send_timeout = lambda settings: send_seconds
    connections.POOL_TIMEOUT_SECONDS = 1.5
    connections.CONNECTION_OPTIONS["connect_timeout"] = 3
    listener.RECONNECT_SECONDS = 0.5
    # From a namespace, the simulator is at this machine's own end of a virtual cable.
    for module in (checks, tokens):
        module.may_carry_secrets = lambda url: True  # type: ignore[attr-defined]


class _Trace:
    """Lines that are with the kernel when the process is killed."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, **fields: object) -> None:
        os.write(self._file, json.dumps({**fields, "at": time.time()}).encode() + b"\n")


class _Death:
    def __init__(self, trace: _Trace, point: Point | None, passes: int) -> None:
        self._trace = trace
        self._point = point
        self._passes = passes

    def passes(self, point: Point) -> None:
        """The process is at that point."""
        if point is not self._point:
            return
        self._passes -= 1
        if self._passes == 0:
            self._trace.note(died=point)
            os.kill(os.getpid(), signal.SIGKILL)


def _traced(request: Method, trace: _Trace, death: _Death) -> Method:
    count = 0

    async def traced(self: aiohttp.ClientSession, method: str, url: Any, **options: Any) -> Any:
        nonlocal count
        match = _WRITE.search(unquote(str(url)))
        if match is None:
            return await request(self, method, url, **options)
        count += 1
        number = count
        trace.note(began=number, key=match[1])
        how = "nothing"
        try:
            answer = await request(self, method, url, **options)
            how = str(answer.status)
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            trace.note(ended=number, how=how)
        if answer.status == 204:
            death.passes(Point.AFTER_WRITE)
        return answer

    return traced


def _deadly_after(claim: Method, death: _Death) -> Method:
    async def claims(self: PostgresOutbox, *arguments: Any) -> Any:
        claimed = await claim(self, *arguments)
        if claimed.operations:
            death.passes(Point.AFTER_CLAIM)
        return claimed

    return claims


def _deadly_before(settle: Method, death: _Death) -> Method:
    async def settles(self: PostgresOutbox, *arguments: Any) -> None:
        death.passes(Point.BEFORE_SETTLE)
        await settle(self, *arguments)

    return settles


def _deadly_insert(execute: Method, death: _Death) -> Method:
    async def executes(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        cursor = await execute(self, query, *arguments, **options)
        if query is retry_queue.INSERT:
            death.passes(Point.IN_QUEUE_INSERT)
        return cursor

    return executes
