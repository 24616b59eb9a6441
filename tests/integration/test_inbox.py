"""What Dynamics tells is applied here: once, in order, without an echo, and with every conflict told."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from dynamics_sync.core.conflicts import UNCLEAR
from dynamics_sync.postgres.audit import Operator
from dynamics_sync.postgres.connections import connect
from dynamics_sync.postgres.migrate import MACHINERY, migrate
from support.by_hand import hand
from support.commands import worker_process
from support.engine import stage
from support.postgres import Cluster
from support.webhooks import SECRET, Dataverse, Event, option
from support.webhooks_room import STATUS, Room, room

LONG_AGO = timedelta(hours=1)


@pytest.fixture
async def here(database: str) -> AsyncIterator[Room]:
    async with room(database, cool_down_seconds=60) as made:
        yield made


async def test_a_change_from_dynamics_arrives_and_no_request_leaves_for_it(here: Room) -> None:
    key = await here.synchronised()
    before = len(await here.on.requests())
    event = await here.event(key, hlf_status=option(STATUS["revoked"]), hlf_expireson="/Date(1830038400000)/")
    await here.told(event)
    assert await here.row(key) == ("revoked", "2027-12-29")
    assert await here.inbox() == [("applied", None)]
    await here.on.issue()  # the worker has looked since
    await here.on.settled()
    assert len(await here.on.requests()) == before + 1
    ((same,),) = await here.on.rows(
        "select applied_version = taken_version from dynamics_sync.record_state s "
        "join dynamics_sync.inbox_records r using (target, source_table, record_key) where record_key = %s",
        key,
    )
    assert same


async def test_a_body_is_forgotten_once_it_is_applied(here: Room) -> None:
    key = await here.synchronised()
    event = await here.event(key, hlf_status=option(STATUS["revoked"]))
    await here.told(event, event.but(operation_id=Event().operation_id, entity="contact"))
    assert await here.on.rows("select body from dynamics_sync.inbox") == [(None,), (None,)]


async def test_what_our_own_application_user_did_is_no_news(here: Room) -> None:
    key = await here.synchronised()
    own = await here.on.engine.inbox._reader.own_id()
    await here.told((await here.event(key, hlf_status=option(STATUS["revoked"]))).but(by=own))
    assert await here.row(key) == ("active", "2099-01-31")
    assert await here.inbox() == [("ignored", "inbox.own_change")]


async def test_an_older_change_that_comes_late_is_superseded_column_by_column(here: Room) -> None:
    key = await here.synchronised()
    now = datetime.now(UTC)
    newest = (await here.event(key, hlf_status=option(STATUS["revoked"]))).but(at=now)
    older = newest.but(attributes={"hlf_status": option(STATUS["expired"])}, operation_id=Event().operation_id)
    of_both = older.but(attributes=older.attributes | {"hlf_expireson": "/Date(1830038400000)/"})
    await here.told(newest)
    await here.told(older.but(at=now - LONG_AGO), of_both.but(at=now - LONG_AGO, operation_id=Event().operation_id))
    assert await here.inbox() == [("applied", None), ("superseded", None), ("applied", None)]
    assert await here.row(key) == ("revoked", "2027-12-29")


async def test_changes_of_one_second_are_told_apart_by_a_look_at_the_record(here: Room) -> None:
    key = await here.synchronised()
    await here.hand.edit(key, hlf_status=STATUS["expired"])
    second = await here.event(key, hlf_status=option(STATUS["expired"]))
    first = second.but(attributes={"hlf_status": option(STATUS["revoked"])}, operation_id=Event().operation_id)
    await here.told(second)
    await here.told(first)
    assert (await here.row(key))[0] == "expired"


async def test_a_change_that_we_wrote_over_is_a_conflict_that_postgres_wins(here: Room) -> None:
    key = await here.synchronised()
    made_there = (await here.event(key, hlf_status=option(STATUS["revoked"]))).but(at=datetime.now(UTC))
    await here.on.user.execute("update public.certifications set status = 'expiring' where id = %s", [key])
    await here.on.settled()
    await here.told(made_there)
    assert (await here.row(key))[0] == "expiring"
    assert await here.conflicts() == [("status", "postgres")]
    record = await here.on.record(key)
    assert record is not None
    assert record["hlf_status"] == STATUS["expiring"]


async def test_a_column_that_nobody_changed_here_is_no_conflict_though_we_wrote_over_it(here: Room) -> None:
    """Each request sends all columns; the image of before tells that this one was not meant."""
    key = await here.synchronised()
    made_there = (await here.event(key, hlf_status=option(STATUS["revoked"]))).but(at=datetime.now(UTC))
    await here.on.user.execute("update public.certifications set expires_on = '2028-01-01' where id = %s", [key])
    await here.on.settled()
    await here.told(made_there.but(before={"hlf_status": option(STATUS["active"])}))
    await here.on.settled()
    record = await here.on.record(key)
    assert record is not None
    assert (record["hlf_status"], record["hlf_expireson"]) == (STATUS["revoked"], "2028-01-01")
    assert await here.row(key) == ("revoked", "2028-01-01")
    assert await here.conflicts() == []


async def test_a_column_that_was_taken_from_dynamics_is_no_conflict_though_we_wrote_over_what_came_after(
    here: Room,
) -> None:
    """Our request was under way with the state before the first change, which is then what the second one changed."""
    key = await here.synchronised()
    first = (await here.event(key, hlf_status=option(STATUS["expiring"]))).but(
        at=datetime.now(UTC) - 2 * UNCLEAR, before={"hlf_status": option(STATUS["active"])}
    )
    await here.told(first)
    await here.on.user.execute("update public.certifications set expires_on = '2028-01-01' where id = %s", [key])
    await here.on.settled()
    second = first.but(
        at=datetime.now(UTC), attributes={"hlf_status": option(STATUS["revoked"])}, operation_id=Event().operation_id
    )
    await here.told(second)
    await here.on.settled()
    record = await here.on.record(key)
    assert record is not None
    assert (record["hlf_status"], (await here.row(key))[0]) == (STATUS["revoked"], "revoked")
    assert await here.conflicts() == []
    assert await here.on.rows("select taken from dynamics_sync.inbox_records") == [(["status"],)]


async def test_a_column_that_was_taken_from_dynamics_and_changed_here_since_is_a_conflict(here: Room) -> None:
    key = await here.synchronised()
    first = (await here.event(key, hlf_status=option(STATUS["expiring"]))).but(at=datetime.now(UTC) - 2 * UNCLEAR)
    await here.told(first)
    await here.on.user.execute("update public.certifications set status = 'expired' where id = %s", [key])
    await here.on.settled()
    assert await here.on.rows("select taken from dynamics_sync.inbox_records") == [([],)]
    second = first.but(
        at=datetime.now(UTC),
        attributes={"hlf_status": option(STATUS["revoked"])},
        before=first.attributes,
        operation_id=Event().operation_id,
    )
    await here.told(second)
    assert (await here.row(key))[0] == "expired"
    assert await here.conflicts() == [("status", "postgres")]


async def test_a_conflict_that_postgres_wins_is_sent_though_the_request_under_way_has_the_same_value(
    here: Room,
) -> None:
    """It may have reached Dynamics before the change that it conflicts with."""
    key, other = await here.synchronised(), await here.synchronised()
    await here.told(await here.event(other, hlf_status=option(STATUS["revoked"])))  # by now it is known who we are
    await here.on.engine.stores.breaker.force_open()
    await here.on.user.execute("update public.certifications set status = 'expiring' where id = %s", [key])
    claim = "select ids[1], version from dynamics_sync.claim('dynamics', 1, 'a request under way', 60, 180)"
    await here.on.rows("select dynamics_sync.gather('dynamics', 100)")
    ((row, version),) = await here.on.rows(claim)
    there = await here.event(key, hlf_status=option(STATUS["revoked"]))
    await here.told(there.but(at=datetime.now(UTC) + LONG_AGO))
    assert await here.conflicts() == [("status", "postgres")]
    settle = (
        "select is_ours from dynamics_sync.settle("
        "'dynamics', %s, %s, '{a request under way}', '{null}', '{null}', '{}', '{}', 180)"
    )
    assert await here.on.rows(settle, [row], [version]) == []
    assert await here.on.rows("select id, lease_owner from dynamics_sync.outbox") == [(row, None)]


async def test_a_change_made_there_after_our_last_write_is_taken(here: Room) -> None:
    key = await here.on.issue()
    await here.on.settled()
    await here.hand.edit(key, hlf_status=STATUS["revoked"])
    await here.told(await here.event(key, hlf_status=option(STATUS["revoked"])))
    assert (await here.row(key))[0] == "revoked"
    assert await here.conflicts() == []


DYNAMICS_OWNS_STATUS = """
[[tables]]
source = "public.certifications"
key = "id"
entity_set = "hlf_certifications"
logical_name = "hlf_certification"
alternate_key = "hlf_externalid"
[tables.columns]
expires_on = { to = "hlf_expireson", kind = "date" }
[tables.columns.status]
to = "hlf_status"
owner = "dynamics"
choices = { pending = 100000000, active = 100000001, expiring = 100000002, expired = 100000003, revoked = 100000004 }
"""


async def test_both_sides_changed_while_dynamics_was_down_and_the_owner_of_each_column_wins(
    database: str, tmp_path: Path
) -> None:
    (tmp_path / "mapping.toml").write_text(DYNAMICS_OWNS_STATUS)
    async with room(database) as first:
        key = await first.synchronised()
    async with room(database, mapping=tmp_path / "mapping.toml") as here:
        await here.hand.create(hlf_externalid=key, hlf_status=STATUS["active"], hlf_expireson="2099-01-31")
        await here.on.fault(kind="status", status=503, method="PATCH")
        await here.on.user.execute(
            "update public.certifications set status = 'expiring', expires_on = '2028-01-01' where id = %s", [key]
        )
        await here.on.until_requests(1)
        there = {"hlf_status": option(STATUS["revoked"]), "hlf_expireson": "/Date(1830038400000)/"}
        await here.told(await here.event(key, **there))
        assert await here.row(key) == ("revoked", "2028-01-01")
        assert sorted(await here.conflicts()) == [("expires_on", "postgres"), ("status", "dynamics")]
        await here.on.lift_faults()
        await here.on.settled()
        record = await here.on.record(key)
        assert record is not None
        assert (record["hlf_status"], record["hlf_expireson"]) == (STATUS["revoked"], "2028-01-01")


async def test_a_change_of_another_column_than_the_waiting_one_is_no_conflict(here: Room) -> None:
    key, other = await here.synchronised(), await here.synchronised()
    await here.told(await here.event(other, hlf_status=option(STATUS["revoked"])))  # by now it is known who we are
    await here.on.engine.stores.breaker.force_open()
    await here.on.user.execute("update public.certifications set expires_on = '2028-01-01' where id = %s", [key])
    await here.told(await here.event(key, hlf_status=option(STATUS["expired"])))
    await here.told((await here.event(key, hlf_status=option(STATUS["revoked"]))).but(at=datetime.now(UTC) + LONG_AGO))
    assert await here.conflicts() == []
    assert await here.row(key) == ("revoked", "2028-01-01")
    await here.on.engine.stores.breaker.force_closed()
    await here.on.settled()
    record = await here.on.record(key)
    assert record is not None
    assert (record["hlf_status"], record["hlf_expireson"]) == (STATUS["revoked"], "2028-01-01")


async def test_a_local_change_committed_at_the_same_moment_is_never_lost(here: Room) -> None:
    """Users change one column while Dynamics tells of another: whichever comes first, both end on both sides."""
    keys = [await here.on.issue() for _ in range(12)]
    await here.on.settled()
    await here.on.user.execute("update dynamics_sync.record_state set applied_at = applied_at - interval '1 day'")
    for key in keys:
        await here.hand.edit(key, hlf_status=STATUS["revoked"])
    before = {"hlf_status": option(STATUS["active"])}
    events = [(await here.event(key, hlf_status=option(STATUS["revoked"]))).but(before=before) for key in keys]

    async def change_all() -> None:
        async with await connect(here.on.engine.database_url) as other:
            for key in keys:
                await other.execute("update public.certifications set expires_on = '2028-01-01' where id = %s", [key])

    await asyncio.gather(here.told(*events), change_all())
    await here.on.settled()
    assert {tuple(await here.row(key)) for key in keys} == {("revoked", "2028-01-01")}
    held = [await here.on.record(key) for key in keys]
    assert {(record["hlf_status"], record["hlf_expireson"]) for record in held if record} == {
        (STATUS["revoked"], "2028-01-01")
    }


async def test_a_row_that_a_user_has_locked_is_waited_for_without_holding_up_others(here: Room) -> None:
    locked, free = await here.synchronised(), await here.synchronised()
    change = await here.event(locked, hlf_status=option(STATUS["revoked"]))
    change = change.but(before={"hlf_status": option(STATUS["active"])})
    async with await connect(here.on.engine.database_url) as other, other.transaction():
        await other.execute("update public.certifications set expires_on = '2028-01-01' where id = %s", [locked])
        assert await here.dataverse.tell(change) == 202
        assert await here.dataverse.tell(await here.event(free, hlf_status=option(STATUS["revoked"]))) == 202
        await here.on.until("select count(*) = 1 from dynamics_sync.inbox where status = 'applied'")
    await here.told()
    assert await here.row(locked) == ("revoked", "2028-01-01")
    await here.on.settled()
    record = await here.on.record(locked)
    assert record is not None
    assert (record["hlf_status"], record["hlf_expireson"]) == (STATUS["revoked"], "2028-01-01")


async def test_a_record_deleted_there_is_made_again_and_nothing_is_deleted_here(here: Room) -> None:
    key = await here.synchronised()
    event = (await here.event(key)).but(message="Delete", image={}, before={"hlf_externalid": key})
    await here.hand.delete(key)
    await here.told(event)
    await here.on.settled()
    assert (await here.row(key))[0] == "active"
    assert await here.on.record(key) is not None
    assert await here.conflicts() == [(None, "postgres")]


async def test_what_is_told_of_records_that_are_not_here_is_ignored_with_its_reason(here: Room) -> None:
    key = await here.synchronised()
    event = await here.event(key, hlf_status=option(STATUS["revoked"]))
    nobody = Event(attributes=event.attributes, image={"hlf_externalid": Event().record_id})
    await here.told(
        nobody,
        nobody.but(image={}, operation_id=Event().operation_id),
        nobody.but(message="Delete", image={}, operation_id=Event().operation_id),
        nobody.but(entity="contact"),
        event.but(attributes={"hlf_other": "x"}),
    )
    assert [code for _, code in await here.inbox()] == [
        *("inbox.no_such_row", "inbox.record_gone", "inbox.unknown_record", "inbox.unmapped_table"),
        "inbox.nothing_mapped",
    ]
    assert {status for status, _ in await here.inbox()} == {"ignored"}


async def test_a_record_whose_key_is_not_told_is_looked_up(here: Room) -> None:
    key = await here.synchronised()
    await here.hand.edit(key, hlf_status=STATUS["revoked"])
    await here.told((await here.event(key, hlf_status=option(STATUS["revoked"]))).but(image={}))
    assert (await here.row(key))[0] == "revoked"


async def test_a_message_that_was_too_long_leads_to_the_record(here: Room) -> None:
    key = await here.synchronised()
    await here.hand.edit(key, hlf_status=STATUS["revoked"])
    event = await here.event(key)
    document = event.document()
    for part in ("InputParameters", "PreEntityImages", "PostEntityImages", "ParentContext"):
        del document[part]
    assert (
        await here.dataverse.deliver(json.dumps(document).encode(), {"x-ms-dynamics-msg-size-exceeded": "true"}) == 202
    )
    await here.told()
    assert (await here.row(key))[0] == "revoked"


async def test_while_the_circuit_is_open_a_record_is_not_asked_for_and_its_change_waits(here: Room) -> None:
    key, other = await here.synchronised(), await here.synchronised()
    await here.told(await here.event(other, hlf_status=option(STATUS["revoked"])))  # by now it is known who we are
    await here.hand.edit(key, hlf_status=STATUS["revoked"])
    await here.on.user.execute(
        "insert into dynamics_sync.circuit (target) values ('dynamics') on conflict (target) do nothing"
    )
    await here.on.user.execute(
        "update dynamics_sync.circuit set state = 'open', opened_at = clock_timestamp(), "
        "failure_count = 3, generation = generation + 1, revision = revision + 1"
    )
    asked = (await here.event(key, hlf_status=option(STATUS["revoked"]))).but(image={})
    assert await here.dataverse.tell(asked) == 202
    needs_nothing = await here.event(other, hlf_status=option(STATUS["expired"]))
    assert await here.dataverse.tell(needs_nothing.but(at=datetime.now(UTC) + LONG_AGO)) == 202
    await here.on.until("select count(*) = 2 from dynamics_sync.inbox where status = 'applied'")
    assert (await here.row(key))[0] == "active"
    await here.on.engine.stores.breaker.force_closed()
    await here.on.user.execute("update dynamics_sync.inbox set not_before = null")  # it would be looked at in 5 s
    await here.told()
    assert (await here.row(key))[0] == "revoked"


async def test_a_choice_without_a_text_waits_for_a_person_and_nothing_is_half_applied(here: Room) -> None:
    key = await here.synchronised()
    event = await here.event(key, hlf_status=option(7), hlf_expireson="/Date(1830038400000)/")
    await here.told(event)
    assert await here.inbox() == [("requires_investigation", "inbox.unknown_choice")]
    assert await here.row(key) == ("active", "2099-01-31")


async def test_a_rule_of_the_table_that_forbids_it_waits_for_a_person(here: Room) -> None:
    key = await here.synchronised()
    await here.on.user.execute("alter table public.certifications add check (status <> 'revoked')")
    await here.told(await here.event(key, hlf_status=option(STATUS["revoked"])))
    assert await here.inbox() == [("requires_investigation", "inbox.refused_by_database")]


async def test_a_trigger_that_alters_what_came_has_the_record_sent(here: Room) -> None:
    key = await here.synchronised()
    await here.on.user.execute("""
        create function public.no_sooner() returns trigger language plpgsql as
        $$ begin new.expires_on := greatest(new.expires_on, '2199-01-01'); return new; end $$;
        create trigger no_sooner before update on public.certifications
        for each row execute function public.no_sooner()
    """)
    await here.told(await here.event(key, hlf_status=option(STATUS["revoked"])))
    await here.on.settled()
    record = await here.on.record(key)
    assert record is not None
    assert (record["hlf_status"], record["hlf_expireson"]) == (STATUS["revoked"], "2199-01-01")


async def test_a_killed_worker_leaves_what_it_stored_to_the_next_one(database: str, tmp_path: Path) -> None:
    """Killed between storing and applying, and once more in the middle of applying."""
    async with stage(database, working=False) as on:
        key = await on.issue()
        settings = {"webhooks": "on", "webhook_secret": SECRET}
        async with worker_process(on, database, tmp_path, **settings) as worker:
            await on.settled()
            await on.user.execute("update dynamics_sync.record_state set applied_at = applied_at - interval '1 day'")
            here = Room(on, await hand(on), Dataverse(worker.url, on.http))
            event = await here.event(key, hlf_status=option(STATUS["revoked"]))
            async with await connect(database) as other, other.transaction():
                await other.execute("select from public.certifications where id = %s for update", [key])
                assert await here.dataverse.tell(event) == 202
                await on.until("select count(*) = 1 from dynamics_sync.inbox where lease_owner is not null")
                worker.process.kill()
                await worker.process.wait()
        assert await here.inbox() == [("received", None)]
        assert (await here.row(key))[0] == "active"
        await on.user.execute("update dynamics_sync.inbox set lease_until = clock_timestamp()")
        async with worker_process(on, database, tmp_path, **settings):
            await here.told()
        assert await here.inbox() == [("applied", None)]
        assert (await here.row(key))[0] == "revoked"
        assert len(await on.requests()) == 1


OWN = """
[[tables]]
source = "public.people"
key = "id"
entity_set = "hlf_certifications"
logical_name = "hlf_certification"
alternate_key = "hlf_externalid"
[tables.columns]
mood = { to = "hlf_mood", owner = "dynamics" }
"""


@pytest.fixture
def as_ordinary_owner(server: Cluster) -> Iterator[str]:
    """The address of a database whose owner is neither superuser nor sees past row-level security."""
    name = f"owner_{uuid4().hex}"
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute(f"create role {name} login password 'only-here'; grant service_role to {name}".encode())
        admin.execute(f"create database {name} owner {name}".encode())
        yield make_conninfo(server.url_of(name), user=name, password="only-here")
        admin.execute(f"drop database {name} with (force)".encode())
        admin.execute(f"drop role {name}".encode())


@pytest.mark.every_postgres
@pytest.mark.direct
async def test_an_ordinary_owner_will_do_and_service_role_needs_leave_to_write(
    database: str, as_ordinary_owner: str, tmp_path: Path
) -> None:
    url = as_ordinary_owner
    await migrate(url, [MACHINERY])
    (tmp_path / "mapping.toml").write_text(OWN)
    async with await connect(url) as owner:
        await owner.execute("""
            create table public.people (id text primary key, mood text);
            alter table public.people enable row level security;
            select dynamics_sync.watch('public.people');
            insert into public.people values ('kari', 'good')
        """)
        async with room(url, mapping=tmp_path / "mapping.toml") as here:
            await here.on.settled()
            await here.told(await here.event("kari", hlf_mood="better"))
            assert await here.inbox() == [("requires_investigation", "inbox.may_not_write")]
            await owner.execute("grant update on public.people to service_role")
            await here.on.engine.stores.inbox.replay(None, Operator("test"))
            await here.told()
            assert await here.inbox() == [("applied", None)]
            assert await here.on.rows("select mood from public.people") == [("better",)]
