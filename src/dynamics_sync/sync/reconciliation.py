"""What reconciliation keeps, so that it can be killed at any moment, and what it needs of the database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from dynamics_sync.core.comparison import Finding, Row
from dynamics_sync.core.errors import DynamicsSyncError
from dynamics_sync.core.mapping import UnsendableError


class Phase(StrEnum):
    """What is done to a table, in this order."""

    DYNAMICS = "dynamics"
    """A first look at what Dynamics holds: all of it, or what changed since the last time."""
    ROWS = "rows"
    """Each row beside what was seen; where they don't agree, a second look decides."""
    GONE = "gone"
    """The same for what was seen and has no row."""
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the comparison of one table is."""

    source_table: str
    run: int
    """Grows with each comparison of any table."""
    full_run: int
    """The run that last read all of Dynamics' table: what was seen before it does not count."""
    full_at: datetime
    mapping: str
    """A digest of the table's mapping and the Dynamics environment: with another, what was seen means nothing."""
    begun_at: datetime
    finished_at: datetime | None = None
    phase: Phase = Phase.DYNAMICS
    link: str | None = None
    """Where reading Dynamics goes on; None for the beginning."""
    after: str | None = None
    """Behind which key, or id in Dynamics, the other phases go on."""
    delta_link: str | None = None
    """Leads to what changes after this run; None where the table does not track changes."""
    anchor_id: str | None = None
    """The record that had changed last when the run before this one ended, and its etag."""
    anchor_etag: str | None = None
    newest_id: str | None = None
    """The same for this run."""
    newest_etag: str | None = None
    compared: int = 0
    waiting: int = 0
    """Records that could not be judged: a change of them is on its way or in the queue."""
    without_key: int = 0
    """Records of Dynamics that have no key: made there, and none of ours."""

    @property
    def is_full(self) -> bool:
        """Whether this run reads all of Dynamics' table."""
        return self.run == self.full_run


@dataclass(frozen=True, slots=True)
class Seen:
    """A record that Dynamics was seen to hold."""

    id: str
    record_key: str
    fingerprint: str | None
    """Of the row that it agreed with; None if it did not agree."""


@dataclass(frozen=True, slots=True)
class TableReport:
    """What came of one table."""

    source_table: str
    compared: int = 0
    missing: int = 0
    different: int = 0
    extra: int = 0
    repaired: int = 0
    waiting: int = 0
    without_key: int = 0
    error: str | None = None
    """Why it could not be compared to the end, in words for people."""

    @property
    def differences(self) -> int:
        return self.missing + self.different + self.extra


@dataclass(frozen=True, slots=True)
class StoredFinding:
    """A finding as it is kept for people."""

    source_table: str
    record_key: str
    kind: str
    attributes: tuple[str, ...]
    found_at: datetime
    repaired_at: datetime | None


class TurnLostError(DynamicsSyncError):
    """Somebody else reconciles now."""

    def __init__(self) -> None:
        super().__init__(
            "Another reconciliation has taken over, because this one was silent for too long. Nothing is lost: it goes "
            "on where this one was."
        )


class Rows(Protocol):
    """The rows of mapped tables."""

    async def read_many(self, source_table: str, keys: Sequence[str]) -> Mapping[str, Row | UnsendableError]:
        """The mapped columns by key, of those that are there. A row that cannot be read has its reason instead."""
        ...

    async def next_keys(self, source_table: str, after: str | None, limit: int) -> Sequence[str]:
        """The next keys of a table, in the order of the key's own type."""
        ...


class ReconciliationStore(Protocol):
    """Where progress, what was seen and what was found are kept. All of it is of one target."""

    async def now(self) -> datetime:
        """The time by which records are noted as applied."""
        ...

    async def next_run(self) -> int: ...

    async def load(self, source_table: str) -> Progress | None: ...

    async def forget(self, source_tables: Sequence[str]) -> None:
        """Let the next comparison of these tables begin as the first one did."""
        ...

    async def save(
        self,
        progress: Progress,
        *,
        seen: Sequence[Seen] = (),
        deleted: Sequence[str] = (),
        findings: Sequence[Finding] = (),
    ) -> None:
        """Keep all of it, or nothing.

        Raises:
            TurnLostError: somebody else reconciles now.
        """
        ...

    async def finish(self, progress: Progress) -> None:
        """`save`, and forget what this run did not see or find."""
        ...

    async def fingerprints(self, progress: Progress, keys: Sequence[str]) -> Mapping[str, str | None]:
        """What was seen of these keys."""
        ...

    async def seen_after(self, progress: Progress, limit: int) -> Sequence[Seen]:
        """The next records that were seen, behind the id at which the progress is."""
        ...

    async def was_seen(self, progress: Progress, record_id: str) -> bool | None:
        """Whether the record was seen in this very run; None if it is not known at all, or no longer."""
        ...

    async def on_their_way(self, source_table: str, keys: Sequence[str], since: datetime | None) -> set[str]:
        """Which of the records have a change that waits, is being sent, is in the queue, or arrived after `since`.
        All of it as of one moment."""
        ...

    async def repair(self, progress: Progress, limit: int) -> int:
        """Mark the records of some findings dirty that have not been yet; give their number."""
        ...

    async def report(self, progress: Progress) -> TableReport: ...


class Turns(Protocol):
    """One reconciliation at a time, among all processes, and when the next one is due."""

    async def take(self, if_due_every_seconds: float | None = None) -> bool:
        """Begin one's turn, which ends by itself unless it is kept; False while somebody else has it, or if one is
        wanted only where it is due and it is not."""
        ...

    async def keep(self) -> None:
        """Raises TurnLostError if the turn has passed to somebody else."""
        ...

    async def give_back(self) -> None: ...

    async def begin(self, *, restart: bool) -> datetime:
        """Begin a reconciliation of all tables, or go on with one that was not finished; give its beginning."""
        ...

    async def finished(self) -> None:
        """All tables were reconciled."""
        ...

    async def failed(self, pause_seconds: float) -> None:
        """It could not be finished: no other is due for a while."""
        ...

    async def seconds_until_due(self, every_seconds: float) -> float:
        """How long until the next one is due; 0 if it is, as one that was begun and not finished always is."""
        ...
