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
from contextvars import ContextVar
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psycopg

from dynamics_sync import stores, targets
from dynamics_sync.dynamics import checks, tokens
from dynamics_sync.postgres import connections, listener, outbox, retry_queue
from dynamics_sync.postgres.outbox import PostgresOutbox
from dynamics_sync.sync import lease, worker
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.lease import LeaseTimes
from dynamics_sync.transport.client import HttpClient

_admitted: ContextVar[float | None] = ContextVar("admitted", default=None)
"""When the breaker let the task's next request pass."""

PREPARE_SECONDS = 0.5

TRUCE = "truce"
"""A file beside the trace: where it is, nobody dies any more."""

Method = Callable[..., Awaitable[Any]]

_WEB_API = "/api/data/v9.2/"
_RECORD = re.compile(r"[a-z_]+\([a-z_]+='([^']+)'\)")
"""In an address, or in the body of a request for many records."""


class Point(StrEnum):
    """Where a worker dies."""

    AFTER_CLAIM = "after the claim"
    AFTER_WRITE = "after the write"
    """The answer is there; nobody but this process knows it."""
    BEFORE_SETTLE = "before settling"
    IN_QUEUE_INSERT = "in the queue insert"
    """The entry is written, its transaction not committed."""

    @property
    def death(self) -> str:
        """What the diary calls it."""
        return f"kill -9 {self}"


def lease_seconds(request_seconds: float) -> float:
    """How long leases last where a request may take so long."""
    return 2 * (PREPARE_SECONDS + request_seconds)


def install(trace: str, request_seconds: float, late_seconds: float, deaths: dict[str, int]) -> None:
    """Begin to note, and to count down to the process's death.

    Args:
        request_seconds: the longest that one request may take.
        late_seconds: for how long a request that was never answered may take effect.
        deaths: at which points to die, each at its n-th pass.
    """
    noted = _Trace(Path(trace))
    truce = Path(trace).parent / TRUCE
    _be_quick(request_seconds, late_seconds)
    death = _Death(noted, {Point(point): passes for point, passes in deaths.items()}, truce)
    HttpClient.request = _traced(HttpClient.request, noted, death)  # type: ignore[method-assign]
    DynamicsCircuitBreaker.admit = _noting(DynamicsCircuitBreaker.admit)  # type: ignore[method-assign]
    PostgresOutbox.claim = _deadly_after(PostgresOutbox.claim, death)  # type: ignore[method-assign]
    PostgresOutbox.settle = _deadly_before(PostgresOutbox.settle, death)  # type: ignore[method-assign]
    psycopg.AsyncConnection.execute = _deadly_insert(psycopg.AsyncConnection.execute, death)  # type: ignore[method-assign]


def trace_requests(trace: str) -> None:
    """Only note what leaves."""
    noted = _Trace(Path(trace))
    HttpClient.request = _traced(HttpClient.request, noted, _Death(noted, {}, Path(trace)))  # type: ignore[method-assign]


def _be_quick(request_seconds: float, late_seconds: float) -> None:
    times = LeaseTimes(lease_seconds(request_seconds), PREPARE_SECONDS, request_seconds)
    for module in (stores, targets):
        module.lease_times = lambda settings: times
    for module in (outbox, retry_queue):
        module.LATE_SECONDS = late_seconds
    worker.RESEND_SECONDS = 0.5
    lease.PREPARE_PAUSE_SECONDS = 0.5
    connections.POOL_TIMEOUT_SECONDS = 1.5
    connections.CONNECTION_OPTIONS["connect_timeout"] = 3
    listener.RECONNECT_SECONDS = 0.5
    # From a namespace, the simulator is at another machine's address.
    for module in (checks, tokens):
        module.may_carry_secrets = lambda url: True  # type: ignore[attr-defined]


class _Trace:
    """Lines that are with the kernel when the process is killed."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, **fields: object) -> None:
        os.write(self._file, json.dumps({**fields, "at": time.time()}).encode() + b"\n")


class _Death:
    def __init__(self, trace: _Trace, left: dict[Point, int], truce: Path) -> None:
        self._trace = trace
        self._left = left
        self._truce = truce

    def passes(self, point: Point) -> None:
        """The process is at that point."""
        if point not in self._left:
            return
        self._left[point] -= 1
        if self._left[point] == 0 and not self._truce.exists():
            self._trace.note(died=point)
            os.kill(os.getpid(), signal.SIGKILL)


def _noting(admit: Method) -> Method:
    async def admits(self: DynamicsCircuitBreaker) -> Any:
        verdict = await admit(self)
        _admitted.set(time.time())
        return verdict

    return admits


def _traced(request: Method, trace: _Trace, death: _Death) -> Method:
    count = 0

    async def traced(self: HttpClient, method: str, target: str, **options: Any) -> Any:
        nonlocal count
        keys = _keys_of(unquote(target), options.get("body"))
        if not keys:
            return await request(self, method, target, **options)
        count += 1
        number = count
        trace.note(began=number, keys=keys, admitted=_admitted.get())
        how = "nothing"
        try:
            answer = await request(self, method, target, **options)
            how = str(answer.status)
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            trace.note(ended=number, how=how)
        if answer.status == (200 if target.endswith("$batch") else 204):
            death.passes(Point.AFTER_WRITE)
        return answer

    return traced


def _keys_of(address: str, body: object) -> list[str]:
    """Of all records that a request of the Web API is for."""
    _, is_ours, path = address.partition(_WEB_API)
    text = body.decode() if isinstance(body, bytes) else ""
    return list(dict.fromkeys(_RECORD.findall(f"{path}\n{text}"))) if is_ours else []


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
