"""What is to be synchronised, and what became of it."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dynamics_sync.core.values import value

DYNAMICS = "dynamics"
"""The target that is meant where none is named: what the settings call a Dynamics environment unless told otherwise."""

PORTAL = "portal"

TARGET_NAME = re.compile(r"[a-z][a-z0-9_]{0,29}")
"""What a target may be called, as `dynamics_sync.watch` has it: the names of triggers are made of it."""


class OperationType(StrEnum):
    """What the change did to the record. What is sent is decided from the record's present state."""

    UPSERT = "upsert"
    DELETE = "delete"


@value
class SyncOperation:
    """One record that is to be brought up to date in a target. Metadata only: it holds no value of the record (R14)."""

    source_table: str
    """Schema and name: `public.certifications`."""
    record_key: str
    """The mapped key's value, as text."""
    operation_type: OperationType = OperationType.UPSERT
    version: int = 0
    """The outbox's version that the operation stands for; 0 without an outbox."""
    attempts: int = 0
    """Failed requests already behind it."""
    target: str = DYNAMICS
    """What it goes to: each target has its own circuit, outbox rows, queue entries and worker."""
    changed_columns: tuple[str, ...] = ()
    """Names of the columns that changed; empty where it is not known."""
    claim_id: str | None = None
    """The outbox lease that it was claimed under; None where no outbox holds the change."""
    outbox_id: int = 0
    """The outbox row that it was claimed from; 0 without an outbox."""

    @property
    def correlation_id(self) -> str | None:
        """What its requests are known by, here and in Dynamics: a UUID, of claim and row. None without an outbox."""
        return None if self.claim_id is None else f"{self.claim_id[:24]}{self.outbox_id & 0xFFFFFFFFFFFF:012x}"

    @property
    def record(self) -> tuple[str, str, str]:
        """What identifies the record among all targets and tables."""
        return (self.target, self.source_table, self.record_key)


class QueueStatus(StrEnum):
    """Where a retry queue entry stands (R6)."""

    PENDING_MANUAL_REPLAY = "pending_manual_replay"
    """Dynamics was not well; sending again is likely to help."""
    REQUIRES_INVESTIGATION = "requires_investigation"
    """Dynamics refused it: something has to be put right first."""
    REPLAYING = "replaying"
    """A person sent it again: it is in the outbox."""
    REPLAYED = "replayed"
    SUPERSEDED = "superseded"
    """A newer change of the record got through."""
    DISCARDED = "discarded"

    @property
    def is_open(self) -> bool:
        """Whether the entry still stands for something that Dynamics lacks."""
        return self in OPEN_STATUSES


WAITING_STATUSES = (QueueStatus.PENDING_MANUAL_REPLAY, QueueStatus.REQUIRES_INVESTIGATION)
"""What a person can act on."""

OPEN_STATUSES = (*WAITING_STATUSES, QueueStatus.REPLAYING)


class FailureReason(StrEnum):
    """Why an operation was given up."""

    RETRIES_EXHAUSTED = "retries_exhausted"
    CIRCUIT_OPEN = "circuit_open"
    THROTTLED = "throttled"
    NO_TOKEN = "no_token"  # noqa: S105 - the name of a reason
    REJECTED = "rejected"
    UNAUTHORIZED = "unauthorized"
    CONFLICT = "conflict"
    CONTRACT_MISMATCH = "contract_mismatch"
    UNSENDABLE = "unsendable"

    @property
    def queue_status(self) -> QueueStatus:
        """A fault of Dynamics may pass by itself; a refusal needs a person to look first."""
        if self in (self.RETRIES_EXHAUSTED, self.CIRCUIT_OPEN, self.THROTTLED, self.NO_TOKEN):
            return QueueStatus.PENDING_MANUAL_REPLAY
        return QueueStatus.REQUIRES_INVESTIGATION


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One request that failed, for an operation's time line."""

    attempt_number: int
    at: datetime
    error_code: str
    delay_ms: int


@value
class Applied:
    """Dynamics holds the state that was read when the request was made."""

    attempts: int
    """Requests that it took, the successful one included."""
    etag: str | None = None
    unanswered: bool = False
    """An earlier request got no answer: it may take effect late, over the state that was read for this one."""
    payload_hash: bytes | None = None
    """A digest of what was written; None where it is not known."""
    is_sent: bool = True
    """False where Dynamics was known to hold this state already, and no request was made."""


@dataclass(frozen=True, slots=True)
class Queued:
    """Given up: an entry in the retry queue waits for a person."""

    entry_id: str
    status: QueueStatus
    reason: FailureReason
    attempt_count: int
    error_code: str


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not sent for now; the change waits in the outbox and nothing needs to be done."""

    attempts: int
    """Failed requests behind it, to be kept."""
    retry_at: datetime
    failures: tuple[FailedAttempt, ...] = ()
    unanswered: bool = False
    """A request got no answer: it may take effect late."""


SyncResult = Applied | Queued | Deferred
"""What `HLFDynamicsSyncService.sync` gives back."""
