"""`dynamics-sync reconcile` as a person runs it, and what may happen to it meanwhile."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

from support.by_hand import hand
from support.commands import launched, refused, start
from support.database_clock import DatabaseClock
from support.engine import ENTITY_SET, LAST_DAY, Stage, stage
from support.processes import Process

REVOKED = 100000004
LONGER_THAN_A_TURN = 3600.0
SMALL_PAGES = "from dynamics_sync.sync import reconcile_table as table; table.PAGE_SIZE = table.ROWS_AT_ONCE = 5"
TELL_MEMORY = """
import atexit, sys, tracemalloc
tracemalloc.start()
atexit.register(lambda: print("peak", tracemalloc.get_traced_memory()[1], file=sys.stderr))
"""
MEGABYTE = 1024 * 1024


def settings(on: Stage) -> dict[str, str]:
    return {
        "database_url": on.engine.database_url,
        "dynamics_url": on.simulator.url,
        "authority_url": on.simulator.url,
        "tenant_id": "demo",
        "client_id": "demo",
        "client_secret": "demo",
        "base_delay_ms": "10",
        "cool_down_seconds": "0.4",
    }


def running(on: Stage, cwd: Path, first: str = SMALL_PAGES, *words: str) -> AbstractContextManager[Process]:
    """The command under way, after some statements."""
    return launched("reconcile", "--json", *words, cwd=cwd, first=first, **settings(on))


async def keys_by_the_thousand(on: Stage, count: int) -> list[str]:
    """Rows and records that agree, without the worker."""
    keys = [str(uuid4()) for _ in range(count)]
    await on.user.execute("set session_replication_role = replica")
    await on.user.execute(
        "insert into public.certifications (id, peer_mentor_id, chapter_id, status, expires_on) "
        "select id::uuid, %s, %s, 'active', %s from unnest(%s::text[]) as id",
        [on.mentor, on.chapter, LAST_DAY, keys],
    )
    await on.user.execute("set session_replication_role = origin")
    by = await hand(on)
    for begin in range(0, count, 1000):
        await by.upsert(keys[begin : begin + 1000], hlf_status=100000001, hlf_expireson=LAST_DAY)
    return keys


async def until_reads(on: Stage, count: int) -> None:
    await on.until_requests(len([noted for noted in await on.requests() if noted["method"] != "GET"]) + count)


async def reads(on: Stage) -> int:
    return sum(noted["method"] == "GET" for noted in await on.requests())


async def test_what_differs_is_shown_and_the_status_is_3(database: str, tmp_path: Path) -> None:
    async with stage(database) as on:
        same, edited, lost = [await on.issue() for _ in range(3)]
        await on.settled()
        done = await start("reconcile", cwd=tmp_path, **settings(on))
        assert done.returncode == 0, done.stderr
        by = await hand(on)
        await by.edit(edited, hlf_status=REVOKED)
        await by.delete(lost)
        done = await start("reconcile", cwd=tmp_path, **settings(on))
        assert done.returncode == 3
        lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
        assert lines["different"] == ["public.certifications", edited, "hlf_status"]
        assert lines["missing"] == ["public.certifications", lost]
        assert same not in done.stdout
        assert str(REVOKED) not in done.stdout + done.stderr

        status = await start("status", "--json", cwd=tmp_path, **settings(on))
        assert json.loads(status.stdout)["differences"] == 2

        repairing = await start("reconcile", "--repair", "--json", cwd=tmp_path, **settings(on))
        assert repairing.returncode == 0, repairing.stderr
        (table,) = json.loads(repairing.stdout)["tables"]
        assert (table["missing"], table["different"], table["repaired"]) == (1, 1, 2)
        await on.settled()
        assert await on.record(lost) is not None
        done = await start("reconcile", cwd=tmp_path, **settings(on))
        assert done.returncode == 0, done.stdout


async def test_a_table_that_is_not_mapped_is_told(database: str, tmp_path: Path) -> None:
    async with stage(database) as on:
        done = await start("reconcile", "--table", "public.absent", cwd=tmp_path, **settings(on))
        refused(done, "public.absent", "public.certifications")


async def test_without_a_dynamics_there_is_nothing_to_compare_with(database: str, tmp_path: Path) -> None:
    refused(await start("reconcile", cwd=tmp_path, database_url=database), "DYNAMICS_SYNC_DYNAMICS_URL")


async def test_a_killed_run_goes_on_where_it_was(database: str, database_clock: DatabaseClock, tmp_path: Path) -> None:
    async with stage(database, working=False) as on:
        keys = await keys_by_the_thousand(on, 50)
        await (await hand(on)).delete(keys[7])
        await on.fault(kind="delay", seconds=0.1, entity_set=ENTITY_SET, method="GET")
        with running(on, tmp_path) as victim:
            await until_reads(on, 4)
            victim.kill()
            await victim.wait()
        await on.lift_faults()
        before = await reads(on)
        assert await on.rows("select phase from dynamics_sync.reconciliation_progress") == [("dynamics",)]
        await database_clock.advance(LONGER_THAN_A_TURN)
        with running(on, tmp_path) as process:
            out, errors = await process.communicate()
        assert process.returncode == 3, errors
        (table,) = json.loads(out)["tables"]
        assert (table["compared"], table["missing"], table["different"], table["extra"]) == (50, 1, 0, 0)
        asked_again, looked_twice = 1, 1
        assert await reads(on) == 10 + asked_again + looked_twice
        assert before >= 4


async def test_restart_begins_anew(database: str, tmp_path: Path) -> None:
    async with stage(database, working=False) as on:
        await keys_by_the_thousand(on, 50)
        for words, pages in (((), 10), ((), 2), (("--restart",), 10)):
            before = await reads(on)
            with running(on, tmp_path, SMALL_PAGES, *words) as process:
                _, errors = await process.communicate()
            assert process.returncode == 0, errors
            assert await reads(on) == before + pages


async def test_only_one_at_a_time(database: str, tmp_path: Path) -> None:
    async with stage(database, working=False) as on:
        await keys_by_the_thousand(on, 50)
        await on.fault(kind="delay", seconds=4, entity_set=ENTITY_SET, method="GET")
        with running(on, tmp_path):
            await until_reads(on, 1)
            refused(await start("reconcile", cwd=tmp_path, **settings(on)), "Another reconciliation is under way")


async def test_a_refusal_says_which_right_is_missing(database: str, tmp_path: Path) -> None:
    async with stage(database) as on:
        await on.issue()
        await on.settled()
        await on.fault(kind="status", status=403, entity_set=ENTITY_SET, method="GET")
        done = await start("reconcile", cwd=tmp_path, **settings(on))
        refused(done, "public.certifications", ENTITY_SET, "security role must let it read the table")
        assert done.returncode == 1
        assert len(await on.requests()) == 2


async def test_memory_does_not_grow_with_the_number_of_records(
    database: str, database_clock: DatabaseClock, tmp_path: Path
) -> None:
    peaks = []
    async with stage(database, working=False) as on:
        for more in (2_000, 10_000):
            await keys_by_the_thousand(on, more)
            with running(on, tmp_path, TELL_MEMORY, "--restart") as process:
                out, errors = await process.communicate()
            assert process.returncode == 0, errors
            peaks.append(int(errors.split()[-1]))
        assert json.loads(out)["tables"][0]["compared"] == 12_000
    assert peaks[1] - peaks[0] < 2 * MEGABYTE
