"""Users who change certifications all the time, and what the database has committed of it.

Each change has a number, which its values say: so a state of Dynamics tells which change it is of. The same
transaction that changes a certification notes the change beside it; whether it was committed can be looked up there
when the commit's answer was lost.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date
from itertools import count
from random import Random
from uuid import UUID

import psycopg

from chaos.history import Change, CircuitChange, Look, Owed
from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.postgres.connections import Connection, connect

EPOCH = date(2100, 1, 1)
"""A change is told from the others by its dates. They lie ahead, so that no certification expires meanwhile."""
FIRST_STATUS = 100000000
STATUSES = 5

MENTOR, CHAPTER = UUID(int=1), UUID(int=2)

NOTE_CIRCUIT = """
create schema chaos;
create table chaos.circuit (
  id bigint generated always as identity primary key, at timestamptz not null, state text not null,
  generation bigint not null, opened_at timestamptz, is_probing boolean not null
);

create function chaos.note_circuit() returns trigger language plpgsql as $$
begin
  insert into chaos.circuit (at, state, generation, opened_at, is_probing)
  values (clock_timestamp(), new.state, new.generation, new.opened_at, new.probe_owner is not null);
  return null;
end
$$;
create trigger note_circuit after insert or update on dynamics_sync.circuit
for each row execute function chaos.note_circuit();
"""
"""Every committed change of the circuit, with its time."""

PREPARE = """
create sequence chaos.number;
create table chaos.changes (
  number bigint primary key, transaction bigint not null, key text not null, state bigint, kind text not null,
  at timestamptz not null
);
create table chaos.newest (key text primary key, state bigint, since timestamptz not null);
-- One change; what it is depends on whether the certification is there. Whoever changes the same one waits, so that
-- numbers have the order of the commits.
create function chaos.change(of_key text, wish text, in_transaction bigint, new_key text) returns text
language plpgsql
as $$
declare
  change_number bigint;
  new_state bigint;
begin
  perform pg_advisory_xact_lock(hashtextextended(of_key, 0));
  change_number := nextval('chaos.number');
  if not exists (select from public.certifications where id = of_key::uuid) then
    wish := 'insert';
  elsif wish = 'insert' then
    wish := 'update';
  end if;
  case wish
    when 'insert' then
      insert into public.certifications (id, peer_mentor_id, chapter_id, status, issued_on, expires_on)
      values (of_key::uuid, '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002',
        chaos.status_of(change_number), chaos.date_of(change_number), chaos.date_of(change_number));
    when 'update' then
      update public.certifications
      set status = chaos.status_of(change_number), issued_on = chaos.date_of(change_number),
        expires_on = chaos.date_of(change_number)
      where id = of_key::uuid;
    when 'delete' then
      delete from public.certifications where id = of_key::uuid;
    when 'unmapped' then  -- a column that Dynamics does not get
      update public.certifications set kind = 'kind ' || change_number where id = of_key::uuid;
    when 'rename' then  -- another key: the old record is to go, a new one to come
      update public.certifications
      set id = new_key::uuid, status = chaos.status_of(change_number), issued_on = chaos.date_of(change_number),
        expires_on = chaos.date_of(change_number)
      where id = of_key::uuid;
  end case;
  if wish = 'unmapped' then
    select n.state into new_state from chaos.newest n where n.key = of_key;
    insert into chaos.changes values (change_number, in_transaction, of_key, new_state, wish, clock_timestamp());
    return wish;
  end if;
  new_state := case when wish in ('delete', 'rename') then null else change_number end;
  insert into chaos.changes values (change_number, in_transaction, of_key, new_state, wish, clock_timestamp());
  insert into chaos.newest values (of_key, new_state, clock_timestamp())
  on conflict (key) do update set state = excluded.state, since = excluded.since;
  if wish = 'rename' then
    insert into chaos.changes values (nextval('chaos.number'), in_transaction, new_key, change_number, wish,
      clock_timestamp());
    insert into chaos.newest values (new_key, change_number, clock_timestamp());
  end if;
  return wish;
end
$$;

create function chaos.date_of(number bigint) returns date language sql as $$ select date '2100-01-01' + number::int $$;
create function chaos.status_of(number bigint) returns text language sql as $$
  select (array['pending', 'active', 'expiring', 'expired', 'revoked'])[number % 5 + 1]
$$;

insert into public.organisations values ('00000000-0000-0000-0000-000000000003', 'HLF');
insert into public.chapters values
  ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-000000000003', 'Oslo');
insert into public.peer_mentors (id, chapter_id, display_name) values
  ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002', 'Kari Nordmann');
"""

OWED = """
select n.key, n.state, extract(epoch from n.since)::float from chaos.newest n
where not exists (
  select from dynamics_sync.outbox o where o.source_table = 'public.certifications' and o.record_key = n.key
) and not exists (
  select from dynamics_sync.changes c where c.source_table = 'public.certifications' and n.key = any (c.record_keys)
) and not exists (
  select from public.dynamics_sync_retry_queue q
  where q.source_table = 'public.certifications' and q.record_key = n.key
    and q.status in ('pending_manual_replay', 'requires_investigation', 'replaying')
)
"""
"""One statement, so one snapshot: what is neither noted, nor in the outbox, nor in the queue."""

CHANGES = "select number, transaction, key, state, kind, extract(epoch from at)::float from chaos.changes"

QUEUED = "select status, count(*) from public.dynamics_sync_retry_queue group by status order by status"

CIRCUIT = """
select extract(epoch from at)::float, state, generation, extract(epoch from opened_at)::float, is_probing
from chaos.circuit order by id
"""


def number_of(expires_on: str | None, issued_on: str | None, status: int | None) -> int | None:
    """The change that these values are of; None if they are of several."""
    if expires_on is None or expires_on != issued_on or status is None:
        return None
    number = (date.fromisoformat(expires_on) - EPOCH).days
    return number if FIRST_STATUS + number % STATUSES == status else None


async def look(connection: Connection, life: int) -> Look:
    """Which records Dynamics must have now, and in which state."""
    before = time.time()
    rows = await (await connection.execute(OWED)).fetchall()
    return Look(before, time.time(), {key: Owed(state, since) for key, state, since in rows}, life)


async def committed(connection: Connection) -> list[Change]:
    return [Change(*row) for row in await (await connection.execute(CHANGES)).fetchall()]


async def circuit_history(connection: Connection) -> list[CircuitChange]:
    return [CircuitChange(*row) for row in await (await connection.execute(CIRCUIT)).fetchall()]


async def queued(connection: Connection) -> dict[str, int]:
    """How many entries the queue has, by status."""
    return dict(await (await connection.execute(QUEUED)).fetchall())


@asynccontextmanager
async def patient(database: str) -> AsyncIterator[Connection]:
    """A connection, as soon as one can be had."""
    while True:
        try:
            connection = await connect(database)
            break
        except DatabaseError:
            await asyncio.sleep(0.05)
    try:
        yield connection
    finally:
        await connection.close()


@dataclass
class Load:
    """What all users have in common."""

    database: str
    keys: list[str]
    counts: Counter[str]
    transactions: count = field(default_factory=lambda: count(1))  # type: ignore[type-arg]
    acknowledged: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    """Transactions whose commit was under way when the connection was lost."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def often_changed(self) -> list[str]:
        """Some are changed far more often than others."""
        return self.keys[:10]

    async def user(self, random: Random) -> None:
        """Change something, think, change something else; a lost connection is replaced."""
        while not self.ended.is_set():
            try:
                async with patient(self.database) as connection:
                    while not self.ended.is_set():
                        await self._transaction(connection, random)
                        await asyncio.sleep(random.uniform(0.0, 0.05))
            except psycopg.Error:
                self.counts["user connections lost"] += 1

    async def _transaction(self, connection: Connection, random: Random) -> None:
        number = next(self.transactions)
        await connection.execute("begin")
        for key in sorted({self._choose(random) for _ in range(random.choice((1, 1, 1, 1, 2, 3, 5)))}):
            new_key = str(UUID(int=random.getrandbits(128), version=4))
            wish = random.choices(("update", "delete", "unmapped", "rename"), (70, 12, 12, 6))[0]
            done = await connection.execute("select chaos.change(%s, %s, %s, %s)", [key, wish, number, new_key])
            if await done.fetchone() == ("rename",):
                self.keys[random.randrange(len(self.keys))] = new_key
        if random.random() < 0.03:
            await asyncio.sleep(random.uniform(0.2, 0.8))
        if random.random() < 0.08:
            await connection.execute("rollback")
            self.counts["transactions rolled back"] += 1
            return
        self.unknown.add(number)
        await connection.execute("commit")
        self.unknown.discard(number)
        self.acknowledged.add(number)

    def _choose(self, random: Random) -> str:
        return random.choice(self.often_changed if random.random() < 0.3 else self.keys)
