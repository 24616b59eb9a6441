"""The targets that a database is shared by, and which environment of Dynamics each stands for."""

from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.postgres.connections import AS_SERVICE_ROLE, Pool, one_value, transaction

# Of the outbox one row for each: a million may wait.
NAMED = """
with recursive waiting as (
  select min(target) as target from dynamics_sync.outbox
  union all
  select (select min(o.target) from dynamics_sync.outbox o where o.target > waiting.target)
  from waiting where waiting.target is not null
)
select target from waiting where target is not null
union select target from dynamics_sync.changes
union select target from dynamics_sync.circuit
union select target from dynamics_sync.environments
union select target from dynamics_sync.inbox
"""

QUEUED = "select distinct target from public.dynamics_sync_retry_queue"

KEEP = """
insert into dynamics_sync.environments (target, address) values (%(target)s, %(address)s)
on conflict (target) do nothing
"""

KNOWN = "select address from dynamics_sync.environments where target = %(target)s"


async def known_targets(pool: Pool) -> set[str]:
    """Those that were served, or that anything waits for."""
    async with transaction(pool) as connection:
        named = await (await connection.execute(NAMED)).fetchall()
        await connection.execute(AS_SERVICE_ROLE)
        queued = await (await connection.execute(QUEUED)).fetchall()
    return {target for (target,) in (*named, *queued)}


async def check_environment(pool: Pool, target: str, address: str) -> None:
    """Make sure that a target stands for the environment that it has stood for since it was first served. Workers that
    send to different ones would share its records between them: each change would reach one of the two.

    Args:
        address: host, and port where one is named.

    Raises:
        ConfigurationError: it stands for another one.
    """
    async with transaction(pool) as connection:
        await connection.execute(KEEP, {"target": target, "address": address})
        row = await (await connection.execute(KNOWN, {"target": target})).fetchone()
    if row is not None and row[0] != address:
        raise ConfigurationError(
            f"In this database the target {target} is the Dynamics environment {row[0]}, but "
            f"DYNAMICS_SYNC_DYNAMICS_URL names {address}. One more environment needs a name of its own, in "
            f"DYNAMICS_SYNC_TARGET. If {target} is to be {address} from now on, run `delete from "
            f"dynamics_sync.environments where target = '{target}'`, start again, and resync its tables unless it "
            "holds the same records."
        )


async def check_nobody_else(pool: Pool, target: str) -> None:
    """Make sure that a simulator takes the place of no environment: its answers would count as arrivals.

    Raises:
        ConfigurationError: the target stands for an environment.
    """
    address = await one_value(pool, KNOWN, {"target": target})
    if address is not None:
        raise ConfigurationError(
            f"In this database the target {target} is the Dynamics environment {address}, but no "
            "DYNAMICS_SYNC_DYNAMICS_URL is set: changes would go to a simulator and be lost. Set it, with the "
            f"credentials. To try {target} with a simulator all the same, run `delete from dynamics_sync.environments "
            f"where target = '{target}'`."
        )
