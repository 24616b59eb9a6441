"""No request without a lease that outlasts it, on a real outbox."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from unittest.mock import ANY

import pytest

from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import (
    Accepted,
    NothingToSend,
    NotOurs,
    NotReady,
    Outcome,
    Transient,
    Unsendable,
)
from dynamics_sync.postgres.connections import Connection, connect, make_pool
from dynamics_sync.postgres.outbox import PostgresOutbox
from dynamics_sync.sync.lease import PREPARE_PAUSE_SECONDS, LeasedGateway, LeaseTimes
from dynamics_sync.sync.ports import BulkRequest, Prepared, Request
from dynamics_sync.transport.errors import NoAnswerError
from support.clock import FakeClock
from support.engine import ENTITY_SET, stage
from support.gateway import ScriptedGateway
from support.outbox import LEASE_SECONDS, TARGET, claim_one, mark_dirty

TIMES = LeaseTimes(LEASE_SECONDS, LEASE_SECONDS / 4, LEASE_SECONDS / 4)


class SilentGateway(ScriptedGateway):
    """Never gives an answer."""

    async def send(self, operation: SyncOperation) -> Outcome:
        await super().send(operation)
        await asyncio.Event().wait()
        raise AssertionError


class SlowGateway(ScriptedGateway):
    """Never gets ready."""

    async def prepare(self, operation: SyncOperation) -> Request | NothingToSend | Unsendable | NotReady:
        await asyncio.Event().wait()
        raise AssertionError


@dataclass
class Leasing:
    """Where a record waits, and the leases of a worker that takes it."""

    user: Connection
    outbox: PostgresOutbox
    leases: LeasedGateway
    clock: FakeClock

    async def claim(self) -> SyncOperation:
        operation = await claim_one(self.outbox)
        self.leases.begin(operation, self.clock.monotonic())
        return operation

    async def ready(self, operation: SyncOperation) -> BulkRequest:
        prepared = await self.leases.prepare([operation])
        assert prepared.request is not None
        return prepared.request

    async def send(self, operation: SyncOperation) -> Outcome:
        (outcome,) = await (await self.ready(operation)).send()
        return outcome


@asynccontextmanager
async def one_waits(database: str, gateway: ScriptedGateway, times: LeaseTimes) -> AsyncIterator[Leasing]:
    clock = FakeClock()
    async with await connect(database) as user, make_pool(database, 2) as pool:
        outbox = PostgresOutbox(pool, TARGET, times.lease_seconds)
        await mark_dirty(user, "a")
        yield Leasing(user, outbox, LeasedGateway(gateway, outbox, clock, times), clock)


async def test_a_lease_too_short_for_a_request_is_renewed_first_or_nothing_leaves(database: str) -> None:
    gateway = ScriptedGateway()
    async with one_waits(database, gateway, TIMES) as on:
        operation = await on.claim()
        ends = "select lease_until from dynamics_sync.outbox"
        (first_end,) = await (await on.user.execute(ends)).fetchone() or ()

        await on.clock.sleep(LEASE_SECONDS / 2 + 1)
        assert await on.send(operation) == Accepted()
        (second_end,) = await (await on.user.execute(ends)).fetchone() or ()
        assert second_end > first_end

        await on.clock.sleep(LEASE_SECONDS / 2 + 1)
        await on.user.execute("update dynamics_sync.outbox set lease_owner = 'another worker'")
        assert await on.leases.prepare([operation]) == Prepared(instead={0: NotOurs()})
        assert gateway.sent == [operation]


async def test_a_record_that_its_worker_claimed_again_leaves_only_under_the_new_lease(database: str) -> None:
    """A worker that stood still finds in its hands what it then claims once more."""
    gateway = ScriptedGateway()
    async with one_waits(database, gateway, TIMES) as on:
        first = await on.claim()
        await on.clock.sleep(LEASE_SECONDS + 1)
        await on.user.execute("update dynamics_sync.outbox set lease_until = clock_timestamp() - interval '1 s'")
        second = await on.claim()
        assert await on.leases.prepare([first, second]) == Prepared(instead={0: NotOurs()}, request=ANY, places=(1,))
        on.leases.end(first)
        assert await on.send(second) == Accepted()
        assert gateway.sent == [second]


async def test_nothing_leaves_where_getting_ready_took_so_long_that_the_lease_could_end_first(database: str) -> None:
    gateway = ScriptedGateway()
    async with one_waits(database, gateway, TIMES) as on:
        operation = await on.claim()
        request = await on.ready(operation)
        await on.clock.sleep(LEASE_SECONDS * 0.8)
        assert await request.send() == [NotOurs()]
        assert gateway.sent == []


async def test_getting_ready_is_given_up_for_now_where_it_takes_too_long(database: str) -> None:
    gateway = SlowGateway()
    async with one_waits(database, gateway, LeaseTimes(LEASE_SECONDS, 0.01, LEASE_SECONDS / 4)) as on:
        operation = await on.claim()
        slow = NotReady("prepare_timeout", PREPARE_PAUSE_SECONDS)
        assert await on.leases.prepare([operation]) == Prepared(instead={0: slow})
        assert gateway.sent == []


@pytest.mark.parametrize("method", ["DELETE", "PATCH"])
async def test_a_lost_connection_is_no_leave_for_a_second_request(database: str, method: str) -> None:
    """Many an HTTP library would send a DELETE once more by itself."""
    async with stage(database, working=False) as on:
        await on.fault(kind="reset")
        address = f"{ENTITY_SET}(hlf_externalid='a')"
        body = b"{}" if method == "PATCH" else None
        with pytest.raises(NoAnswerError, match="connection_reset"):
            await on.engine.api.exchange(method, address, await on.engine.tokens.get(), body=body)
        assert len(await on.requests()) == 1


def test_a_lease_must_outlast_what_it_covers() -> None:
    with pytest.raises(ValueError, match="lease_seconds"):
        LeaseTimes(lease_seconds=90, prepare_seconds=45, request_seconds=45)


async def test_a_send_that_would_outlast_the_lease_is_cut_off(database: str) -> None:
    gateway = SilentGateway()
    async with one_waits(database, gateway, LeaseTimes(LEASE_SECONDS, 1.0, 0.01)) as on:
        operation = await on.claim()
        assert await on.send(operation) == Transient("timeout")
        assert gateway.sent == [operation]
