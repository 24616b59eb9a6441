"""Leases: no request for a record leaves, or goes on, without the lease that keeps other workers from it (I3)."""

import asyncio
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import NoRequest, NotOurs, NotReady, Outcome, Transient
from dynamics_sync.core.values import value
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.one_by_one import as_bulk
from dynamics_sync.sync.ports import BulkGateway, BulkRequest, Clock, Gateway, Outbox, Prepared

PREPARE_PAUSE_SECONDS = 5.0
"""How long a record is left alone that took too long to get ready."""


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
    """A gateway whose requests never outlast the leases on their records."""

    def __init__(self, gateway: Gateway | BulkGateway, outbox: Outbox, clock: Clock, times: LeaseTimes) -> None:
        self._gateway = as_bulk(gateway)
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

    def most_together(self, source_table: str) -> int:
        """As the gateway's."""
        return self._gateway.most_together(source_table)

    async def keep(self, operations: Sequence[SyncOperation]) -> AbstractSet[tuple[int, str | None]]:
        """Renew those leases that would soon be too short for a request; outbox id and claim of those that are lost."""
        return {_lease_of(operations[place]) for place in await self._renew(operations)}

    async def prepare(self, operations: Sequence[SyncOperation], *, one_by_one: bool = False) -> Prepared:
        """As the gateway's; renews leases that may not last until the end of the request."""
        lost = await self._renew(operations)
        if lost:
            kept = [place for place in range(len(operations)) if place not in lost]
            ours = await self.prepare([operations[place] for place in kept], one_by_one=one_by_one) if kept else None
            return _among(kept, ours or Prepared(), lost)
        try:
            async with asyncio.timeout(self._times.prepare_seconds):
                prepared = await self._gateway.prepare(operations, one_by_one=one_by_one)
        except TimeoutError:
            slow = NotReady("prepare_timeout", PREPARE_PAUSE_SECONDS)
            return Prepared(instead=dict.fromkeys(range(len(operations)), slow))
        if prepared.request is None:
            return prepared
        until = min(self._ends[_lease_of(operations[place])] for place in prepared.places)
        request = _LeasedRequest(self, prepared.request, len(prepared.places), until)
        return Prepared(request, prepared.places, prepared.instead)

    async def _renew(self, operations: Sequence[SyncOperation]) -> Mapping[int, NoRequest]:
        """The places of those that belong to another worker by now."""
        asked_at = self._clock.monotonic()
        enough = asked_at + self._times.prepare_seconds + self._times.request_seconds
        due = [operation for operation in operations if self._ends[_lease_of(operation)] < enough]
        if not due:
            return {}
        held = await self._outbox.renew(due)
        for operation in due:
            if _lease_of(operation) in held and _lease_of(operation) in self._ends:
                self.begin(operation, asked_at)
        late = {_lease_of(operation) for operation in due} - held
        lost: dict[int, NoRequest] = {}
        for place, operation in enumerate(operations):
            if _lease_of(operation) in late:
                lost[place] = NotOurs()
                emit(
                    "lease.lost", "warning", certification_id=operation.record_key, source_table=operation.source_table
                )
        return lost

    async def send(self, request: BulkRequest, count: int, until: float) -> Sequence[Outcome]:
        """Send what was prepared, unless a lease, which lasts until then, could end before the answer."""
        if until < self._clock.monotonic() + self._times.request_seconds:
            return [NotOurs()] * count
        try:
            async with asyncio.timeout(self._times.request_seconds):
                return await request.send()
        except TimeoutError:
            return [Transient("timeout")] * count

    async def renew_token(self) -> None:
        """As the gateway's."""
        await self._gateway.renew_token()


def _lease_of(operation: SyncOperation) -> tuple[int, str | None]:
    """A record may be claimed again while this worker still holds it under a lease that ran out."""
    return operation.outbox_id, operation.claim_id


def _among(kept: Sequence[int], prepared: Prepared, lost: Mapping[int, NoRequest]) -> Prepared:
    """What was prepared for some, with their places among all."""
    instead = {kept[place]: why for place, why in prepared.instead.items()}
    return replace(prepared, places=tuple(kept[place] for place in prepared.places), instead=instead | dict(lost))


@value
class _LeasedRequest:
    leases: LeasedGateway
    request: BulkRequest
    count: int
    until: float

    async def send(self) -> Sequence[Outcome]:
        return await self.leases.send(self.request, self.count, self.until)

    def alone(self) -> "_LeasedRequest":
        return replace(self, request=self.request.alone(), count=1)
