"""No request without a lease that outlasts it, on a real outbox."""

import asyncio

import pytest

from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import Accepted, Outcome, Transient
from dynamics_sync.postgres.connections import connect, make_pool
from dynamics_sync.postgres.outbox import PostgresOutbox
from dynamics_sync.sync.lease import LeasedGateway, LeaseLostError
from support.clock import FakeClock
from support.gateway import ScriptedGateway
from support.outbox import LEASE_SECONDS, TARGET, change, claim_one


class SilentGateway(ScriptedGateway):
    """Never gives an answer."""

    async def send(self, operation: SyncOperation) -> Outcome:
        await super().send(operation)
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_lease_too_short_for_a_request_is_renewed_first_or_nothing_leaves(database: str) -> None:
    clock, gateway = FakeClock(), ScriptedGateway()
    async with await connect(database) as user, make_pool(database, 2) as pool:
        outbox = PostgresOutbox(pool, TARGET, LEASE_SECONDS)
        leases = LeasedGateway(gateway, outbox, clock, lease_seconds=LEASE_SECONDS, send_seconds=LEASE_SECONDS / 2)
        await change(user, "a")
        operation = await claim_one(outbox)
        leases.begin(operation, clock.monotonic())
        ends = "select lease_until from dynamics_sync.outbox"
        (first_end,) = await (await user.execute(ends)).fetchone() or ()

        await clock.sleep(LEASE_SECONDS / 2 + 1)
        assert await leases.send(operation) == Accepted()
        (second_end,) = await (await user.execute(ends)).fetchone() or ()
        assert second_end > first_end

        await clock.sleep(LEASE_SECONDS / 2 + 1)
        await user.execute("update dynamics_sync.outbox set lease_owner = 'another worker'")
        with pytest.raises(LeaseLostError):
            await leases.send(operation)
        assert gateway.sent == [operation]


async def test_a_send_that_would_outlast_the_lease_is_cut_off(database: str) -> None:
    clock, gateway = FakeClock(), SilentGateway()
    async with await connect(database) as user, make_pool(database, 2) as pool:
        outbox = PostgresOutbox(pool, TARGET, LEASE_SECONDS)
        leases = LeasedGateway(gateway, outbox, clock, lease_seconds=LEASE_SECONDS, send_seconds=0.01)
        await change(user, "a")
        operation = await claim_one(outbox)
        leases.begin(operation, clock.monotonic())
        assert await leases.send(operation) == Transient("timeout")
        assert gateway.sent == [operation]
