"""Leases: no request for a record leaves, or goes on, without the lease that keeps other workers from it (I3)."""

import asyncio
from dataclasses import dataclass

from dynamics_sync.core.errors import DynamicsSyncError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import NothingToSend, NotReady, Outcome, Transient, Unsendable
from dynamics_sync.sync.ports import Clock, Gateway, Outbox, Request

PREPARE_PAUSE_SECONDS = 5.0
"""How long a record is left alone that took too long to get ready."""


class LeaseLostError(DynamicsSyncError):
    """Another worker holds the record now; it is that one's to send."""


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """How long what may take, in seconds.

    Raises:
        ValueError: a lease does not outlast what it covers.
    """

    lease_seconds: float
    """For how long the outbox lets nobody else have a claimed record."""
    prepare_seconds: float
    """The longest that getting a request ready may take. What takes longer is given up for now."""
    request_seconds: float
    """The longest that a request may take. What takes longer is cut off, as a Dynamics that did not answer in time."""

    def __post_init__(self) -> None:
        if self.lease_seconds <= self.prepare_seconds + self.request_seconds:
            raise ValueError("lease_seconds must be longer than prepare_seconds and request_seconds together")


class LeasedGateway:
    """A gateway whose requests never outlast the lease on their record."""

    def __init__(self, gateway: Gateway, outbox: Outbox, clock: Clock, times: LeaseTimes) -> None:
        self._gateway = gateway
        self._outbox = outbox
        self._clock = clock
        self._times = times
        self._ends: dict[tuple[int, str | None], float] = {}

    def begin(self, operation: SyncOperation, claimed_at: float) -> None:
        """Note a lease that was asked for at the monotonic time `claimed_at`."""
        self._ends[_lease_of(operation)] = claimed_at + self._times.lease_seconds

    def end(self, operation: SyncOperation) -> None:
        """The record is no longer ours."""
        self._ends.pop(_lease_of(operation), None)

    async def prepare(self, operation: SyncOperation) -> Request | NothingToSend | Unsendable | NotReady:
        """As the gateway's; renews a lease that may not last until the end of the request.

        Raises:
            LeaseLostError: the record belongs to another worker by now.
        """
        if not self._lasts(operation, self._times.prepare_seconds + self._times.request_seconds):
            asked_at = self._clock.monotonic()
            if not await self._outbox.renew(operation):
                raise LeaseLostError("The lease ended before the request; another worker sends the record.")
            self.begin(operation, asked_at)
        try:
            async with asyncio.timeout(self._times.prepare_seconds):
                prepared = await self._gateway.prepare(operation)
        except TimeoutError:
            return NotReady("prepare_timeout", PREPARE_PAUSE_SECONDS)
        if isinstance(prepared, NothingToSend | Unsendable | NotReady):
            return prepared
        return _LeasedRequest(self, operation, prepared)

    async def send(self, operation: SyncOperation, request: Request) -> Outcome:
        """Send what was prepared; LeaseLostError if the lease could end before the answer."""
        if not self._lasts(operation, self._times.request_seconds):
            raise LeaseLostError("The lease would not outlast the request, which took too long to get ready.")
        try:
            async with asyncio.timeout(self._times.request_seconds):
                return await request.send()
        except TimeoutError:
            return Transient("timeout")

    async def renew_token(self) -> None:
        """As the gateway's."""
        await self._gateway.renew_token()

    def _lasts(self, operation: SyncOperation, seconds: float) -> bool:
        return self._ends[_lease_of(operation)] >= self._clock.monotonic() + seconds


def _lease_of(operation: SyncOperation) -> tuple[int, str | None]:
    """A record may be claimed again while this worker still holds it under a lease that ran out."""
    return operation.outbox_id, operation.claim_id


@dataclass(frozen=True, slots=True)
class _LeasedRequest:
    leases: LeasedGateway
    operation: SyncOperation
    request: Request

    async def send(self) -> Outcome:
        return await self.leases.send(self.operation, self.request)
