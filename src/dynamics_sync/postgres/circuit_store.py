"""The circuit of one target in PostgreSQL: shared by all workers, judged by the database's clock (R11, R12)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from dynamics_sync.core.circuit import Circuit, CircuitState
from dynamics_sync.postgres.audit import Operator
from dynamics_sync.postgres.coalesce import Coalescer
from dynamics_sync.postgres.connections import Pool, one_trip
from dynamics_sync.sync.ports import CircuitReading

SELECT_CIRCUIT = """
select clock_timestamp(), c.state, c.failure_count, c.opened_at, c.last_error_code, c.probe_owner, c.probe_until,
  c.paused_until, c.generation, c.revision
from (select) as always left join dynamics_sync.circuit c on c.target = %(target)s
"""

INSERT_CIRCUIT = "insert into dynamics_sync.circuit (target) values (%(target)s) on conflict do nothing"

# A transition wakes all workers.
COMPARE_AND_SET = """
with changed as (
  update dynamics_sync.circuit
  set state = %(state)s, failure_count = %(failure_count)s, opened_at = %(opened_at)s,
    last_error_code = %(last_error_code)s, probe_owner = %(probe_owner)s, probe_until = %(probe_until)s,
    paused_until = %(paused_until)s, generation = %(generation)s, revision = %(revision)s
  where target = %(target)s and revision = %(expected)s
    and (%(not_after)s::timestamptz is null or clock_timestamp() <= %(not_after)s)
  returning target
)
select count(*), count(pg_notify('dynamics_sync', target)::text) filter (where %(is_transition)s) from changed
"""

# Where the circuit is as this transaction has made it. With the incident that began, goes on or has ended by it.
AUDIT = """
insert into dynamics_sync.audit (actor, action, target, incident_id, reason)
select %(actor)s, %(action)s, c.target,
  case when %(is_outage)s then (select max(i.id) from dynamics_sync.incidents i where i.target = c.target) end,
  %(reason)s
from dynamics_sync.circuit c
where c.target = %(target)s and c.revision = %(revision)s and c.xmin = pg_current_xact_id()::xid
"""


def reading_from(row: tuple[Any, ...] | None) -> CircuitReading:
    """What `SELECT_CIRCUIT` brought; a target without a row has a fresh circuit."""
    if row is None:
        raise AssertionError("SELECT_CIRCUIT always gives one row")
    now, state, *rest = row
    return CircuitReading(Circuit() if state is None else Circuit(CircuitState(state), *rest), now)


class PostgresCircuitStore:
    """One row of `dynamics_sync.circuit`. The database itself notes an incident when it opens and closes.

    Args:
        operator: a person on whose behalf it is changed; each change is audited.
    """

    def __init__(self, pool: Pool, target: str, operator: Operator | None = None) -> None:
        self._pool = pool
        self._target = target
        self._operator = operator
        self._load_once = Coalescer(self._load)

    async def load(self) -> CircuitReading:
        """The circuit as it stands; tasks that ask at the same time share one look."""
        return await self._load_once(None)

    async def _load(self, askers: Sequence[None]) -> Sequence[CircuitReading]:
        async with one_trip(self._pool) as connection:
            cursor = await connection.execute(SELECT_CIRCUIT, {"target": self._target})
        return [reading_from(await cursor.fetchone())] * len(askers)

    async def compare_and_set(self, expected: Circuit, new: Circuit, not_after: datetime | None = None) -> bool:
        """Store `new` if nobody changed the circuit since `expected` was read; a transition wakes all workers."""
        parameters = {
            "target": self._target,
            "expected": expected.revision,
            "not_after": not_after,
            "state": new.state,
            "failure_count": new.failure_count,
            "opened_at": new.opened_at,
            "last_error_code": new.last_error_code,
            "probe_owner": new.probe_owner,
            "probe_until": new.probe_until,
            "paused_until": new.paused_until,
            "generation": new.generation,
            "revision": new.revision,
            "is_transition": new.generation != expected.generation,
        }
        # In one trip: where the commit of an opening came in another one and got lost on its way for a while, others
        # would send until then, and the silence would have been promised for before.
        async with one_trip(self._pool) as connection:
            if expected.revision == 0:
                await connection.execute(INSERT_CIRCUIT, parameters)
            changed = await connection.execute(COMPARE_AND_SET, parameters)
            if self._operator is not None:
                await connection.execute(AUDIT, parameters | _audited(self._operator, expected, new))
        row = await changed.fetchone()
        return row is not None and row[0] == 1


def _audited(operator: Operator, old: Circuit, new: Circuit) -> dict[str, object]:
    """What a person did; forgetting a few failures belongs to no outage."""
    return {
        "actor": operator.name,
        "reason": operator.reason,
        "action": "circuit_close" if new.state is CircuitState.CLOSED else "circuit_open",
        "is_outage": (old.state, new.state) != (CircuitState.CLOSED, CircuitState.CLOSED),
    }
