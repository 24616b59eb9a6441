"""What counts as a change, whatever the statement is, and whatever became of the table."""

import random
from collections.abc import Iterator
from threading import Thread

import psycopg
import pytest
from psycopg.errors import FeatureNotSupported, RaiseException

from support.outbox import FORGET_ALL, GATHER

Connection = psycopg.Connection[tuple[object, ...]]

WAITING = "select record_key, operation_type, changed_columns from dynamics_sync.outbox order by record_key"


def captured(connection: Connection) -> dict[str, str | list[str]]:
    """What waits since this was last asked: by key 'delete', or the columns that changed."""
    connection.execute(GATHER)
    rows = connection.execute(WAITING).fetchall()
    connection.execute(FORGET_ALL)
    return {str(key): "delete" if kind == "delete" else list(names) for key, kind, names in rows}  # type: ignore[call-overload]


@pytest.fixture
def user(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def things(user: Connection) -> Connection:
    """Three things, of which name and tags count."""
    user.execute("create table public.things (id int primary key deferrable, name text, tags json, grade int)")
    user.execute("select dynamics_sync.watch('public.things', columns => '{name, tags}')")
    user.execute("insert into public.things select n, 'x', '[]', 0 from generate_series(1, 3) n")
    assert captured(user) == {"1": [], "2": [], "3": []}
    return user


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("update public.things set grade = 1", {}),
        ("update public.things set name = 'x'", {}),
        ("update public.things set name = 'y', grade = 1 where id > 1", {"2": ["name"], "3": ["name"]}),
        ("update public.things set tags = '[1]', name = null where id = 1", {"1": ["name", "tags"]}),
        ("update public.things set id = 9 where id = 1", {"1": "delete", "9": ["id", "name", "tags"]}),
        ("update public.things set id = 3 - id, name = id where id < 3", {"1": ["name"], "2": ["name"]}),
        ("update public.things set id = 3 - id where id < 3", {}),
        (
            "update public.things set id = id + 1",
            {"1": "delete", "4": ["id", "name", "tags"]},
        ),
        ("delete from public.things where id <> 2", {"1": "delete", "3": "delete"}),
        ("delete from public.things where false", {}),
        ("truncate public.things", {"1": "delete", "2": "delete", "3": "delete"}),
        (
            "merge into public.things t using (values (1), (2), (4)) as s (id) on t.id = s.id "
            "when matched and s.id = 1 then delete when matched then update set name = 'm' "
            "when not matched then insert values (s.id, 'new')",
            {"1": "delete", "2": ["name"], "4": []},
        ),
        (
            "with gone as (delete from public.things where id = 1), here as (insert into public.things values (7)) "
            "update public.things set name = 'w' where id = 3",
            {"1": "delete", "7": [], "3": ["name"]},
        ),
    ],
)
def test_what_a_statement_changes_is_captured(
    things: Connection, statement: str, expected: dict[str, str | list[str]]
) -> None:
    things.execute(statement.encode())
    assert captured(things) == expected


@pytest.mark.every_postgres
def test_an_upsert_is_captured_as_what_it_did(user: Connection) -> None:
    user.execute("create table public.things (id int primary key, name text, grade int)")
    user.execute("select dynamics_sync.watch('public.things', columns => '{name}')")
    user.execute("insert into public.things values (1, 'x', 0), (2, 'x', 0)")
    captured(user)
    user.execute(
        "insert into public.things values (1, 'y', 0), (2, 'x', 5), (3, 'z', 0) "
        "on conflict (id) do update set name = excluded.name, grade = excluded.grade"
    )
    assert captured(user) == {"1": ["name"], "3": []}


@pytest.mark.every_postgres
def test_copy_and_cascades_are_captured(things: Connection) -> None:
    with things.cursor().copy("copy public.things (id, name) from stdin") as copy:
        copy.write(b"7\tcopied\n8\tcopied\n")
    assert captured(things) == {"7": [], "8": []}
    things.execute(
        """
        create table public.owners (name text primary key);
        insert into public.owners values ('x'), ('copied');
        alter table public.things add foreign key (name) references public.owners on update cascade on delete cascade;
        update public.owners set name = name || '!'
        """
    )
    assert captured(things) == {key: ["name"] for key in ("1", "2", "3", "7", "8")}
    things.execute("delete from public.owners where name = 'copied!'")
    assert captured(things) == {"7": "delete", "8": "delete"}


@pytest.mark.every_postgres
def test_a_record_that_one_statement_changes_twice_waits_once(user: Connection) -> None:
    """Two cascades, one after the other."""
    user.execute(
        """
        create table public.owners (name text primary key);
        create table public.things (
          id int primary key,
          first text references public.owners on update cascade, second text references public.owners on update cascade
        );
        insert into public.owners values ('a'), ('b');
        insert into public.things values (1, 'a', 'b');
        select dynamics_sync.watch('public.things', columns => '{first, second}');
        update public.owners set name = name || '!'
        """
    )
    assert captured(user) == {"1": ["first", "second"]}


@pytest.mark.every_postgres
def test_two_targets_have_their_own_columns(things: Connection) -> None:
    things.execute("select dynamics_sync.watch('public.things', 'id', 'portal', columns => '{grade}')")
    things.execute("update public.things set grade = 1 where id = 1")
    things.execute("update public.things set name = 'n' where id = 2")
    things.execute(GATHER)
    found = things.execute("select target, record_key, changed_columns from dynamics_sync.outbox order by 2").fetchall()
    assert found == [("portal", "1", ["grade"]), ("dynamics", "2", ["name"])]


@pytest.mark.every_postgres
@pytest.mark.parametrize("columns", ["'{name, tags}'", "null"])
def test_whatever_becomes_of_the_table_no_statement_fails_and_no_change_is_lost(
    things: Connection, database: str, columns: str
) -> None:
    """The changes are made by a session that has the plans of before."""
    things.execute(f"select dynamics_sync.watch('public.things', columns => {columns})".encode())
    with psycopg.connect(database, autocommit=True) as other:
        for alteration, change in [
            ("rename name to title", "title = 'a'"),
            ("add column place text default 'here'", "title = 'b'"),
            ("drop column tags", "title = 'c'"),
            ("alter column title type varchar(90)", "title = 'd'"),
            ("alter column id type bigint", "title = 'e'"),
            ('alter column title type text collate "C"', "title = 'f'"),
            ("rename id to number", "title = 'g'"),
            ("alter column number type text", "title = 'h'"),
        ]:
            other.execute(f"alter table public.things {alteration}".encode())
            things.execute(f"update public.things set {change} where grade = 0".encode())
            assert captured(things).keys() == {"1", "2", "3"}, alteration
        things.execute("insert into public.things (number) values ('9')")
        things.execute("delete from public.things where number = '1'")
        things.execute("update public.things set number = '8' where number = '2'")
        assert {key: kind == "delete" for key, kind in captured(things).items()} == {
            "9": False,
            "1": True,
            "2": True,
            "8": False,
        }
        things.execute("truncate public.things")
        assert captured(things) == {"9": "delete", "8": "delete", "3": "delete"}
        other.execute("alter table public.things drop column number")
        things.execute("insert into public.things (title) values ('nothing tells which record this is')")
        things.execute("update public.things set title = 'x'")
        things.execute("truncate public.things")
        assert captured(things) == {}


@pytest.mark.every_postgres
def test_where_all_columns_count_so_do_later_ones(user: Connection) -> None:
    user.execute("create table public.things (id int primary key, name text)")
    user.execute("select dynamics_sync.watch('public.things'); insert into public.things values (1, 'x')")
    captured(user)
    user.execute("alter table public.things add column place text")
    user.execute("update public.things set place = 'there', name = 'y'")
    assert captured(user) == {"1": ["name", "place"]}
    user.execute("alter table public.things rename column name to title")
    user.execute("update public.things set title = 'z'")
    assert captured(user) == {"1": ["title"]}


@pytest.mark.every_postgres
@pytest.mark.parametrize("times", [1, 20])
def test_a_session_that_has_plans_of_before_sees_later_columns_too(user: Connection, database: str, times: int) -> None:
    user.execute("create table public.things (id int primary key, grade int)")
    user.execute("select dynamics_sync.watch('public.things'); insert into public.things values (1, 0)")
    for _ in range(times):
        user.execute("update public.things set grade = grade + 1")
    captured(user)
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("alter table public.things add column place text, add column time int")
    user.execute("update public.things set place = 'there', grade = 0")
    assert captured(user) == {"1": ["grade", "place"]}
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("alter table public.things drop column place")
    user.execute("update public.things set time = 1")
    assert captured(user) == {"1": ["time"]}


@pytest.mark.every_postgres
def test_names_and_keys_of_any_kind(user: Connection) -> None:
    user.execute(
        """
        create type public.colour as enum ('red', 'green');
        create schema "Sch.ema";
        create table "Sch.ema"."T'able %I" (
          "Key ""x" public.colour primary key, "r" int, "new" text, "plain" text, "tg_op" text, "null" text,
          "a,b{}" text, "instead" text, "waiting" int, "found" bool, "k" int, "c1" text, "%s" text,
          "it's" text, "old_rows" int,
          doubled int generated always as ("r" * 2) stored, counted int generated always as identity
        )
        """
    )
    names = ["r", "new", "plain", "tg_op", "null", "a,b{}", "instead", "waiting", "found"]
    names += ["k", "c1", "%s", "it's", "doubled"]
    relation = """"Sch.ema"."T'able %I\""""
    user.execute("select dynamics_sync.watch(%s::regclass, columns => %s::name[])", [relation, names])
    user.execute(f"""insert into {relation} ("Key ""x", r) values ('red', 1), ('green', 2)""".encode())
    assert captured(user) == {"red": [], "green": []}
    user.execute(f"update {relation} set r = r + 1, c1 = 'x', \"it's\" = '1' where r = 1".encode())
    assert captured(user) == {"red": ["c1", "doubled", "it's", "r"]}
    user.execute(f"update {relation} set old_rows = 1".encode())
    assert captured(user) == {}


@pytest.mark.every_postgres
def test_values_count_as_they_are_written(user: Connection) -> None:
    """Equal is not the same."""
    user.execute(
        """
        create table public.things (id numeric primary key, name text, size numeric);
        select dynamics_sync.watch('public.things', columns => '{name, size}');
        insert into public.things values (1.0, 'x', 1)
        """
    )
    captured(user)
    user.execute("update public.things set size = 1.0")
    assert captured(user) == {"1.0": ["size"]}
    user.execute("update public.things set id = 1.00")
    assert captured(user) == {"1.0": "delete", "1.00": ["id", "name", "size"]}


@pytest.mark.every_postgres
def test_partitions_and_children_are_captured_row_by_row(user: Connection) -> None:
    user.execute(
        """
        create table public.parts (id int primary key, name text, grade int) partition by range (id);
        create table public.low partition of public.parts for values from (0) to (10);
        create table public.high (grade int, id int not null, name text);
        alter table public.parts attach partition public.high for values from (10) to (20);
        create table public.parents (id int, name text);
        create table public.children (primary key (id)) inherits (public.parents);
        select dynamics_sync.watch('public.parts', columns => '{name}');
        select dynamics_sync.watch('public.children', columns => '{name}');
        insert into public.parts values (1, 'x', 0), (11, 'x', 0);
        insert into public.children values (100, 'x')
        """
    )
    assert captured(user) == {"1": [], "11": [], "100": []}
    user.execute("update public.parts set grade = 2; update public.high set grade = 3")
    assert captured(user) == {}
    user.execute("update public.parts set name = 'y'; update public.parents set name = 'y'")
    assert captured(user) == {"1": ["name"], "11": ["name"], "100": ["name"]}
    user.execute("update public.parts set id = 12 where id = 1")
    assert {key: kind == "delete" for key, kind in captured(user).items()} == {"1": True, "12": False}
    user.execute("alter table public.parts rename id to number; alter table public.parts rename name to title")
    user.execute("update public.high set title = 'z'; delete from public.parts where number = 12")
    assert captured(user) == {"11": ["title"], "12": "delete"}
    user.execute("truncate public.parts; delete from public.parents")
    assert captured(user) == {"11": "delete", "100": "delete"}


@pytest.mark.every_postgres
def test_a_table_that_is_captured_by_statements_is_not_made_part_of_another(things: Connection) -> None:
    things.execute("create table public.parents ()")
    with pytest.raises(FeatureNotSupported, match="dynamics_sync_unshared_dynamics"):
        things.execute("alter table public.things inherit public.parents")
    things.execute("select dynamics_sync.unwatch('public.things')")
    things.execute("alter table public.things inherit public.parents")
    things.execute("select dynamics_sync.watch('public.things', columns => '{name}')")
    things.execute("update public.things set name = 'again' where id = 1")
    assert captured(things) == {"1": ["name"]}


@pytest.mark.every_postgres
def test_nothing_is_left_of_what_is_no_longer_watched(things: Connection) -> None:
    functions = (
        "select count(*) from pg_proc where pronamespace = 'dynamics_sync'::regnamespace and proname ~ '^capture_[0-9]'"
    )
    before = things.execute(functions).fetchone()
    things.execute("select dynamics_sync.watch('public.things')")
    assert things.execute(functions).fetchone() == before
    things.execute("drop table public.things; create table public.things (id int primary key)")
    things.execute("select dynamics_sync.watch('public.things'), dynamics_sync.unwatch('public.things')")
    things.execute("select dynamics_sync.unwatch('public.certifications')")
    assert things.execute(functions).fetchone() == (0,)


def test_columns_that_are_not_there_are_refused(things: Connection) -> None:
    with pytest.raises(RaiseException, match="has no column nmae"):
        things.execute("select dynamics_sync.watch('public.things', columns => '{name, nmae}')")


def test_a_switched_off_trigger_captures_nothing(things: Connection) -> None:
    things.execute("set session_replication_role = replica")
    things.execute("update public.things set name = 'y'")
    assert captured(things) == {}


def test_what_users_plant_is_not_looked_at(things: Connection) -> None:
    things.execute("grant select, insert, update, delete on public.things to authenticated")
    things.execute("set role authenticated")
    things.execute("create temp table old_rows (id int, name text); create temp table new_rows (like old_rows)")
    things.execute("create temp table outbox (id int); create temp table changes (id int)")
    things.execute("create domain pg_temp.text as pg_catalog.text check (false)")
    things.execute("set search_path = pg_temp, public")
    things.execute("update public.things set name = 'y' where id = 1; insert into public.things values (5)")
    things.execute("delete from public.things where id = 2")
    things.execute("reset role; reset search_path")
    assert captured(things) == {"1": ["name"], "2": "delete", "5": []}


@pytest.mark.every_postgres
def test_statements_over_the_same_records_do_not_wait_in_a_circle(user: Connection, database: str) -> None:
    """Nor with those who gather what they changed."""
    user.execute(
        """
        create table public.things (id int primary key, name text);
        insert into public.things select n, 'x' from generate_series(1, 300) n order by n desc;
        select dynamics_sync.watch('public.things', columns => '{name}')
        """
    )
    failures: list[Exception] = []

    def work(low: int, high: int) -> None:
        try:
            with psycopg.connect(database, autocommit=True) as connection:
                for turn in range(30):
                    connection.execute(
                        "with picked as (select id from public.things where id between %s and %s order by id "
                        "for update) "
                        "update public.things t set name = %s from picked where picked.id = t.id",
                        [low, high, f"{low} {turn}"],
                    )
        except Exception as error:
            failures.append(error)

    threads = [Thread(target=work, args=span) for span in ((1, 200), (100, 300), (50, 250))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        user.execute(GATHER)
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(captured(user)) == 300


@pytest.mark.every_postgres
def test_nobody_waits_for_whoever_has_changed_the_same_records(things: Connection, database: str) -> None:
    """The operator locks none of the rows: all that the two could meet in is what was captured."""
    with psycopg.connect(database) as operator, psycopg.connect(database) as person:
        for each in (operator, person, things):
            each.execute("set lock_timeout = '1s'")
        operator.execute("select dynamics_sync.resync('public.things')")
        person.execute("update public.things set name = 'y'")
        operator.execute("select dynamics_sync.resync('public.things')")
        person.execute("select dynamics_sync.resync('public.things')")
        assert captured(things) == {}
        person.commit()
        assert captured(things) == {key: ["name"] for key in ("1", "2", "3")}
        operator.commit()
        assert captured(things) == {key: [] for key in ("1", "2", "3")}


COUNTING = "select id, a, b from public.things"


def random_statement(dice: random.Random) -> str:
    low = dice.randint(0, 12)
    where = f"where id between {low} and {low + dice.randint(0, 6)}"
    n = dice.randint(0, 1)
    assignments = (
        f"a = t.a + {n}",
        f"b = t.b || '{n}'",
        f"c = {n}",
        "a = t.a, b = t.b, c = t.c + 1",
        f"a = {n}, c = {n}",
    )
    assignment = dice.choice(assignments)
    return dice.choice(
        [
            f"insert into public.things as t values ({low}, 0, 'b', 0) on conflict (id) do update set {assignment}",
            f"update public.things t set {assignment} {where}",
            f"update public.things t set {assignment} {where}",
            f"update public.things set id = 100 - id {where.replace('id', '100 - id')}",
            f"update public.things t set id = id + 50, {assignment} where id = {low} "
            f"and not exists (select from public.things where id = {low + 50})",
            f"delete from public.things {where}",
            f"merge into public.things t using generate_series({low}, {low + 3}) n on t.id = n "
            f"when matched then update set a = n when not matched then insert values (n, 0, 'm', 0)",
        ]
    )


@pytest.mark.every_postgres
@pytest.mark.parametrize("seed", range(3))
def test_exactly_what_differs_after_a_transaction_is_captured(user: Connection, seed: int) -> None:
    """Or was changed in it, and changed back."""
    dice = random.Random(seed)
    user.execute("create table public.things (id int primary key, a int, b text, c int)")
    user.execute("select dynamics_sync.watch('public.things', columns => '{a, b}')")

    def state() -> dict[str, tuple[object, ...]]:
        return {str(row[0]): row[1:] for row in user.execute(COUNTING)}

    for _ in range(150):
        before, touched = state(), set[str]()
        with user.transaction() as transaction:
            for _ in range(dice.randint(1, 3)):
                earlier = state()
                statement = random_statement(dice)
                try:
                    with user.transaction():
                        user.execute(statement.encode())
                except psycopg.errors.UniqueViolation:
                    continue
                later = state()
                touched |= {key for key in earlier.keys() | later.keys() if earlier.get(key) != later.get(key)}
            if dice.random() < 0.1:
                after, touched = before, set()
                raise psycopg.Rollback(transaction)
            after = state()
        found = captured(user)
        assert found.keys() == touched
        assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} <= found.keys()
        assert {key for key, kind in found.items() if kind == "delete"} == found.keys() - after.keys()
