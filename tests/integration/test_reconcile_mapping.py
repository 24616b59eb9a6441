"""Reconciliation of tables of one's own: every kind of column, key and deletion."""

from collections.abc import Iterator
from pathlib import Path
from typing import LiteralString

import pytest

from dynamics_sync.sync.reconciliation import TableReport
from support.by_hand import hand, past_the_triggers
from support.engine import Stage
from support.own import HEAD, Own


@pytest.fixture
def own(database: str, tmp_path: Path) -> Iterator[Own]:
    made = Own(database, tmp_path / "mapping.toml")
    yield made
    made.owner.close()


async def reconcile(on: Stage, *, repair: bool = False) -> list[TableReport]:
    return await on.engine.reconciliation.reconciler.run(repair=repair)


async def found(on: Stage) -> dict[tuple[str, str], tuple[str, tuple[str, ...]]]:
    findings = await on.engine.reconciliation.store.findings()
    return {(one.source_table, one.record_key): (one.kind, one.attributes) for one in findings}


TEAM = "0d9f6f3e-6a57-4a83-8f0e-1f6a4f1e2b11"
TABLE = """
id bigint primary key, name text, points bigint, share numeric(12, 4), ratio double precision, weight real,
public boolean, token uuid, day date, met timestamptz, called timestamptz, state text, paid boolean, team uuid,
chapter text
"""
COLUMNS = """
name = "new_name"
points = "new_points"
share = "new_share"
ratio = "new_ratio"
weight = "new_weight"
public = "new_public"
token = "new_token"
day = "new_day"
met = { to = "new_met", kind = "date", time_zone = "Europe/Oslo" }
called = { to = "new_called", kind = "datetime" }
state = { to = "new_state", choices = { open = 7, closed = 8 } }
paid = { to = "new_paid", choices = { true = 1, false = 2 } }
team = { to = "new_Team", lookup = { entity_set = "teams" } }
chapter = { to = "new_Chapter", lookup = { entity_set = "chapters", alternate_key = "code" } }
"""
VALUES = f"""
insert into public.people values (42, 'Åse "Ø" ✓', 2147483647, 1234.5, 0.1, 0.1, true,
'6f2f1d6e-0d0a-4a63-9d43-0d7ce1a7a6a1', '2026-02-28', '2026-06-30 22:30+00', '2026-07-01 02:00:00.75+02', 'closed',
false, '{TEAM}', 'O''Brien')
"""
OTHER = {
    "new_name": "somebody",
    "new_points": 1,
    "new_share": 1234.51,
    "new_ratio": 0.2,
    "new_weight": 0.11,
    "new_public": False,
    "new_token": TEAM,
    "new_day": "2026-03-01",
    "new_met": "2026-06-30",
    "new_called": "2026-07-01T00:00:02Z",
    "new_state": 7,
    "new_paid": 1,
    "new_Team@odata.bind": None,
    "new_Chapter@odata.bind": "/chapters(code='other')",
}


@pytest.mark.every_postgres
async def test_every_kind_of_column_agrees_when_sent_and_is_seen_when_changed(own: Own) -> None:
    own.table("people", TABLE, COLUMNS)
    async with own.synchronised() as on:
        by = await hand(on)
        await by.create("teams", teamid=TEAM)
        await by.create("chapters", code="O'Brien")
        await by.create("chapters", code="other")
        own.owner.execute(VALUES.encode())
        own.owner.execute("insert into public.people (id) values (43)")
        await on.settled()
        assert await on.queue() == []
        assert await reconcile(on) == [TableReport("public.people", compared=2)]
        for attribute, value in OTHER.items():
            await by.edit("42", "new_people", "new_key", **{attribute: value})
            assert (await reconcile(on, repair=True))[0].differences == 1
            name = attribute.removesuffix("@odata.bind")
            assert await found(on) == {("public.people", "42"): ("different", (name,))}
            await on.settled()
        assert await reconcile(on) == [TableReport("public.people", compared=2)]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("bigint", ["9007199254740993", "-1"]),
        ("numeric(10, 2)", ["1.50", "2.00"]),
        ("text", ["O'Brien", "æ ø=å,(x)", "two  blanks", "#1;2@3", '"quoted"', "[a]{b}|c^d~`$!", "x" * 90]),
        ("varchar(5)", ["a", "bb"]),
        ("public.code", ["K-1"]),
        ("public.grade", ["high"]),
    ],
)
async def test_every_kind_of_key_is_found_and_missed(own: Own, kind: LiteralString, values: list[str]) -> None:
    own.owner.execute("create domain public.code as varchar(20)")
    own.owner.execute("create type public.grade as enum ('high', 'low')")
    own.table("people", f"id serial primary key, code {kind} not null unique, v text", 'v = "new_v"', key="code")
    async with own.synchronised() as on:
        for value in values:
            own.owner.execute(f"insert into public.people (code, v) values (%s::text::{kind}, 'x')".encode(), [value])
        await on.settled()
        by, count = await hand(on), len(values)
        await by.create("new_people", new_key="made by hand", new_v="x")
        assert await reconcile(on) == [TableReport("public.people", compared=count + 1, extra=1)]
        async with past_the_triggers(on):
            await on.user.execute("update public.people set v = 'y'")
        assert (await reconcile(on))[0].different == count
        async with past_the_triggers(on):
            await on.user.execute("delete from public.people")
        assert (await reconcile(on, repair=True))[0].extra == count + 1
        await on.settled()
        held = await on.records("new_people")
        assert {record["statecode"] for key, record in held.items() if key in values} == {1}


ARCHIVED = """
active = { new_archived = false, statuscode = 5 }
inactive = { new_archived = true, statuscode = 6 }
"""


async def test_what_a_deletion_means(own: Own) -> None:
    rules = {"plain": "", "custom": ARCHIVED, "removed": 'on_delete = "delete"', "kept": 'on_delete = "ignore"'}
    for name, rest in rules.items():
        own.table(name, "id int primary key, v text", 'v = "new_v"', rest=rest)
        own.owner.execute(f"insert into public.{name} values (1, 'x'), (2, 'y')".encode())
    async with own.synchronised() as on:
        await on.settled()
        for name in rules:
            own.owner.execute(f"delete from public.{name} where id = 1".encode())
        await on.settled()
        assert [report.differences for report in await reconcile(on)] == [0, 0, 0, 0]
        async with past_the_triggers(on):
            for name in rules:
                await on.user.execute(f"delete from public.{name}".encode())
        assert [report.extra for report in await reconcile(on, repair=True)] == [1, 1, 1, 0]
        await on.settled()
        assert [report.differences for report in await reconcile(on)] == [0, 0, 0, 0]
        by = await hand(on)
        await by.edit("1", "new_custom", "new_key", new_archived=False)
        assert [report.extra for report in await reconcile(on)] == [0, 1, 0, 0]
        assert (await found(on))["public.custom", "1"] == ("extra", ("new_archived",))


async def test_capitals_make_no_other_record(own: Own) -> None:
    """As Dynamics compares keys."""
    own.table("people", "id text primary key, v text", 'v = "new_v"')
    async with own.synchronised() as on:
        by = await hand(on)
        await by.create("new_people", new_key="abc", new_v="x")
        own.owner.execute("insert into public.people values ('ABC', 'x')")
        await on.settled()
        assert await reconcile(on) == [TableReport("public.people", compared=1)]
        assert await reconcile(on) == [TableReport("public.people", compared=1)]
        await by.edit("abc", "new_people", "new_key", new_v="y")
        assert (await reconcile(on))[0].different == 1
        assert await found(on) == {("public.people", "ABC"): ("different", ("new_v",))}


async def test_a_row_that_cannot_be_sent_is_told_and_repairing_puts_it_into_the_queue(own: Own) -> None:
    own.table("people", "id text primary key, v text, d date", 'v = { to = "new_v", choices = { a = 1 } }\nd = "new_d"')
    async with own.synchronised() as on:
        own.owner.execute("insert into public.people values ('1', 'a'), ('2', 'a'), ('3', 'a')")
        await on.settled()
        async with past_the_triggers(on):
            await on.user.execute("update public.people set v = 'b' where id = '1'")
            await on.user.execute("update public.people set d = 'infinity' where id = '2'")
            await on.user.execute("insert into public.people values ('a/b', 'a')")
        assert await reconcile(on, repair=True) == [
            TableReport("public.people", compared=4, different=2, missing=1, repaired=3)
        ]
        assert await found(on) == {
            ("public.people", "1"): ("different", ("new_v",)),
            ("public.people", "2"): ("different", ()),
            ("public.people", "a/b"): ("missing", ()),
        }
        await on.settled()
        assert {entry[3] for entry in await on.queue()} == {
            "mapping.unknown_choice",
            "database.unreadable_value",
            "mapping.forbidden_key",
        }
        assert await reconcile(on) == [TableReport("public.people", compared=4, waiting=3)]


async def test_another_mapping_begins_anew(own: Own) -> None:
    own.table("people", "id int primary key, v text, w text", 'v = "new_v"')
    async with own.synchronised() as on:
        own.owner.execute("insert into public.people values (1, 'x', 'y')")
        await on.settled()
        assert await reconcile(on) == [TableReport("public.people", compared=1)]
    own.mapping.write_text(HEAD.format(table="people", key="id", columns='v = "new_v"\nw = "new_w"', rest=""))
    async with own.synchronised() as on:
        assert await reconcile(on) == [TableReport("public.people", compared=1, missing=1)]


async def test_a_name_that_dynamics_does_not_have_is_told(own: Own) -> None:
    own.table(
        "people", "id int primary key, team uuid", 'team = { to = "new_Team", lookup = { entity_set = "teams" } }'
    )
    own.table("others", "id int primary key, v text", 'v = "new_v"')
    own.table("third", "id int primary key, w text", 'w = "new_w"')
    async with own.synchronised() as on:
        text = own.mapping.read_text().replace("new_Team", "new_team").replace('"new_others"', '"absent"')
        own.mapping.write_text(text.replace("new_w", "new_absent"))
        async with own.engine_for(on) as other:
            people, others, third = await other.reconciliation.reconciler.run()
            assert "no navigation property new_team" in str(people.error)
            assert "no entity set absent" in str(others.error)
            assert "new_third be read" in str(third.error)
            assert "A name in the mapping" in str(third.error)
