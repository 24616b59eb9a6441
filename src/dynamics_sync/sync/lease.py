"""Leases: no request for a record leaves, or goes on, without the lease that keeps other workers from it (I3)."""

import asyncio

from dynamics_sync.core.errors import DynamicsSyncError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import Outcome, Transient
from dynamics_sync.sync.ports import Clock, Gateway, Outbox


class LeaseLostError(DynamicsSyncError):
    """Another worker holds the record now; it is that one's to send."""


class LeasedGateway:
    """A gateway that makes no request unless the record's lease outlasts it.

    Args:
        lease_seconds: how long the outbox lets nobody else have a claimed record.
        send_seconds: the longest that `gateway.send` may take, with all that it does before and after its request.
            What takes longer is cut off, and counts as a Dynamics that did not answer in time.

    Raises:
        ValueError: the lease does not outlast a send.
    """

    def __init__(
        self, gateway: Gateway, outbox: Outbox, clock: Clock, *, lease_seconds: float, send_seconds: float
    ) -> None:
        if lease_seconds <= send_seconds:
            raise ValueError("lease_seconds must be longer than send_seconds")
        self._gateway = gateway
        self._outbox = outbox
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._send_seconds = send_seconds
        self._ends: dict[int, float] = {}

    def begin(self, operation: SyncOperation, claimed_at: float) -> None:
        """Note a lease that was asked for at the monotonic time `claimed_at`."""
        self._ends[operation.outbox_id] = claimed_at + self._lease_seconds

    def end(self, operation: SyncOperation) -> None:
        """The record is no longer ours."""
        self._ends.pop(operation.outbox_id, None)

    async def send(self, operation: SyncOperation) -> Outcome:
        """As the gateway's; LeaseLostError where the record belongs to another worker by now."""
        now = self._clock.monotonic()
        if self._ends[operation.outbox_id] < now + self._send_seconds:
            if not await self._outbox.renew(operation):
                raise LeaseLostError("The lease ended before the request; another worker sends the record.")
            self.begin(operation, now)
        try:
            async with asyncio.timeout(self._send_seconds):
                return await self._gateway.send(operation)
        except TimeoutError:
            return Transient("timeout")

    async def renew_token(self) -> None:
        """As the gateway's."""
        await self._gateway.renew_token()
