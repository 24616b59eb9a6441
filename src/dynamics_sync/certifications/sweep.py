"""The expiry sweep: certifications whose days have come are moved on, so that Dynamics hears of it.

The listing does not wait for it: it asks the dates (R20). What is moved is captured like anybody's change, and waits in
the outbox while nothing can be sent.
"""

from dataclasses import dataclass

from dynamics_sync.certifications.jobs import Transaction, repeat
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.ports import Clock

SWEEP = "select expiring, expired from dynamics_certifications.sweep(%s)"

EVERY_SECONDS = 60.0
AT_ONCE = 500
"""Certifications moved in one transaction, during which a person's change of one of them waits."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How many certifications became what."""

    expiring: int
    expired: int

    @property
    def count(self) -> int:
        return self.expiring + self.expired


class Sweep:
    """Moves on what is due, at once and then every minute. Any number of them may run on one database."""

    def __init__(self, transaction: Transaction, clock: Clock) -> None:
        self._transaction = transaction
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled. Whatever goes wrong is told, and tried again a minute later."""
        await repeat(self.all_due, EVERY_SECONDS, self._clock, "sweep.failed")

    async def all_due(self) -> None:
        """Batch by batch, until none is left but what somebody has locked.

        Raises:
            DatabaseError: it cannot go on for now; the batches before are moved.
        """
        count = AT_ONCE
        while count == AT_ONCE:
            moved = await self._batch()
            count = moved.count
            if count:
                emit("sweep.moved", expiring=moved.expiring, expired=moved.expired)

    async def _batch(self) -> Moved:
        async with self._transaction() as connection:
            row = await (await connection.execute(SWEEP, [AT_ONCE])).fetchone()
        return Moved(*row) if row else Moved(0, 0)
