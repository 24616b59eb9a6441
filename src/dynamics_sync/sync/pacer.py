"""One worker's part of the pace that all workers of a target keep together.

A sender enters before it takes records and leaves when they are dealt with. Now and then, while it sends, the worker
says what it heard, and reads how much of the whole is its part. Where the database cannot be reached, it keeps to what
it last read.
"""

import asyncio
import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import IsWell, Outcome, Throttled, Transient
from dynamics_sync.core.pace import (
    START,
    Allowance,
    Hints,
    Latency,
    Signals,
    adjusted,
    begun_anew,
    gap_seconds,
)
from dynamics_sync.core.values import value
from dynamics_sync.sync.clock import StoppableClock, StoppedError
from dynamics_sync.sync.ports import BulkGateway, BulkRequest, PaceStore, Prepared

LOOK_SECONDS = 0.1
"""How often a worker that sends looks at the pace; less often where its requests leave less often."""

MOST_LOOK_SECONDS = 1.0
"""After so long it does in any case: others may have found out something."""

IDLE_SECONDS = 2.0
"""After so long without a place a worker leaves its records to others."""

_CUT_OFF = (Transient("timeout"),)


class Pacer:
    """
    Args:
        most: requests that this worker makes at once at most.
        worker: its name, which no other worker has.
    """

    def __init__(self, store: PaceStore, clock: StoppableClock, most: int, worker: str) -> None:
        self._store = store
        self._clock = clock
        self._most = most
        self._worker = worker
        self._share = 1
        self._part = 1.0
        self._placeless_since = math.inf
        self._parallelism: int | None = None
        self._requests: Allowance | None = None
        self._execution: Allowance | None = None
        self._latencies: dict[tuple[str, int], Latency] = {}
        self._request_seconds = 0.0
        self._heard = Signals()
        self._entered = 0
        self._entered_at = -math.inf
        self._more_room = asyncio.Event()
        self._under_way = 0
        self._waiting = 0
        self._is_busy = asyncio.Event()
        self._closed = False

    @property
    def share(self) -> int:
        """How many requests may be under way at present."""
        return self._share

    @property
    def has_no_part(self) -> bool:
        """There are more workers than requests at once, for some time now: the others send."""
        return self._clock.monotonic() - self._placeless_since >= IDLE_SECONDS

    async def enter(self) -> None:
        """Wait for a place among the requests that may be under way, and until the next one may leave; or until the
        worker stops."""
        with contextlib.suppress(StoppedError):
            while (wait_seconds := self._wait_seconds()) > 0 and not self._closed:
                await self._wait(wait_seconds)
        self._entered += 1
        self._entered_at = self._clock.monotonic()

    def leave(self) -> None:
        """Give the place to the next one."""
        self._entered -= 1
        self._more_room.set()

    async def rest(self, seconds: float) -> None:
        """Sleep between two requests, with the place given to others meanwhile.

        Raises:
            StoppedError: the worker stopped, or it has no part any more: another one may make the next request.
        """
        self.leave()
        try:
            await self._clock.sleep(seconds)
            while (wait_seconds := self._wait_seconds()) > 0:
                if self._closed or self.has_no_part:
                    raise StoppedError
                await self._wait(wait_seconds)
            self._entered_at = self._clock.monotonic()
        finally:
            self._entered += 1  # it is left once more in any case

    async def _wait(self, seconds: float) -> None:
        self._waiting += 1
        self._is_busy.set()
        try:
            if seconds < math.inf:
                await self._clock.sleep(min(seconds, MOST_LOOK_SECONDS))
            else:
                self._more_room.clear()
                await self._more_room.wait()
        finally:
            self._waiting -= 1

    def look_first(self) -> None:
        """Nothing may be sent for now: when it may, the pace will be another."""
        self._share = 0
        self._is_busy.set()

    def close(self) -> None:
        """The worker stops: nobody waits any more."""
        self._closed = True
        self._more_room.set()

    def hear(self, hints: Hints) -> None:
        """An answer said this of the limits."""
        self._parallelism = hints.parallelism or self._parallelism
        self._requests = Allowance.after(self._requests, hints.requests_left)
        self._execution = Allowance.after(self._execution, hints.seconds_left)

    def leaves(self) -> None:
        """A request leaves."""
        self._under_way += 1
        self._is_busy.set()

    def ends(self, table: str, count: int, seconds: float, outcomes: Sequence[Outcome]) -> None:
        """A request for `count` records of a table was answered after so long, or is given up."""
        is_full = self._under_way == self._share
        self._under_way -= 1
        self._request_seconds = seconds
        kind = (table, count.bit_length())
        if any(isinstance(outcome, IsWell) for outcome in outcomes):
            latency = self._latencies[kind] = Latency.after(self._latencies.get(kind), seconds)
            self._heard.slow |= latency.is_rising
            self._heard.full |= is_full
        elif any(isinstance(outcome, Transient) for outcome in outcomes):
            self._heard.failed = True
        if any(isinstance(outcome, Throttled) for outcome in outcomes):
            self._heard.throttled = True
            self._forget_limits()

    async def run(self) -> None:
        """Keep the pace until the worker stops or this is cancelled."""
        with contextlib.suppress(StoppedError):
            while True:
                await self._is_busy.wait()
                if self._under_way == 0 and self._waiting == 0 and self._share > 0:
                    self._is_busy.clear()
                with contextlib.suppress(DatabaseError):
                    await self._look()
                await self._clock.sleep(max(LOOK_SECONDS, min(self._gap_seconds(), MOST_LOOK_SECONDS)))

    async def _look(self) -> None:
        """Say what was heard, and read what this worker's part is."""
        signals, self._heard = self._heard, Signals()
        signals.seconds = self._request_seconds
        reading = await self._store.share(self._worker)
        known = reading.pace
        if reading.is_first:
            pace = begun_anew(known, reading.now)
        else:
            pace = adjusted(known, signals, self._most_of_all(reading.workers), reading.now)
        if pace != known and not await self._store.compare_and_set(known, pace):
            pace = known  # another worker was faster: what goes on will be heard again
        share = pace.concurrency // reading.workers + (reading.rank < pace.concurrency % reading.workers)
        if self._share == 0:
            self._forget_limits()  # others have sent meanwhile
        self._share = min(share, self._most)
        if share > 0:
            self._placeless_since = math.inf
        else:
            self._placeless_since = min(self._placeless_since, self._clock.monotonic())
        self._part = max(share, 1) / pace.concurrency
        self._more_room.set()

    def _most_of_all(self, workers: int) -> int:
        if any(allowance is not None and allowance.is_spent for allowance in (self._requests, self._execution)):
            return START
        usable = self._most * workers
        return usable if self._parallelism is None else min(self._parallelism, usable)

    def _forget_limits(self) -> None:
        """What is left of them is not known until the next answer."""
        self._requests = self._requests and self._requests.forgotten()
        self._execution = self._execution and self._execution.forgotten()

    def _wait_seconds(self) -> float:
        """Until the next request may leave; infinite until a place is free."""
        if self._entered >= self._share:
            return math.inf
        return self._entered_at + self._gap_seconds() - self._clock.monotonic()

    def _gap_seconds(self) -> float:
        under_way = self._under_way / self._part
        return gap_seconds(self._requests, self._execution, self._request_seconds, under_way, self._part)


class PacedClock:
    """A clock on which whoever sleeps keeps no place from others."""

    def __init__(self, clock: StoppableClock, pacer: Pacer) -> None:
        self._pacer = pacer
        self.now = clock.now
        self.monotonic = clock.monotonic

    async def sleep(self, seconds: float) -> None:
        """As the clock's."""
        await self._pacer.rest(seconds)


class PacedGateway:
    """A gateway whose requests the pacer watches."""

    def __init__(self, gateway: BulkGateway, pacer: Pacer, clock: StoppableClock) -> None:
        self._gateway = gateway
        self._pacer = pacer
        self._clock = clock

    def most_together(self, source_table: str) -> int:
        """As the gateway's."""
        return self._gateway.most_together(source_table)

    async def prepare(self, operations: Sequence[SyncOperation], *, one_by_one: bool = False) -> Prepared:
        """As the gateway's."""
        prepared = await self._gateway.prepare(operations, one_by_one=one_by_one)
        if prepared.request is None:
            return prepared
        table, count = operations[0].source_table, len(prepared.places)
        request = _PacedRequest(self._pacer, self._clock, prepared.request, table, count)
        return Prepared(request, prepared.places, prepared.instead)

    async def renew_token(self) -> None:
        """As the gateway's."""
        await self._gateway.renew_token()


@value
class _PacedRequest:
    pacer: Pacer
    clock: StoppableClock
    request: BulkRequest
    table: str
    count: int

    async def send(self) -> Sequence[Outcome]:
        outcomes: Sequence[Outcome] = _CUT_OFF
        began = self.clock.monotonic()
        self.pacer.leaves()
        try:
            outcomes = await self.request.send()
        finally:
            self.pacer.ends(self.table, self.count, self.clock.monotonic() - began, outcomes)
        return outcomes

    def alone(self) -> "_PacedRequest":
        return replace(self, request=self.request.alone(), count=1)
