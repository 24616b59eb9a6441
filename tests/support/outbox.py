"""An outbox as tests use it: changes are noted as the trigger notes them."""

from collections.abc import Sequence

from dynamics_sync.core.operation import OperationType, SyncOperation
from dynamics_sync.postgres.connections import Connection
from dynamics_sync.sync.ports import Outbox

TARGET = "dynamics"
TABLE = "public.things"
LEASE_SECONDS = 90.0

NOTE = """
insert into dynamics_sync.changes (target, source_table, operation_type, changed_columns, records, record_keys)
select %s, %s, %s, %s, cardinality(keys), keys from (values (%s::text[])) as these (keys)
"""

GATHER = """
select dynamics_sync.gather(noted.target, 1000000)
from (select distinct target from dynamics_sync.changes) as noted
"""
"""What a claim does first: what users changed is in the outbox from here on. For whoever owns the outbox."""

FORGET_ALL = "delete from dynamics_sync.changes; delete from dynamics_sync.outbox"
"""Start afresh: nothing waits."""


async def mark_dirty(
    user: Connection, key: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
) -> None:
    """Wherever a record is to be sent again: its row of the outbox is locked until the transaction ends."""
    await user.execute(
        "select dynamics_sync.mark_dirty(%s, %s, %s, %s, %s)", [TARGET, TABLE, key, operation_type, list(columns)]
    )


async def note(
    user: Connection, *keys: str, operation_type: OperationType = OperationType.UPSERT, columns: Sequence[str] = ()
) -> None:
    """What the trigger does when a statement of a user's changes records."""
    await user.execute(NOTE, [TARGET, TABLE, operation_type, list(columns), list(keys)])


async def claim(outbox: Outbox, limit: int = 100) -> dict[str, SyncOperation]:
    """What one claim brings, by key."""
    return {operation.record_key: operation for operation in (await outbox.claim(limit)).operations}


async def claim_one(outbox: Outbox) -> SyncOperation:
    (operation,) = (await outbox.claim(1)).operations
    return operation
