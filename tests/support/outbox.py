"""An outbox as tests use it: records are marked dirty as the trigger marks them."""

from collections.abc import Sequence

from dynamics_sync.core.operation import OperationType, SyncOperation
from dynamics_sync.postgres.connections import Connection
from dynamics_sync.sync.ports import Outbox

TARGET = "dynamics"
TABLE = "public.things"
LEASE_SECONDS = 90.0


async def mark_dirty(
    user: Connection, key: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
) -> None:
    """What the trigger does when a user changes a record."""
    await user.execute(
        "select dynamics_sync.mark_dirty(%s, %s, %s, %s, %s)", [TARGET, TABLE, key, operation_type, list(columns)]
    )


async def claim(outbox: Outbox, limit: int = 100) -> dict[str, SyncOperation]:
    """What one claim brings, by key."""
    return {operation.record_key: operation for operation in (await outbox.claim(limit)).operations}


async def claim_one(outbox: Outbox) -> SyncOperation:
    (operation,) = (await outbox.claim(1)).operations
    return operation
