"""The clock of one database, set by the test."""

from datetime import datetime

from dynamics_sync.postgres.connections import Connection

# PostgreSQL looks for functions along the search path, and there this one comes before its own; columns' defaults have
# done so already. JIT is off because our functions forbid sequential scans, which makes the one in here look dear
# enough to be compiled each time.
INSTALL = """
create schema test_clock;
create table test_clock.setting (stands_at timestamptz, ahead interval not null);
insert into test_clock.setting values (null, '0');
create function test_clock.clock_timestamp() returns timestamptz language sql volatile set jit = off
  as 'select coalesce(stands_at, pg_catalog.clock_timestamp()) + ahead from test_clock.setting';
create function test_clock.statement_timestamp() returns timestamptz language sql stable set jit = off
  as 'select coalesce(stands_at, pg_catalog.statement_timestamp()) + ahead from test_clock.setting';
do $$
declare
  ours regprocedure;
  timed record;
begin
  execute format('alter database %I set search_path = test_clock, pg_catalog, public', current_database());
  for ours in
    select p.oid from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname in ('dynamics_sync', 'dynamics_certifications')
  loop
    execute format('alter function %s set search_path = test_clock, pg_catalog', ours);
  end loop;
  for timed in
    select d.adrelid::regclass as of_table, a.attname as of_column
    from pg_attrdef d join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
    where pg_get_expr(d.adbin, d.adrelid) = 'clock_timestamp()'
  loop
    execute format(
      'alter table %s alter column %I set default test_clock.clock_timestamp()', timed.of_table, timed.of_column
    );
  end loop;
  grant usage on schema test_clock to public;
  grant select on test_clock.setting to public;
end
$$;
"""


class DatabaseClock:
    """Holds for connections made after `install`. Nobody needs to wait for a lease or a cool-down to end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def install(self) -> None:
        await self._connection.execute(INSTALL)

    async def stand_still(self, at: datetime) -> None:
        """From now on it goes only when it is advanced."""
        await self._connection.execute("update test_clock.setting set stands_at = %s, ahead = '0'", [at])

    async def advance(self, seconds: float) -> None:
        """Set it forward, or back."""
        await self._connection.execute(
            "update test_clock.setting set ahead = ahead + make_interval(secs => %s)", [seconds]
        )
