"""The clock of one database, set by the test."""

from dynamics_sync.postgres.connections import Connection

# PostgreSQL looks for functions along the search path, and there this one comes before its own.
INSTALL = """
create schema test_clock;
create table test_clock.setting (ahead interval not null);
insert into test_clock.setting values ('0');
create function test_clock.clock_timestamp() returns timestamptz language sql volatile
  as 'select pg_catalog.clock_timestamp() + ahead from test_clock.setting';
do $$ begin
  execute format('alter database %I set search_path = test_clock, pg_catalog, public', current_database());
end $$;
alter function dynamics_sync.claim set search_path = test_clock, pg_catalog;
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
