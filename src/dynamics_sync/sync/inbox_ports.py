"""What passes between the inbox, its store and whoever receives deliveries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from dynamics_sync.core.conflicts import Clash, Incoming
from dynamics_sync.core.incoming import InboxStatus, RecordChange
from dynamics_sync.sync.reading import Held


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a webhook brought: the body as it came, and what could be told of it without knowing its contract."""

    delivery_id: str
    """The same for each try of one delivery, and for no other."""
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    entity_name: str | None = None
    message: str | None = None
    record_id: str | None = None
    operation_at: datetime | None = None
    correlation_id: str | None = None


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery under a lease."""

    id: int
    claim_id: str
    claimed_at: datetime
    """By the database's clock."""
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    attempts: int


@dataclass(frozen=True, slots=True)
class Contract:
    """One version of what Dynamics sends."""

    name: str
    read: Callable[[Mapping[str, str], bytes], RecordChange | None]
    """Headers and body, as a change; None for what this version does not understand. Never raises."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Done with: stored as such, together with what was written."""

    status: InboxStatus
    code: str | None = None
    clashes: tuple[Clash, ...] = ()


@dataclass(frozen=True, slots=True)
class NoSuchRow:
    """There is no row that the change could go to. Nothing was done."""

    code: str = "inbox.no_such_row"


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """Somebody else has the delivery by now. Nothing was done."""


Application = Settled | NoSuchRow | LeaseLost


class BusyError(Exception):
    """Somebody holds the row, or sent it just now: another try will do."""


class NotApplicableError(Exception):
    """The row cannot be read or written as the change wants it. Carries a code of ours and a name, never a value."""

    def __init__(self, code: str, name: str) -> None:
        super().__init__(code, name)
        self.code = code
        self.name = name


class InboxStore(Protocol):
    """Where deliveries wait."""

    async def claim(self, limit: int, lease_seconds: float) -> Sequence[ClaimedDelivery]:
        """Take up to `limit` that nobody holds and that are due, not more than one of a record; the oldest first."""
        ...

    async def release(self, claimed: ClaimedDelivery, wait_seconds: float, *, failures: int = 0) -> None:
        """Let one wait for another turn, at the earliest in so many seconds."""
        ...

    async def settle(
        self,
        claimed: ClaimedDelivery,
        status: InboxStatus,
        code: str | None = None,
        *,
        place: str | None = None,
        contract: str | None = None,
    ) -> None:
        """Say where it stands, where no row of ours is touched."""
        ...

    async def known_key(self, entity_name: str, record_id: str, source_table: str) -> str | None:
        """The key of a record of Dynamics, if it was told or seen before."""
        ...

    async def forget_old(self) -> None:
        """Delete what was settled long ago."""
        ...


class Rows(Protocol):
    """Applies changes to rows, each in one transaction."""

    async def apply(
        self,
        claimed: ClaimedDelivery,
        contract: str,
        change: RecordChange,
        incoming: Incoming,
        record_key: str,
        held: Held | None,
    ) -> Application:
        """Bring the row up to date with a change, and settle the delivery.

        Args:
            held: the record as Dynamics had it after the delivery was claimed, if it was asked for.

        Raises:
            RecordNeededError: it must be asked for. Nothing was done.
            UndecodableError, NotApplicableError: somebody has to put something right. Nothing was done.
            BusyError, DatabaseError: not now. Nothing was done.
        """
        ...

    async def restore(
        self, claimed: ClaimedDelivery, contract: str, change: RecordChange, incoming: Incoming, record_key: str
    ) -> Application:
        """The record was deleted in Dynamics: if the row is there, have it sent again, and settle the delivery."""
        ...
