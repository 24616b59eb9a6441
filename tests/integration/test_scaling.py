"""deploy/postgres/partition_outbox.sql on a database in use: nothing is lost, and the engine works on."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from dynamics_sync.postgres.connections import Connection as UserConnection
from dynamics_sync.postgres.connections import connect
from support.engine import Stage, stage
from support.outbox import GATHER

PARTITION = (Path(__file__).parents[2] / "deploy" / "postgres" / "partition_outbox.sql").read_bytes()

FILL = """
insert into dynamics_sync.outbox (target, source_table, record_key, operation_type, changed_columns)
select target, 'public.t', n::text, 'upsert', '{a}'
from unnest(array['dynamics', 'portal', 'other']) as target, generate_series(1, 20) as n
order by random()
"""
OUTBOX = "select * from dynamics_sync.outbox order by id"
WHERE = "select tableoid::regclass::text, count(*) from dynamics_sync.outbox group by 1 order by 1"
WAITS_FOR_A_LOCK = (
    "select count(*) = 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
)
ACTIVE, REVOKED = 100000001, 100000004

Connection = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def owner(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def capture(owner: Connection, key: str, target: str = "dynamics") -> None:
    owner.execute("select dynamics_sync.mark_dirty(%s, 'public.t', %s)", [target, key])


def notices(owner: Connection) -> list[str]:
    told: list[str] = []
    owner.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
    return told


@pytest.mark.every_postgres
def test_what_waits_is_kept_with_its_leases(owner: Connection) -> None:
    owner.execute(FILL)
    owner.execute("select dynamics_sync.claim('dynamics', 5, 'held', 60, 180)")
    before = owner.execute(OUTBOX).fetchall()
    owner.execute(PARTITION)
    assert owner.execute(OUTBOX).fetchall() == before
    assert owner.execute(WHERE).fetchall() == [
        (f"dynamics_sync.outbox_of_{target}", 20) for target in ("dynamics", "other", "portal")
    ]


@pytest.mark.every_postgres
def test_ids_and_keys_go_on_as_before(owner: Connection) -> None:
    owner.execute(FILL)
    owner.execute("delete from dynamics_sync.outbox where id = (select max(id) from dynamics_sync.outbox)")
    known = {row[0] for row in owner.execute("select id from dynamics_sync.outbox")}
    owner.execute(PARTITION)
    for _ in range(2):
        capture(owner, "new")
    ((newest, count),) = owner.execute("select max(id), count(*) from dynamics_sync.outbox").fetchall()
    assert newest not in known
    assert newest > max(known)  # type: ignore[operator]
    assert count == len(known) + 1


@pytest.mark.every_postgres
def test_run_again_it_changes_nothing(owner: Connection) -> None:
    owner.execute(FILL)
    owner.execute(PARTITION)
    tables = "select oid, relfilenode from pg_class where relname like 'outbox%' order by oid"
    before = owner.execute(tables).fetchall()
    told = notices(owner)
    owner.execute(PARTITION)
    assert told == ["partition_outbox: every target has its partition already"]
    assert owner.execute(tables).fetchall() == before


@pytest.mark.every_postgres
def test_a_target_that_comes_later_is_kept_and_has_its_partition_at_the_next_run(owner: Connection) -> None:
    owner.execute(PARTITION)
    owner.execute(FILL)
    assert owner.execute(WHERE).fetchall() == [
        ("dynamics_sync.outbox_of_dynamics", 20),
        ("dynamics_sync.outbox_rest", 40),
    ]
    before = owner.execute(OUTBOX).fetchall()
    owner.execute(PARTITION)
    assert owner.execute(OUTBOX).fetchall() == before
    assert owner.execute(WHERE).fetchall() == [
        (f"dynamics_sync.outbox_of_{target}", 20) for target in ("dynamics", "other", "portal")
    ]


@pytest.mark.every_postgres
def test_indexes_checks_triggers_grants_and_room_are_those_of_before(owner: Connection) -> None:
    owner.execute("insert into dynamics_sync.circuit (target) values ('dynamics')")
    owner.execute("grant select on dynamics_sync.outbox to pg_monitor")
    owner.execute(
        "create trigger mine after insert on dynamics_sync.outbox execute function dynamics_sync.note_incident()"
    )
    before = described(owner)
    owner.execute(PARTITION)
    # A unique key of a partitioned table has to name what it is partitioned by.
    assert described(owner) == [line.replace("UNIQUE (id)", "UNIQUE (id, target)") for line in before]


def described(owner: Connection) -> list[str]:
    """The table and its pages, in words."""
    parts = """
    select pg_get_constraintdef(oid) from pg_constraint
    where conrelid = 'dynamics_sync.outbox'::regclass and contype <> 'n'
    union all select regexp_replace(pg_get_indexdef(indexrelid), ' ON (ONLY )?', ' ON ') from pg_index i
    where indrelid = 'dynamics_sync.outbox'::regclass
      and not exists (select from pg_constraint where conindid = i.indexrelid)
    union all select pg_get_triggerdef(oid) from pg_trigger
    where tgrelid = 'dynamics_sync.outbox'::regclass and not tgisinternal
    union all select format('%s %s %s %s %s', attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
      pg_get_expr(adbin, adrelid))
    from pg_attribute left join pg_attrdef on (adrelid, adnum) = (attrelid, attnum)
    where attrelid = 'dynamics_sync.outbox'::regclass and attnum > 0
    union all select grantee || ' ' || privilege_type from information_schema.role_table_grants
    where table_schema = 'dynamics_sync' and table_name = 'outbox'
    union all select distinct reloptions::text from pg_class
    where relname ~ '^outbox(_of_.*|_rest)?$' and relkind = 'r'
    """
    return sorted(str(row[0]) for row in owner.execute(parts.encode()))


@pytest.mark.every_postgres
def test_claiming_and_releasing_cost_no_more_however_many_wait(owner: Connection) -> None:
    owner.execute("insert into dynamics_sync.circuit (target) values ('dynamics'), ('portal')")
    owner.execute(PARTITION)
    owner.execute("vacuum (analyze) dynamics_sync.outbox")
    of_few, of_many = (blocks(owner, waiting) for waiting in (100, 20_000))
    assert of_many < 2 * of_few


def blocks(owner: Connection, waiting: int) -> int:
    """Blocks of 8 kB that are touched to claim and release four records, while so many wait for each target."""
    owner.execute(
        "insert into dynamics_sync.outbox (target, source_table, record_key, operation_type) "
        "select target, 'public.t', n::text, 'upsert' from dynamics_sync.circuit, generate_series(1, %s) as n "
        "on conflict do nothing",
        [waiting],
    )
    touched = 0
    for turn in range(8):  # plans are made anew for the first calls
        claim_id = f"{waiting} {turn}"
        touched = explained(owner, "select dynamics_sync.claim('dynamics', 4, %s, 60, 180)", claim_id)
        held = owner.execute("select id from dynamics_sync.outbox where lease_owner = %s", [claim_id]).fetchall()
        release = "select dynamics_sync.release(%s, %s, array[0, 0, 0, 0], '{}', 180)"
        touched += explained(owner, release, [row[0] for row in held], [claim_id] * 4)
    return touched


def explained(owner: Connection, statement: str, *parameters: object) -> int:
    query = f"explain (analyze, buffers, format json) {statement}".encode()
    (((explanation,),),) = owner.execute(query, parameters).fetchall()
    plan = explanation["Plan"]  # type: ignore[index]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        ("create policy p on dynamics_sync.outbox using (true)", "has a policy or is published"),
        ("create publication p for table dynamics_sync.outbox", "has a policy or is published"),
        ("create view public.v as select * from dynamics_sync.outbox", "other objects depend on it"),
        ("set default_transaction_isolation = 'repeatable read'", "which is read committed"),
        ("alter table dynamics_sync.outbox owner to pg_monitor", "the outbox belongs to pg_monitor, who must run this"),
    ],
)
def test_what_it_would_lose_or_may_not_do_it_refuses(owner: Connection, prepare: str, words: str) -> None:
    owner.execute(FILL)
    owner.execute(prepare.encode())
    before = owner.execute(OUTBOX).fetchall()
    with pytest.raises(psycopg.Error, match=words):
        owner.execute(PARTITION)
    assert owner.execute(OUTBOX).fetchall() == before
    kind = owner.execute("select relkind::text from pg_class where oid = 'dynamics_sync.outbox'::regclass").fetchone()
    assert kind == ("r",)


@pytest.mark.every_postgres
async def test_a_change_made_meanwhile_does_not_wait_for_it_and_is_captured(
    database: str, user: UserConnection
) -> None:
    async with stage(database, working=False) as on:
        certification = await on.issue()
        async with await connect(database) as owner:
            async with owner.transaction():
                await owner.execute(PARTITION)
                revoke = "update public.certifications set status = 'revoked' where id = %s"
                await user.execute("set lock_timeout = '1s'")
                await user.execute(revoke, [certification])
        await on.rows(GATHER)
        waiting = "select record_key, 'status' = any (changed_columns) from dynamics_sync.outbox"
        assert await on.rows(waiting) == [(certification, True)]


async def test_two_at_once_are_one_after_the_other(database: str, user: UserConnection) -> None:
    async with stage(database, working=False) as on, await connect(database) as owner:
        await on.issue()
        await on.rows(GATHER)
        async with owner.transaction():
            await owner.execute(PARTITION)
            second = asyncio.create_task(user.execute(PARTITION))
            await on.until(WAITS_FOR_A_LOCK)
            waiting = await (await owner.execute(OUTBOX)).fetchall()
        assert len(waiting) == 1
        await second
        assert await on.rows(OUTBOX) == waiting
        keys = "select count(*) from pg_index where indrelid = 'dynamics_sync.outbox'::regclass"
        assert await on.rows(keys) == [(3,)]


@pytest.mark.every_postgres
@pytest.mark.pooled_too
async def test_a_worker_works_on_through_it(database: str) -> None:
    """Claims from before are settled after it; what fails is queued, and replayed."""
    async with stage(database, cool_down_seconds=0.05) as on:
        await on.fault(kind="delay", seconds=0.2)
        keys = [await on.issue() for _ in range(30)]
        await on.until("select count(*) > 0 from dynamics_sync.outbox where lease_owner is not null")
        await partition(database)
        await on.until("select relkind = 'p' from pg_class where oid = 'dynamics_sync.outbox'::regclass")
        keys += [await on.issue() for _ in range(10)]
        await on.settled()
        await assert_held(on, keys, ACTIVE)

        await on.lift_faults()
        await on.fault(kind="status", status=503, share=0.5)
        for key in keys:
            await on.user.execute("update public.certifications set status = 'revoked' where id = %s", [key])
        await on.settled()
        await on.lift_faults()
        queue = on.engine.stores.queue
        await queue.replay([entry.id for entry in await queue.entries()], "tester")
        await on.settled()
        await assert_held(on, keys, REVOKED)
        assert {entry[0] for entry in await on.queue()} <= {"replayed", "superseded"}


async def partition(database: str) -> None:
    async with await connect(database) as owner:
        await owner.execute(PARTITION)


async def assert_held(on: Stage, keys: list[str], status: int) -> None:
    assert [(await on.record(key) or {}).get("hlf_status") for key in keys] == [status] * len(keys)
