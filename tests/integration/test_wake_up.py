"""NOTIFY only wakes: what it misses, polling finds; and a lost listener comes back."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from dynamics_sync.postgres import listener
from support.engine import Stage, stage

LISTENER = """
select pid from pg_stat_activity
where datname = current_database() and query ~ 'insert into dynamics_sync.attention' and pid <> pg_backend_pid()
"""


async def listener_pid(on: Stage) -> int:
    """The listening connection's, once it listens."""
    await on.until(f"select exists ({LISTENER})")
    return int((await on.rows(LISTENER))[0][0])


async def test_without_a_listener_changes_are_found_by_polling(database: str) -> None:
    async with stage(database, working=False) as on:
        job = asyncio.create_task(on.engine.worker.run())
        for _ in range(3):
            key = await on.issue()
            await on.settled()
            assert await on.record(key) is not None
        on.engine.worker.stop()
        await job


@pytest.mark.direct
async def test_a_change_that_notifies_nobody_is_found_by_polling(database: str) -> None:
    async with stage(database) as on:
        key = await on.issue()
        await on.settled()
        await listener_pid(on)
        await on.user.execute("select dynamics_sync.send_again('dynamics', 'public.certifications', %s)", [key])
        await on.settled()
        assert len(await on.requests()) == 2


@pytest.mark.direct
async def test_a_notification_wakes_a_worker_that_hardly_ever_polls(database: str) -> None:
    async with stage(database, poll_seconds=600) as on:
        await listener_pid(on)
        for _ in range(3):
            await on.issue()
            await on.settled()


@pytest.mark.direct
async def test_a_lost_listener_comes_back_and_what_it_missed_is_found(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing polls here: without the listener nothing would be found."""
    monkeypatch.setattr(listener, "RECONNECT_SECONDS", 0.3)
    async with stage(database, poll_seconds=600) as on:
        key = await on.issue()
        await on.settled()
        lost = await listener_pid(on)
        await on.user.execute("select pg_terminate_backend(%s)", [lost])
        await on.user.execute("select dynamics_sync.send_again('dynamics', 'public.certifications', %s)", [key])
        await on.settled()
        assert len(await on.requests()) == 2
        assert await listener_pid(on) != lost
        woken = await on.issue()
        await on.settled()
        assert await on.record(woken) is not None


@dataclass
class Ear:
    """Somebody who hears who is woken."""

    connection: psycopg.Connection[tuple[object, ...]]

    def heard(self) -> list[str]:
        """The targets that were notified since this was last asked."""
        return [each.payload for each in self.connection.notifies(timeout=0.05)]


@pytest.fixture
def ear(database: str) -> Iterator[Ear]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("listen dynamics_sync")
        yield Ear(connection)


GATHER = "select dynamics_sync.gather('dynamics', 100)"
CLAIM = "select count(*) from dynamics_sync.claim('dynamics', %s, 'x', 60, 180)"
LISTEN = "insert into dynamics_sync.attention values ('dynamics', default, clock_timestamp() + interval '1 hour')"


@pytest.mark.every_postgres
def test_nobody_is_woken_who_is_awake_or_does_not_listen(database: str, ear: Ear) -> None:
    with psycopg.connect(database, autocommit=True) as user:
        user.execute("create table public.things (id int primary key, name text, grade int)")
        user.execute("select dynamics_sync.watch('public.things', columns => '{name}')")
        user.execute("insert into public.things select n, 'x', 0 from generate_series(1, 9) n")
        assert ear.heard() == []

        user.execute(LISTEN)
        user.execute("update public.things set name = 'y'")
        assert ear.heard() == ["dynamics"]
        user.execute("update public.things set grade = 1")
        assert ear.heard() == []

        assert user.execute(GATHER).fetchone() == (9,)
        assert user.execute(CLAIM, [9]).fetchone() == (9,)
        user.execute("update public.things set name = 'z'")
        user.execute("delete from dynamics_sync.changes; delete from dynamics_sync.outbox")
        assert ear.heard() == []
        assert user.execute(CLAIM, [9]).fetchone() == (0,)
        user.execute("truncate public.things")
        assert ear.heard() == ["dynamics"]


@pytest.mark.every_postgres
def test_nobody_is_woken_while_the_circuit_is_open(database: str, ear: Ear) -> None:
    with psycopg.connect(database, autocommit=True) as user:
        user.execute(LISTEN)
        user.execute("insert into dynamics_sync.circuit (target, state) values ('dynamics', 'open')")
        user.execute("select dynamics_sync.wake('dynamics')")
        assert ear.heard() == []
        user.execute("update dynamics_sync.circuit set state = 'closed'")
        user.execute("select dynamics_sync.wake('dynamics')")
        assert ear.heard() == ["dynamics"]


async def test_claims_do_not_wait_for_one_another_to_tell_that_they_are_awake(database: str) -> None:
    with (
        psycopg.connect(database, autocommit=True) as one,
        psycopg.connect(database, autocommit=True) as other,
    ):
        one.execute(LISTEN)
        for key in ("a", "b"):
            one.execute("select dynamics_sync.mark_dirty('dynamics', 'public.t', %s)", [key])
        other.execute("set lock_timeout = '2s'")
        with one.transaction():
            assert one.execute(CLAIM, [1]).fetchone() == (1,)
            assert other.execute(CLAIM, [1]).fetchone() == (1,)


@pytest.mark.direct
async def test_a_change_in_a_transaction_that_began_while_the_worker_was_awake_is_found(database: str) -> None:
    """It notified nobody, and ends when the worker sleeps."""
    async with stage(database, poll_seconds=1) as on:
        await listener_pid(on)
        first = await on.issue()
        async with on.user.transaction():
            await on.user.execute("update dynamics_sync.attention set awake_until = clock_timestamp() + interval '1 s'")
        async with on.user.transaction():
            second = await on.issue()
            await asyncio.sleep(0.1)
        await on.settled()
        assert None not in (await on.record(first), await on.record(second))
