"""A mapping of one's own, from a row in PostgreSQL to a record in Dynamics: every kind of column, key and deletion."""

from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from dynamics_sync.core.errors import MappingError
from support.own import HEAD, Own


@pytest.fixture
def own(database: str, tmp_path: Path) -> Any:
    made = Own(database, tmp_path / "mapping.toml")
    yield made
    made.owner.close()


COLUMNS = """
name = "new_name"
grade = "new_grade"
points = "new_points"
share = "new_share"
ratio = "new_ratio"
weight = "new_weight"
public = "new_public"
mood = "new_mood"
token = "new_token"
day = "new_day"
seen = "new_seen"
born = { to = "new_born", kind = "date" }
met = { to = "new_met", kind = "date", time_zone = "Europe/Oslo" }
left_at = { to = "new_left", kind = "date", time_zone = "Europe/Oslo" }
called = { to = "new_called", kind = "datetime" }
state = { to = "new_state", choices = { open = 7, closed = 8 } }
paid = { to = "new_paid", choices = { true = 1, false = 2 } }
"""

TABLE = """
id bigint primary key, name text, grade smallint, points bigint, share numeric(12, 4), ratio double precision,
weight real, public boolean, mood public.mood, token uuid, day date, seen timestamp, born date, met timestamptz,
left_at timestamp, called timestamptz, state varchar(10), paid boolean
"""

VALUES = """
insert into public.people values (42, 'Åse "Ø" ✓', 3, 2147483647, 1234.5, 0.1, 0.1, true, 'good',
'6f2f1d6e-0d0a-4a63-9d43-0d7ce1a7a6a1', '2026-02-28', '2026-03-01 08:30', '1980-12-31', '2026-06-30 22:30+00',
'2026-06-30 22:30', '2026-07-01 02:00+02', 'closed', false)
"""

WRITTEN = {
    "new_name": 'Åse "Ø" ✓',
    "new_grade": 3,
    "new_points": 2147483647,
    "new_share": 1234.5,
    "new_ratio": 0.1,
    "new_weight": 0.1,
    "new_public": True,
    "new_mood": "good",
    "new_token": "6f2f1d6e-0d0a-4a63-9d43-0d7ce1a7a6a1",
    "new_day": "2026-02-28",
    "new_seen": "2026-03-01T08:30:00Z",
    "new_born": "1980-12-31",
    "new_met": "2026-07-01",
    "new_left": "2026-07-01",
    "new_called": "2026-07-01T00:00:00Z",
    "new_state": 8,
    "new_paid": 2,
}


@pytest.mark.every_postgres
async def test_every_kind_of_column_arrives_and_is_cleared(own: Own) -> None:
    """Whatever the database's own ways of writing dates and numbers are."""
    own.owner.execute("create type public.mood as enum ('good', 'bad')")
    own.table("people", TABLE, COLUMNS)
    for setting in ("datestyle to 'German, DMY'", "timezone to 'Asia/Kolkata'", "extra_float_digits to -10"):
        own.owner.execute(f"alter database {own.owner.info.dbname} set {setting}".encode())
    async with own.synchronised() as on:
        own.owner.execute(VALUES)
        await on.settled()
        held = (await on.records("new_people"))["42"]
        assert {name: held[name] for name in WRITTEN} == WRITTEN
        assert (held["statecode"], held["statuscode"]) == (0, 1)

        columns = [line.split(" ", 1)[0] for line in COLUMNS.strip().splitlines()]
        own.owner.execute(f"update public.people set {' = null, '.join(columns)} = null".encode())
        await on.settled()
        held = (await on.records("new_people"))["42"]
        assert {name: held[name] for name in WRITTEN} == dict.fromkeys(WRITTEN)
        assert await on.queue() == []


@pytest.mark.parametrize(
    ("kind", "column", "value", "code"),
    [
        ("text", '{ to = "new_v", choices = { a = 1 } }', "b", "mapping.unknown_choice"),
        ("numeric", '"new_v"', "0.1234567890123456789", "mapping.too_precise"),
        ("double precision", '"new_v"', "NaN", "mapping.wrong_type"),
        ("text", '{ to = "new_V", lookup = { entity_set = "teams" } }', "no id", "mapping.wrong_type"),
        (
            "text",
            '{ to = "new_V", lookup = { entity_set = "teams", alternate_key = "k" } }',
            "a/b",
            "mapping.forbidden_key",
        ),
    ],
)
async def test_what_has_no_form_in_dynamics_waits_in_the_queue(
    own: Own, kind: LiteralString, column: str, value: str, code: str
) -> None:
    own.table("people", f"id int primary key, v {kind}", f"v = {column}")
    async with own.synchronised() as on:
        own.owner.execute(f"insert into public.people values (1, '{value}')".encode())
        own.owner.execute("insert into public.people values (2, null)")
        await on.settled()
        assert await on.queue() == [("requires_investigation", 0, "unsendable", code)]
        assert await on.rows("select payload_json ->> 'place' from public.dynamics_sync_retry_queue") == [("v",)]
        assert list(await on.records("new_people")) == ["2"]


ARCHIVED = """
active = { new_archived = false, statuscode = 5 }
inactive = { new_archived = true, statuscode = 6 }
"""


async def test_what_a_deletion_means(own: Own) -> None:
    rules = {
        "plain": "",
        "custom": ARCHIVED,
        "removed": 'on_delete = "delete"',
        "kept": 'on_delete = "ignore"',
    }
    for name, rest in rules.items():
        own.table(name, "id int primary key, v text", 'v = "new_v"', rest=rest)

    async def held(name: str, *attributes: str) -> list[Any] | None:
        record = (await on.records(f"new_{name}")).get("1")
        return None if record is None else [record[attribute] for attribute in attributes]

    async with own.synchronised() as on:
        for name in rules:
            own.owner.execute(f"insert into public.{name} values (1, 'x')".encode())
        await on.settled()
        assert await held("plain", "statecode", "statuscode") == [0, 1]
        assert await held("custom", "new_archived", "statuscode") == [False, 5]
        for name in rules:
            own.owner.execute(f"delete from public.{name}".encode())
        await on.settled()
        assert await held("plain", "statecode", "statuscode", "new_v") == [1, 2, "x"]
        assert await held("custom", "new_archived", "statuscode", "new_v") == [True, 6, "x"]
        assert await held("removed", "new_v") is None
        assert await held("kept", "new_v") == ["x"]
        for name in rules:
            own.owner.execute(f"insert into public.{name} values (1, 'y')".encode())
        await on.settled()
        assert await held("plain", "statecode", "statuscode", "new_v") == [0, 1, "y"]
        assert await held("custom", "new_archived", "statuscode", "new_v") == [False, 5, "y"]
        assert await held("removed", "new_v") == ["y"]
        assert await held("kept", "new_v") == ["y"]
        assert await on.queue() == []


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("bigint", ["9007199254740993", "-1"]),
        ("numeric(10, 2)", ["1.50", "2.00"]),
        ("text", ["O'Brien", "æ ø=å,(x)", "two  blanks", "#1;2@3", '"quoted"', "[a]{b}|c^d~`$!"]),
        ("varchar(5)", ["a", "bb"]),
        ("public.code", ["K-1"]),
        ("public.grade", ["high"]),
    ],
)
async def test_every_kind_of_key_arrives_changes_and_goes(own: Own, kind: LiteralString, values: list[str]) -> None:
    own.owner.execute("create domain public.code as varchar(20)")
    own.owner.execute("create type public.grade as enum ('high', 'low')")
    own.table("people", f"id serial primary key, code {kind} not null unique, v text", 'v = "new_v"', key="code")
    async with own.synchronised() as on:
        for value in values:
            own.owner.execute(f"insert into public.people (code, v) values (%s::text::{kind}, 'x')".encode(), [value])
        await on.settled()
        assert set(await on.records("new_people")) == set(values)
        own.owner.execute("update public.people set v = 'y'")
        await on.settled()
        assert {record["new_v"] for record in (await on.records("new_people")).values()} == {"y"}
        own.owner.execute("delete from public.people")
        await on.settled()
        assert {record["statecode"] for record in (await on.records("new_people")).values()} == {1}
        assert await on.queue() == []


async def test_a_key_that_dataverse_cannot_take_waits_in_the_queue(own: Own) -> None:
    own.table("people", "id text primary key, v text", 'v = "new_v"')
    async with own.synchronised() as on:
        own.owner.execute("insert into public.people values ('a/b', 'x'), ('ab', 'x')")
        await on.settled()
        assert await on.queue() == [("requires_investigation", 0, "unsendable", "mapping.forbidden_key")]
        assert list(await on.records("new_people")) == ["ab"]


async def test_a_key_that_changes_leaves_no_active_record_behind(own: Own) -> None:
    own.table("people", "id text primary key, v text", 'v = "new_v"')
    async with own.synchronised() as on:
        own.owner.execute("insert into public.people values ('old', 'x')")
        await on.settled()
        own.owner.execute("update public.people set id = 'new'")
        await on.settled()
        held = await on.records("new_people")
        assert {key: record["statecode"] for key, record in held.items()} == {"old": 1, "new": 0}


@pytest.mark.parametrize("kind", ["date", "timestamptz", "double precision", "char(5)", "boolean"])
def test_a_key_that_may_be_written_in_two_ways_is_refused(own: Own, kind: LiteralString) -> None:
    """What the trigger noted and what the worker reads must be one text, or a record would look deleted."""
    with pytest.raises(psycopg.errors.RaiseException, match="cannot be a key"):
        own.table("people", f"id {kind} primary key, v text", 'v = "new_v"')


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("jsonb", '"new_v"'),
        ("text[]", '"new_v"'),
        ("bytea", '"new_v"'),
        ("interval", '"new_v"'),
        ("time", '"new_v"'),
        ("text", '{ to = "new_v", kind = "date" }'),
        ("date", '{ to = "new_v", kind = "datetime" }'),
    ],
)
async def test_a_column_of_a_type_that_cannot_be_written_is_refused_at_start(
    own: Own, kind: LiteralString, column: str
) -> None:
    own.table("people", f"id int primary key, v {kind}", f"v = {column}")
    with pytest.raises(MappingError, match=rf"column v of table public.people has type .*{kind.split('[')[0]}"):
        async with own.synchronised():
            pass


async def test_names_with_capitals_are_taken_as_they_are(own: Own) -> None:
    own.owner.execute('create table public."People" ("Id" int primary key, "fullName" text)')
    own.mapping.write_text(HEAD.format(table="People", key="Id", columns='fullName = "new_name"', rest=""))
    with pytest.raises(MappingError) as caught:
        async with own.synchronised():
            pass
    advice = str(caught.value).split("`")[1]
    assert advice == """select dynamics_sync.watch('public."People"', 'Id', columns => '{fullName}')"""
    own.owner.execute(advice.encode())
    async with own.synchronised() as on:
        own.owner.execute("""insert into public."People" values (1, 'Kari')""")
        await on.settled()
        assert (await on.records("new_People"))["1"]["new_name"] == "Kari"


async def test_columns_that_are_not_captured_are_told_with_what_captures_them(own: Own) -> None:
    own.table("people", 'id int primary key, name text, "it\'s {so}" text, note text', "name = 'new_name'")
    own.mapping.write_text(
        HEAD.format(table="people", key="id", columns="name = 'new_name'\n\"it's {so}\" = 'new_so'", rest="")
    )
    own.owner.execute("select dynamics_sync.watch('public.people', columns => '{name, note}')")
    with pytest.raises(MappingError, match=r"changes of it's {so} in table public.people are not captured") as caught:
        async with own.synchronised():
            pass
    own.owner.execute(str(caught.value).split("`")[1].encode())
    async with own.synchronised() as on:
        own.owner.execute("""insert into public.people values (1, 'Kari', 'x', 'y')""")
        await on.settled()
        own.owner.execute("""update public.people set note = 'z'; update public.people set "it's {so}" = 'w'""")
        await on.settled()
        assert (await on.records("new_people"))["1"]["new_so"] == "w"
