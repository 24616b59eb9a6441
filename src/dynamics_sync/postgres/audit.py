"""What an operator does is noted in the transaction that does it."""

from dataclasses import dataclass
from uuid import UUID

from dynamics_sync.postgres.connections import Connection

INSERT = """
insert into dynamics_sync.audit (actor, action, target, entry_id, reason)
values (%(actor)s, %(action)s, %(target)s, %(entry_id)s, %(reason)s)
"""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who acts, and why."""

    name: str
    reason: str | None = None


async def note(
    connection: Connection, operator: Operator, action: str, target: str, entry_id: UUID | None = None
) -> None:
    """One line of the audit trail. What is done to a circuit is noted by `PostgresCircuitStore`."""
    parameters = {
        "actor": operator.name,
        "action": action,
        "target": target,
        "entry_id": entry_id,
        "reason": operator.reason,
    }
    await connection.execute(INSERT, parameters)
