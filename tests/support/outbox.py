"""An outbox as tests look at it: records are marked dirty as the trigger marks them, rows are read past all code."""

from dataclasses import dataclass

from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.postgres.connections import Connection
from dynamics_sync.postgres.outbox import PostgresOutbox

TARGET = "dynamics"
TABLE = "public.things"
LEASE_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Row:
    """A waiting record."""

    version: int
    attempts: int
    is_leased: bool


async def change(user: Connection, *keys: str, columns: tuple[str, ...] = ()) -> None:
    """What the trigger does when a user changes records."""
    for key in keys:
        await user.execute(
            "select dynamics_sync.mark_dirty(%s, %s, %s, 'upsert', %s)", [TARGET, TABLE, key, list(columns)]
        )


async def waiting(user: Connection) -> dict[str, Row]:
    """What is in the outbox, by key."""
    cursor = await user.execute(
        "select record_key, version, attempts, lease_owner is not null from dynamics_sync.outbox"
    )
    return {key: Row(version, attempts, is_leased) for key, version, attempts, is_leased in await cursor.fetchall()}


async def claim(outbox: PostgresOutbox, limit: int = 100) -> dict[str, SyncOperation]:
    """What one claim brings, in its order, by key."""
    return {operation.record_key: operation for operation in (await outbox.claim(limit)).operations}


async def claim_one(outbox: PostgresOutbox) -> SyncOperation:
    (operation,) = (await outbox.claim(1)).operations
    return operation
