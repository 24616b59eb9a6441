"""Bringing histories into the table, beside everything else, and finding copies that differ from it (R22)."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from structlog.testing import capture_logs

from dynamics_sync.certifications.history_job import check_histories, migrate_histories
from dynamics_sync.certifications.history_store import HistoryStore
from dynamics_sync.certifications.history_watch import HistoryWatch
from dynamics_sync.postgres.connections import make_pool, transaction
from dynamics_sync.sync.clock import SystemClock
from support.clock import FakeClock
from support.commands import launched, refused, start
from support.histories import SERVICE, Histories, append, first_form, histories, second_form

OLD = [first_form(n) for n in range(5)]
LATER = {"schema_version": 3, "unknown": True}

ONCE_EACH = """
select count(*) = count(distinct (certification_id, id)) and count(*) = max(position) * count(distinct certification_id)
from public.certification_renewal_events
"""
"""Each entry once, none twice, and all histories are as long as one another."""


@pytest.fixture
def at(database: str) -> Iterator[Histories]:
    with histories(database) as made:
        yield made


@pytest.fixture
async def store(database: str) -> AsyncIterator[HistoryStore]:
    async with make_pool(database, 4) as pool:
        yield HistoryStore(lambda: transaction(pool))


def ignore(looked_at: int) -> None:
    """Nobody watches."""


def number_of_entries(at: Histories) -> int:
    return int(at.value("select count(*) from public.certification_renewal_events"))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.every_postgres
async def test_every_entry_reaches_the_table_once_and_running_it_again_does_nothing(
    at: Histories, store: HistoryStore
) -> None:
    kept = [at.certification(OLD), at.certification([first_form(1), second_form(2)]), at.certification()]
    report = await migrate_histories(store, SystemClock(), 2, ignore)
    assert (report.migrated, report.entries, report.is_complete) == (2, 7, True)
    assert [len(at.table(certification)) for certification in kept] == [5, 2, 0]
    again = await migrate_histories(store, SystemClock(), 2, ignore)
    assert (again.migrated, again.entries, again.is_complete) == (0, 0, True)


async def test_it_sends_nothing_to_dynamics_and_leaves_the_copies_as_they_are(
    at: Histories, store: HistoryStore
) -> None:
    certification = at.certification(OLD)
    await migrate_histories(store, SystemClock(), 500, ignore)
    assert at.copy(certification) == OLD
    assert at.value("select (select count(*) from dynamics_sync.changes) + count(*) from dynamics_sync.outbox") == 0
    assert (await check_histories(store, 500, ignore, repair=False)).differing == 0


async def test_what_cannot_be_upgraded_is_left_as_it_is_and_told(at: Histories, store: HistoryStore) -> None:
    wrong: dict[UUID, object] = {
        at.certification([first_form(1), LATER]): [first_form(1), LATER],
        at.certification(["Kari"]): ["Kari"],
        at.certification({"Kari": 1}): {"Kari": 1},
    }
    at.certification(OLD)
    report = await migrate_histories(store, SystemClock(), 2, ignore)
    assert (report.migrated, report.left, report.is_complete) == (1, 3, False)
    assert report.problems.keys() == wrong.keys()
    assert sorted(report.problems.values()) == [
        "entry 0: the history is not an array",
        "entry 1: it is not an object",
        "entry 2: its schema_version is later than the latest that is known, 2",
    ]
    for certification, history in wrong.items():
        held = at.value("select renewal_history from public.certifications where id = %s", certification)
        assert (held, at.table(certification)) == (history, [])


async def test_two_at_once_and_people_who_append_meanwhile_enter_each_entry_once(
    at: Histories, store: HistoryStore
) -> None:
    at.certifications(60, OLD)
    ids = [row[0] for row in at.owner.execute("select id from public.certifications")]

    def append_to_all(certifications: list[UUID]) -> None:
        with at.session(SERVICE) as connection:
            for certification in certifications:
                append(connection, certification)

    with ThreadPoolExecutor(2) as people:
        loop = asyncio.get_running_loop()
        orders = sorted(ids), sorted(ids, reverse=True)
        appending = [loop.run_in_executor(people, append_to_all, order) for order in orders]
        jobs = [migrate_histories(store, SystemClock(), 7, ignore) for _ in range(2)]
        reports = await asyncio.gather(*jobs)
        await asyncio.gather(*appending)
    assert all(report.is_complete for report in reports)
    assert number_of_entries(at) == 60 * (len(OLD) + 2)
    assert at.value(ONCE_EACH)
    assert (await check_histories(store, 500, ignore, repair=False)).differing == 0


async def test_what_somebody_has_locked_is_left_for_later_and_nobody_is_waited_for(
    at: Histories, store: HistoryStore
) -> None:
    locked = at.certification(OLD)
    at.certifications(3, OLD)
    with psycopg.connect(at.url) as busy:
        busy.execute("select from public.certifications where id = %s for update", [locked])
        report = await migrate_histories(store, FakeClock(), 2, ignore)
        assert (report.migrated, report.busy, report.is_complete) == (3, 1, False)
    assert (await migrate_histories(store, FakeClock(), 2, ignore)).migrated == 1


async def test_killed_in_the_middle_it_is_started_again_and_ends_well(at: Histories, tmp_path: Path) -> None:
    at.certifications(40, OLD)
    (middle,) = at.owner.execute("select id from public.certifications order by id offset 22 limit 1").fetchone() or ()
    words = ["history", "migrate", "--batch", "5"]
    with psycopg.connect(at.url) as obstacle:
        # An entry that is not committed: the fifth transaction waits for what becomes of it.
        obstacle.execute("set session_replication_role = replica")
        obstacle.execute(
            "insert into public.certification_renewal_events (certification_id, position, event, on_day) "
            "values (%s, 1, 'renewed', current_date)",
            [middle],
        )
        with launched(*words, cwd=tmp_path, database_url=at.url) as process:
            await until(lambda: bool(at.value("select count(*) > 0 from pg_locks where not granted")))
            process.kill()
            await process.wait()
        obstacle.rollback()
    assert number_of_entries(at) == 20 * len(OLD)
    done = await start(*words, "--json", cwd=tmp_path, database_url=at.url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"migrated": 20, "entries": 100, "left": 0, "busy": 0, "problems": {}}
    assert number_of_entries(at) == 40 * len(OLD)
    assert at.value(ONCE_EACH)


@pytest.fixture
async def tampered(at: Histories, store: HistoryStore) -> dict[str, UUID]:
    """Certifications whose copies were changed past the triggers after they had been migrated."""
    made = {name: at.certification(OLD) for name in ("whole", "emptied", "edited", "added to", "spoilt")}
    await migrate_histories(store, SystemClock(), 500, ignore)
    at.overwrite(made["emptied"], [])
    at.overwrite(made["edited"], [first_form(n + 1) for n in range(5)])
    at.overwrite(made["added to"], [*OLD, second_form(9)])
    at.overwrite(made["spoilt"], [*OLD, "Kari"])
    return made


async def test_copies_that_differ_are_found(store: HistoryStore, tampered: dict[str, UUID]) -> None:
    report = await check_histories(store, 2, ignore, repair=False)
    assert (report.checked, report.differing, report.repaired) == (5, 4, 0)
    assert set(report.named) == {certification for name, certification in tampered.items() if name != "whole"}


async def test_repaired_copies_say_what_the_table_does_and_no_entry_gets_lost(
    at: Histories, store: HistoryStore, tampered: dict[str, UUID]
) -> None:
    report = await check_histories(store, 2, ignore, repair=True)
    assert (report.differing, report.repaired) == (4, 3)
    assert report.obstacles == {tampered["spoilt"]: "entry 6: it is not an object"}
    assert at.copy(tampered["spoilt"]) == [*OLD, "Kari"]
    for name, length in ("emptied", 5), ("edited", 5), ("added to", 6):
        assert at.upgraded(tampered[name]) == at.table(tampered[name])
        assert len(at.table(tampered[name])) == length
    assert (await check_histories(store, 2, ignore, repair=False)).named == [tampered["spoilt"]]


async def test_a_transaction_that_cannot_see_the_table_writes_no_copy(at: Histories, store: HistoryStore) -> None:
    certification = at.certification(OLD)
    write = "update public.certifications set renewal_history = '[]' where id = %s"
    with at.session(SERVICE) as service, service.transaction():
        service.execute("set transaction isolation level repeatable read")
        service.execute("select from public.organisations")
        await migrate_histories(store, SystemClock(), 500, ignore)
        with pytest.raises(psycopg.errors.ActiveSqlTransaction, match="read committed"), service.transaction():
            service.execute(write, [certification])
        with pytest.raises(psycopg.errors.UniqueViolation), service.transaction():
            append(service, certification)
    assert len(at.table(certification)) == len(OLD)


async def test_the_commands_say_what_is_left_and_what_differs(at: Histories, tmp_path: Path) -> None:
    certification, wrong = at.certification(OLD), at.certification([LATER])
    settings = {"database_url": at.url}
    done = await start("history", "migrate", "--json", cwd=tmp_path, **settings)
    told = json.loads(done.stdout)
    assert (done.returncode, told["migrated"], list(told["problems"])) == (1, 1, [str(wrong)])
    at.overwrite(certification, [])
    done = await start("history", "check", "--json", cwd=tmp_path, **settings)
    told = json.loads(done.stdout)
    assert (done.returncode, told["certifications"], told["not_migrated"]) == (3, [str(certification)], 1)
    done = await start("history", "check", "--repair", cwd=tmp_path, **settings)
    assert (done.returncode, "1 were made what the table says" in done.stdout) == (0, True)


async def test_tables_of_ones_own_have_no_histories(database: str, tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(
        '[[tables]]\nsource = "public.t"\nkey = "id"\nentity_set = "a"\nlogical_name = "b"\nalternate_key = "c"\n'
        '[tables.columns]\nd = "e"\n'
    )
    done = await start("history", "check", cwd=tmp_path, database_url=database, mapping=str(mapping))
    refused(done, "DYNAMICS_SYNC_MAPPING", "only the certifications that ship")


async def test_a_history_that_outgrows_its_column_is_told_once(at: Histories, store: HistoryStore) -> None:
    large = at.certification([first_form(n) for n in range(501)])
    growing = at.certification([first_form(n) for n in range(500)])
    watch = HistoryWatch(store, FakeClock())
    with capture_logs() as logs:
        await watch.look()
        await watch.look()
        at.append(growing)
        await watch.look()
    told = [(log["event"], log["log_level"], log["certification_id"], log["count"]) for log in logs]
    assert told == [
        ("history.oversized", "warning", str(large), 501),
        ("history.oversized", "warning", str(growing), 501),
    ]
    assert await store.count_oversized() == 2
