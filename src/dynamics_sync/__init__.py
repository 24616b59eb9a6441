"""dynamics-sync: every committed change of a record reaches Microsoft Dynamics 365, or a person knows why not.

The names here are for programs that use the service or the breaker by themselves; `dynamics-sync --help` is for
everybody else.
"""

from dynamics_sync.core.circuit import CircuitSettings, CircuitState
from dynamics_sync.core.errors import CircuitOpenError, DynamicsSyncError, QueueInsertError
from dynamics_sync.core.operation import Applied, Deferred, OperationType, Queued, SyncOperation, SyncResult
from dynamics_sync.core.outcome import (
    Accepted,
    Answer,
    Conflict,
    Mismatch,
    NothingToSend,
    NotReady,
    Outcome,
    Rejected,
    Throttled,
    Transient,
    Unauthorized,
    Unsendable,
    classify_removal,
    classify_write,
)
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.sync.breaker import CircuitStatus, DynamicsCircuitBreaker
from dynamics_sync.sync.memory import InMemoryCircuitStore, InMemoryRetryQueue
from dynamics_sync.sync.ports import CircuitStore, Gateway, RetryQueue
from dynamics_sync.sync.service import HLFDynamicsSyncService

__all__ = [
    "Accepted",
    "Answer",
    "Applied",
    "CircuitOpenError",
    "CircuitSettings",
    "CircuitState",
    "CircuitStatus",
    "CircuitStore",
    "Conflict",
    "Deferred",
    "DynamicsCircuitBreaker",
    "DynamicsSyncError",
    "Gateway",
    "HLFDynamicsSyncService",
    "InMemoryCircuitStore",
    "InMemoryRetryQueue",
    "Mismatch",
    "NotReady",
    "NothingToSend",
    "OperationType",
    "Outcome",
    "QueueInsertError",
    "Queued",
    "Rejected",
    "RetryPolicy",
    "RetryQueue",
    "SyncOperation",
    "SyncResult",
    "Throttled",
    "Transient",
    "Unauthorized",
    "Unsendable",
    "classify_removal",
    "classify_write",
]
