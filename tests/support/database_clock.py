"""The clock of one database, set by the test."""

from dynamics_sync.postgres.connections import Connection

# PostgreSQL looks for functions along the search path, and there this one comes before its own. JIT is off because our
# functions forbid sequential scans, which makes the one in here look dear enough to be compiled each time.
INSTALL = """
create schema test_clock;
create table test_clock.setting (ahead interval not null);
insert into test_clock.setting values ('0');
create function test_clock.clock_timestamp() returns timestamptz language sql volatile set jit = off
  as 'select pg_catalog.clock_timestamp() + ahead from test_clock.setting';
do $$
declare
  ours regprocedure;
begin
  execute format('alter database %I set search_path = test_clock, pg_catalog, public', current_database());
  for ours in select oid from pg_proc where pronamespace = 'dynamics_sync'::regnamespace loop
    execute format('alter function %s set search_path = test_clock, pg_catalog', ours);
  end loop;
end
$$;
"""


class DatabaseClock:
    """Holds for connections made after `install`. Nobody needs to wait for a lease or a cool-down to end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def install(self) -> None:
        await self._connection.execute(INSTALL)

    async def advance(self, seconds: float) -> None:
        """Set it forward, or back."""
        await self._connection.execute(
            "update test_clock.setting set ahead = ahead + make_interval(secs => %s)", [seconds]
        )
