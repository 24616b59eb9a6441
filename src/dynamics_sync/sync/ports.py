"""What the engine needs from the world. `dynamics`, `portal` and `postgres` provide it."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, runtime_checkable

from dynamics_sync.core.circuit import Circuit
from dynamics_sync.core.mapping import UnsendableError
from dynamics_sync.core.operation import Applied, FailedAttempt, FailureReason, SyncOperation
from dynamics_sync.core.outcome import NoRequest, NothingToSend, NotReady, Outcome, Unsendable
from dynamics_sync.core.pace import Pace
from dynamics_sync.core.values import value


class Clock(Protocol):
    """Time comes in through here and nowhere else."""

    def now(self) -> datetime:
        """The present time, with a time zone."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait without blocking the event loop."""
        ...


@value
class Reading:
    """A record as it is now."""

    row: Mapping[str, object] | UnsendableError | None = field(repr=False)
    """The mapped columns; None if the record is gone, an error if it cannot be read."""
    payload_hash: bytes | None = None
    """A digest of the payload that the target is known to hold; None where that is not certain."""


class Records(Protocol):
    """Where the present state of records is read."""

    async def read(self, operations: Sequence[SyncOperation]) -> Sequence[Reading]:
        """All of them at once; DatabaseError if no table can be read for now."""
        ...


class Request(Protocol):
    """A request that is ready to leave."""

    async def send(self) -> Outcome:
        """Make the request, at once: nothing else is awaited before it leaves. May be called once.

        Raises only where no request was made and none of the outcomes fits, as when the lease is over.
        """
        ...


class Gateway(Protocol):
    """The way to one target, one record at a time."""

    async def prepare(self, operation: SyncOperation) -> Request | NothingToSend | Unsendable | NotReady:
        """Do all that has to be done before the breaker is asked: read the record's present state, have a token.

        Raises only where none of the outcomes fits, as when the database is gone.
        """
        ...

    async def renew_token(self) -> None:
        """Forget the access token, so that the next request asks for a new one."""
        ...


class BulkRequest(Protocol):
    """A request that is ready to leave, for one record or for many."""

    async def send(self) -> Sequence[Outcome]:
        """Make it, as `Request.send`; what it came to for each of its records."""
        ...

    def alone(self) -> "BulkRequest":
        """A request for the first of its records alone, ready to leave: all that a half-open circuit lets through."""
        ...


@value
class Prepared:
    """What became of records that were to be got ready. Those that it does not name are left for a later request."""

    request: BulkRequest | None = None
    places: Sequence[int] = ()
    """Which of them, in what was asked, the request is for."""
    instead: Mapping[int, NoRequest] = field(default_factory=dict)
    """Why others need no request, or can have none, by their place."""


@runtime_checkable
class BulkGateway(Protocol):
    """The way to one target, for many records of one table at a time."""

    def most_together(self, source_table: str) -> int:
        """How many records of a table one request takes at present."""
        ...

    async def prepare(self, operations: Sequence[SyncOperation], *, one_by_one: bool = False) -> Prepared:
        """Get as many of them ready as one request takes, as `Gateway.prepare`; at least one, unless none needs a
        request.

        Args:
            one_by_one: each must stand or fall by itself: a request in which all stand or fall together was refused.
        """
        ...

    async def renew_token(self) -> None:
        """Forget the access token, so that the next request asks for a new one."""
        ...


@value
class CircuitReading:
    """A circuit as stored, and the time of the clock that it is to be judged by."""

    circuit: Circuit
    now: datetime


class CircuitStore(Protocol):
    """Where the circuit of one target lives."""

    async def load(self) -> CircuitReading: ...

    async def compare_and_set(self, expected: Circuit, new: Circuit, not_after: datetime | None = None) -> bool:
        """Store `new` if the stored circuit still has the revision of `expected`, and if it is not later than
        `not_after` by the clock that `load` reads."""
        ...


@dataclass(frozen=True, slots=True)
class PaceReading:
    """The pace of a target as stored, and the place of one worker among those that send to it."""

    pace: Pace
    now: datetime
    """The time of the clock that it is to be judged by."""
    workers: int = 1
    """How many send at present."""
    rank: int = 0
    """This one's place among them, from 0."""
    is_first: bool = False
    """Nobody sent for a while before."""


class PaceStore(Protocol):
    """Where the pace of one target lives."""

    async def share(self, worker: str) -> PaceReading:
        """Note that a worker sends at present, and read the pace."""
        ...

    async def compare_and_set(self, expected: Pace, new: Pace) -> bool:
        """Store `new` if the stored pace still has the revision of `expected`."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an operation is given up, with all that a queue entry says."""

    operation: SyncOperation
    reason: FailureReason
    error_code: str
    attempt_count: int
    failures: tuple[FailedAttempt, ...] = ()
    place: str | None = None
    """The name of the column or table that stands in the way, where one does."""
    unanswered: bool = False
    """A request got no answer: it may take effect late."""


class RetryQueue(Protocol):
    """Where given-up operations wait for a person (R6)."""

    async def add(self, failure: Failure) -> str:
        """Store an entry, or bring the record's open entry up to date; give its id.

        Where the operation was claimed from an outbox, the same transaction settles it there.
        """
        ...


@dataclass(frozen=True, slots=True)
class Claim:
    """What one claim brought: operations under a lease, and the circuit as it stood in the same moment."""

    operations: Sequence[SyncOperation]
    reading: CircuitReading


class Outbox(Protocol):
    """The dirty set: one row for each record that Dynamics does not have in its newest state."""

    async def gather(self) -> None:
        """Bring what users changed into the outbox; claims do so, too."""
        ...

    async def claim(self, limit: int) -> Claim:
        """Gather, and take up to `limit` records that nobody else holds, least tried first, then oldest. Where the
        lease of one ran out, a request may have been under way: it is noted as unanswered."""
        ...

    async def renew(self, operations: Sequence[SyncOperation]) -> AbstractSet[tuple[int, str | None]]:
        """Begin their leases anew; give outbox id and claim of those that have not passed to somebody else."""
        ...

    async def settle(self, arrived: Sequence[tuple[SyncOperation, Applied]]) -> None:
        """The records arrived. A row goes, unless the record changed again or the lease was lost meanwhile:
        then it stays, or is marked dirty again. What had an unanswered request before is noted. Where a user's
        transaction has a row, it is waited for a moment; then the lease ends by itself."""
        ...

    async def release(
        self,
        operation: SyncOperation,
        attempts: int,
        failures: Sequence[FailedAttempt] = (),
        unanswered: bool = False,
    ) -> None:
        """Let go of the record without having sent it; its count is kept, and that a request got no answer is noted.

        Where a user's transaction has the row, it is waited for a moment; then the lease ends by itself.
        """
        ...

    async def resend_unanswered(self) -> None:
        """Mark those records dirty whose unanswered requests can no longer take effect by now: what they may have
        written late is written over."""
        ...
