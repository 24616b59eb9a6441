"""dynamics-sync: every committed change of a record reaches Microsoft Dynamics 365, or a person knows why not.

The names here are for programs that use the service or the breaker by themselves; `dynamics-sync --help` is for
everybody else.
"""

from dynamics_sync.core.circuit import CircuitSettings, CircuitState
from dynamics_sync.core.errors import CircuitOpenError, DynamicsSyncError, QueueInsertError
from dynamics_sync.core.operation import Applied, Deferred, OperationType, Queued, SyncOperation, SyncResult
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.sync.breaker import CircuitStatus, DynamicsCircuitBreaker
from dynamics_sync.sync.memory import InMemoryCircuitStore, InMemoryRetryQueue
from dynamics_sync.sync.service import HLFDynamicsSyncService

__all__ = [
    "Applied",
    "CircuitOpenError",
    "CircuitSettings",
    "CircuitState",
    "CircuitStatus",
    "Deferred",
    "DynamicsCircuitBreaker",
    "DynamicsSyncError",
    "HLFDynamicsSyncService",
    "InMemoryCircuitStore",
    "InMemoryRetryQueue",
    "OperationType",
    "QueueInsertError",
    "Queued",
    "RetryPolicy",
    "SyncOperation",
    "SyncResult",
]
