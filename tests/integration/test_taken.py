"""Many changes are taken as they were noted, past the outbox. All else is as if each record had a row there."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from random import Random

import psycopg
import pytest

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.core.operation import Applied, SyncOperation
from dynamics_sync.postgres.connections import Connection, Pool, connect, make_pool
from dynamics_sync.postgres.outbox import IS_SENDING, WAITING, PostgresOutbox, claimed
from dynamics_sync.sync.ports import Outbox
from support.outbox import TARGET, claim, mark_dirty, note
from support.search import LONGER

pytestmark = pytest.mark.every_postgres

ARRIVED = Applied(1, None, False, b"sent", True)
ROWS = "select record_key, lease_owner is not null, version from dynamics_sync.outbox order by record_key"
TAKEN = "select record_keys, records from dynamics_sync.changes where is_taken order by id"
NOTED = "select record_keys, records from dynamics_sync.changes where not is_taken order by id"
STATE = "select record_key, payload_hash from dynamics_sync.record_state order by record_key"
UNANSWERED = "select record_key from dynamics_sync.unanswered order by record_key"
END_LEASES = "update dynamics_sync.changes set lease_until = clock_timestamp() - interval '1 s' where is_taken"
# In one order, or users block one another.
CHANGE = """
with mine as (select id from public.things where id >= %s and id < %s order by id for update)
update public.things set value = value + 1 where id in (select id from mine)
"""


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    async with make_pool(database, 12) as pool:
        yield pool


@pytest.fixture
def outbox(pool: Pool) -> Outbox:
    return outbox_of(pool)


def outbox_of(pool: Pool) -> Outbox:
    """A worker's, which takes whatever changed."""
    return PostgresOutbox(pool, TARGET, 60.0, taken_from=1)


async def found(user: Connection, query: str) -> list[object]:
    rows = await (await user.execute(query, {"target": TARGET})).fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


async def settle(outbox: Outbox, *operations: SyncOperation) -> None:
    await outbox.settle([(operation, ARRIVED) for operation in operations])


async def test_they_are_sent_without_ever_having_a_row_there(user: Connection, outbox: Outbox) -> None:
    await note(user, "a", "b", columns=["grade"])
    await note(user, "c", columns=["name"])
    taken = await claim(outbox)
    assert {key: each.changed_columns for key, each in taken.items()} == {
        "a": ("grade",),
        "b": ("grade",),
        "c": ("name",),
    }
    assert len({each.outbox_id for each in taken.values()}) == 3
    assert await found(user, ROWS) == []
    assert await found(user, WAITING) == [3]
    assert await found(user, IS_SENDING) == [True]
    assert await claim(outbox) == {}
    await settle(outbox, taken["a"])
    assert await found(user, WAITING) == [2]
    assert await found(user, TAKEN) == [(["b"], 1), (["c"], 1)]
    await settle(outbox, taken["b"], taken["c"])
    assert await found(user, WAITING) == [0]
    assert await found(user, IS_SENDING) == [False]
    assert await found(user, STATE) == [("a", b"sent"), ("b", b"sent"), ("c", b"sent")]


async def test_no_more_are_taken_than_were_asked_for_and_the_rest_keeps_its_turn(
    user: Connection, outbox: Outbox
) -> None:
    await note(user, "a", "b", "c")
    await note(user, "d")
    assert list(await claim(outbox, 2)) == ["a", "b"]
    assert await found(user, NOTED) == [(["c"], 1), (["d"], 1)]
    assert list(await claim(outbox, 1)) == ["c"]
    assert list(await claim(outbox)) == ["d"]


async def test_of_many_a_thousand_at_most_are_taken_and_kept_together(user: Connection, outbox: Outbox) -> None:
    await note(user, *(f"a{number}" for number in range(700)))
    await note(user, *(f"b{number}" for number in range(700)))
    await note(user, *(f"c{number}" for number in range(1000)))
    first, second, third = [await claim(outbox, limit) for limit in (1500, 500, 1500)]
    assert [len(claimed) for claimed in (first, second, third)] == [1000, 500, 900]
    assert [*first, *second, *third] == [
        *(f"a{number}" for number in range(700)),
        *(f"b{number}" for number in range(700)),
        *(f"c{number}" for number in range(1000)),
    ]
    assert [records for _, records in await found(user, TAKEN)] == [1000, 500, 900]  # type: ignore[misc]
    assert await found(user, NOTED) == []


async def test_what_changes_while_it_is_under_way_is_sent_again(user: Connection, outbox: Outbox) -> None:
    await note(user, "a", "b")
    taken = await claim(outbox)
    await note(user, "a", columns=["grade"])
    assert await claim(outbox) == {}, "never two requests for one record"
    assert [row[:2] for row in await found(user, ROWS)] == [("a", True), ("b", True)]  # type: ignore[index]
    await settle(outbox, *taken.values())
    assert await found(user, STATE) == [("a", None), ("b", b"sent")]
    assert list(await claim(outbox)) == ["a"]


async def test_whoever_wants_one_sent_again_finds_it(user: Connection, outbox: Outbox) -> None:
    await note(user, "a", "b")
    taken = await claim(outbox)
    await mark_dirty(user, "b")
    assert await claim(outbox) == {}
    await settle(outbox, *taken.values())
    assert await found(user, STATE) == [("a", b"sent"), ("b", None)]
    assert list(await claim(outbox)) == ["b"]


async def test_what_was_not_sent_waits_in_the_outbox(user: Connection, outbox: Outbox) -> None:
    await note(user, "a", "b")
    taken = await claim(outbox)
    await outbox.release(taken["a"], 1, unanswered=True)
    assert [row[:2] for row in await found(user, ROWS)] == [("a", False), ("b", True)]  # type: ignore[index]
    assert await found(user, UNANSWERED) == ["a"]
    again = await claim(outbox)
    assert [(key, each.attempts) for key, each in again.items()] == [("a", 1)]
    await settle(outbox, again["a"], taken["b"])
    assert await found(user, STATE) == [("a", None), ("b", b"sent")]
    assert await found(user, WAITING) == [0]


async def test_one_that_was_answered_late_is_noted(user: Connection, outbox: Outbox) -> None:
    await note(user, "a", "b")
    taken = await claim(outbox)
    late = Applied(2, None, True, b"sent", True)
    await outbox.settle([(taken["a"], late), (taken["b"], ARRIVED)])
    assert await found(user, UNANSWERED) == ["a"]
    assert await found(user, STATE) == [("a", None), ("b", b"sent")]
    assert await found(user, WAITING) == [0]


async def test_a_lease_that_ends_passes_on(user: Connection, outbox: Outbox) -> None:
    await note(user, "a", "b")
    taken = await claim(outbox)
    await user.execute(END_LEASES)
    again = await claim(outbox)
    assert sorted(again) == ["a", "b"]
    assert await found(user, UNANSWERED) == ["a", "b"], "a request may have been under way"
    assert await outbox.renew([*taken.values()]) == set()
    await settle(outbox, *taken.values())
    assert await found(user, STATE) == [], "it may be older than what the other one sends"
    assert await found(user, WAITING) == [2]


async def test_a_lease_begins_anew(user: Connection, outbox: Outbox) -> None:
    await note(user, "a", "b")
    taken = await claim(outbox)
    await user.execute("update dynamics_sync.changes set lease_until = clock_timestamp() + interval '50 ms'")
    assert await outbox.renew([taken["b"]]) == {(taken["b"].outbox_id, taken["b"].claim_id)}
    await asyncio.sleep(0.1)
    assert sorted(await claim(outbox)) == ["a"]


@pytest.mark.parametrize(
    "before",
    [
        "update dynamics_sync.changes set is_doubt = true",
        "update dynamics_sync.changes set noted_at = clock_timestamp() - interval '11 s'",
        "insert into dynamics_sync.changes (target, source_table, operation_type, records, record_keys) "
        "values ('dynamics', 'public.things', 'delete', 1, '{b}')",
        "insert into dynamics_sync.outbox (target, source_table, record_key, operation_type, attempts) "
        "values ('dynamics', 'public.things', 'b', 'upsert', 1)",
    ],
    ids=["a resync", "an overload", "one changed twice", "one waits already"],
)
async def test_they_go_through_the_outbox_after(user: Connection, outbox: Outbox, before: str) -> None:
    await note(user, "a", "b")
    await user.execute(before.encode())
    assert sorted(await claim(outbox)) == ["a", "b"]
    assert await found(user, TAKEN) == []
    assert [row[:2] for row in await found(user, ROWS)] == [("a", True), ("b", True)]  # type: ignore[index]


async def test_those_that_were_never_tried_come_first(user: Connection, outbox: Outbox) -> None:
    await mark_dirty(user, "a")
    await note(user, "b", "c")
    assert sorted(await claim(outbox)) == ["a"]
    assert sorted(await claim(outbox)) == ["b", "c"]
    assert await found(user, TAKEN) == [(["b", "c"], 2)]


async def test_while_somebody_puts_a_record_there_none_is_taken(
    database: str, user: Connection, outbox: Outbox
) -> None:
    async with await connect(database) as other, other.transaction():
        await mark_dirty(other, "b")
        await note(user, "a", "b")
        assert await claim(outbox) == {}, "b would be in two places"
        assert await found(user, NOTED) == [(["a", "b"], 2)]
    assert sorted(await claim(outbox)) == ["b"]
    assert sorted(await claim(outbox)) == ["a"]


async def test_who_unfolds_one_delays_only_what_was_taken_together_with_it(
    database: str, user: Connection, outbox: Outbox
) -> None:
    """Two that waited for one another's part of a claim would wait in a circle."""
    await note(user, "a", columns=["grade"])
    await note(user, "b", columns=["name"])
    taken = await claim(outbox)
    async with await connect(database) as other, other.transaction(), asyncio.timeout(10):
        await mark_dirty(other, "a")
        await settle(outbox, taken["b"])
        assert await found(user, STATE) == [("b", b"sent")]
    await settle(outbox, taken["a"])
    assert list(await claim(outbox)) == ["a"]


async def test_two_settle_what_was_taken_together(pool: Pool, user: Connection, outbox: Outbox) -> None:
    keys = [f"{number:03}" for number in range(900)]
    await note(user, *keys)
    taken = await claim(outbox, 1000)
    parts = [[taken[key] for key in keys[part::3]] for part in range(3)]
    await asyncio.gather(*(settle(outbox_of(pool), *part) for part in parts))
    assert await found(user, WAITING) == [0]
    assert len(await found(user, STATE)) == 900


async def test_it_is_given_back_by_the_function_that_the_queue_uses(user: Connection, outbox: Outbox) -> None:
    await note(user, "a", "b")
    taken = await claim(outbox)
    give_back = "select id, outcome from dynamics_sync.give_back(%(ids)s, %(versions)s, %(claims)s)"
    given = await (await user.execute(give_back, claimed([taken["a"]]))).fetchall()
    assert given == [(taken["a"].outbox_id, "gone")]
    assert await found(user, TAKEN) == [(["b"], 1)]


class Story:
    """Workers and users at once. What is in Dynamics is what was read last."""

    def __init__(self, pool: Pool, random: Random) -> None:
        self._pool = pool
        self._random = random
        self.dynamics: dict[str, int] = {}
        self.under_way: set[str] = set()
        self.busy_users = 0
        self.sent = 0

    async def user(self, turns: int) -> None:
        """Changes rows, several in a statement or one alone; now and then wants one sent again."""
        self.busy_users += 1
        for _ in range(turns):
            async with self._pool.connection() as connection, connection.transaction():
                if self._random.random() < 0.15:
                    await mark_dirty(connection, str(self._random.randrange(60)))
                else:
                    first, count = self._random.randrange(60), self._random.choice([1, 1, 5, 30])
                    await connection.execute(CHANGE, [first, first + count])
                await asyncio.sleep(self._random.random() * 0.01)
        self.busy_users -= 1

    async def worker(self) -> None:
        outbox = outbox_of(self._pool)
        while self.busy_users or await self._waits():
            with suppress(DatabaseError):
                operations = (await outbox.claim(self._random.choice([1, 7, 40]))).operations
                await asyncio.gather(*(self._send(outbox, part) for part in self._parts(operations)))
            await asyncio.sleep(self._random.random() * 0.005)

    async def _send(self, outbox: Outbox, operations: Sequence[SyncOperation]) -> None:
        keys = [operation.record_key for operation in operations]
        assert self.under_way.isdisjoint(keys), "two requests for one record"
        self.under_way.update(keys)
        values = await self._values(keys)
        await asyncio.sleep(self._random.random() * 0.01)
        self.dynamics |= values
        self.sent += len(keys)
        self.under_way.difference_update(keys)
        if self._random.random() < 0.2:
            await asyncio.gather(*(outbox.release(operation, operation.attempts + 1) for operation in operations))
        else:
            await settle(outbox, *operations)

    def _parts(self, operations: Sequence[SyncOperation]) -> list[Sequence[SyncOperation]]:
        size = self._random.randrange(1, 20)
        return [operations[first : first + size] for first in range(0, len(operations), size)]

    async def _values(self, keys: Sequence[str]) -> dict[str, int]:
        async with self._pool.connection() as connection:
            query = "select id::text, value from public.things where id::text = any(%s)"
            return dict(await (await connection.execute(query, [list(keys)])).fetchall())

    async def _waits(self) -> bool:
        async with self._pool.connection() as connection:
            return await found(connection, WAITING) != [0]


@pytest.mark.parametrize("seed", range(3 * LONGER))
async def test_nothing_is_lost_and_nothing_under_way_twice(
    database: str, pool: Pool, user: Connection, seed: int
) -> None:
    await user.execute("create table public.things (id int primary key, value int not null default 0)")
    await user.execute("insert into public.things select generate_series(0, 89)")
    await user.execute("select dynamics_sync.watch('public.things')")
    story = Story(pool, Random(seed))
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(story.user(60))
        await asyncio.sleep(0)
        for _ in range(4):
            tasks.create_task(story.worker())
    wanted = await (await user.execute("select id::text, value from public.things where value > 0")).fetchall()
    assert {key: value for key, value in story.dynamics.items() if value > 0} == dict(wanted)
    assert story.sent > len(wanted) > 0


def test_who_has_no_rights_cannot_take(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("set role authenticated")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select dynamics_sync.take('dynamics', 1, 1, 'x', 60)")
