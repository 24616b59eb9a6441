"""DYNAMICS_SYNC_ENABLED=off: changes are captured and wait, nothing is sent, and nothing else changes (R26)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from support.commands import WorkerProcess, start, worker_process
from support.engine import Stage, stage
from support.outbox import GATHER

WAITING = "select record_key, lease_owner, lease_until from dynamics_sync.outbox"
SWEEP_OFTEN = "from dynamics_sync.certifications import sweep; sweep.EVERY_SECONDS = 0.05"
LONG_AGO = "2020-01-31"
REVOKED = 100000004
NO_DYNAMICS = {"dynamics_url": "", "tenant_id": "", "client_id": "", "client_secret": ""}


@asynccontextmanager
async def switched_off(on: Stage, database: str, cwd: Path, **settings: str) -> AsyncIterator[WorkerProcess]:
    """`dynamics-sync run` with the switch off. It is asked to stop at the end, and obeys."""
    async with worker_process(on, database, cwd, first=SWEEP_OFTEN, enabled="off", **settings) as worker:
        yield worker
        assert await worker.terminate() == 0


async def test_changes_wait_and_nobody_is_asked_for_a_token(database: str, tmp_path: Path) -> None:
    async with stage(database, working=False) as on:
        await on.credentials(client_secret="another")
        key = await on.issue()
        async with switched_off(on, database, tmp_path) as worker:
            ready = await worker.answers("ready", 200)
            assert "token" not in ready["checks"]
            assert (await worker.health("circuit"))[1]["state"] == "closed"
            assert worker.events("worker.disabled")
        assert await on.requests() == []
        await on.rows(GATHER)
        assert await on.rows(WAITING) == [(key, None, None)]


async def test_no_dynamics_need_be_named(database: str, tmp_path: Path) -> None:
    async with stage(database, working=False) as on, switched_off(on, database, tmp_path, **NO_DYNAMICS) as worker:
        await worker.answers("ready", 200)
        assert "SIMULATOR" not in worker.log.read_text()


async def test_what_happens_meanwhile_arrives_afterwards_each_record_in_its_newest_state(
    database: str, tmp_path: Path
) -> None:
    async with stage(database, working=False) as on:
        async with worker_process(on, database, tmp_path) as worker:
            keys = [await on.issue() for _ in range(3)]
            await on.settled()
            assert await worker.terminate() == 0
        before = len(await on.requests())

        async with switched_off(on, database, tmp_path):
            for status in ("expiring", "active", "pending", "revoked"):
                for key in keys[:2]:
                    await on.user.execute("update public.certifications set status = %s where id = %s", [status, key])
            await on.user.execute("delete from public.certifications where id = %s", [keys[2]])
            keys.append(await on.issue())
        assert len(await on.requests()) == before
        await on.rows(GATHER)
        assert {row[0] for row in await on.rows(WAITING)} == set(keys)

        async with worker_process(on, database, tmp_path):
            await on.settled()
        sent = (await on.requests())[before:]
        assert sorted(key for request in sent for key in request["keys"]) == sorted(keys)
        assert [(await on.record(key) or {})["hlf_status"] for key in keys[:2]] == [REVOKED, REVOKED]
        assert [(await on.record(key) or {})["statecode"] for key in keys] == [0, 0, 1, 0]
        assert await on.queue() == []


async def test_certifications_expire_all_the_same(database: str, tmp_path: Path) -> None:
    async with stage(database, working=False) as on, switched_off(on, database, tmp_path, **NO_DYNAMICS) as worker:
        key = await on.issue(expires_on=LONG_AGO)
        await on.until("select status = 'expired' from public.certifications")
        await worker.says("sweep.moved")
        await on.rows(GATHER)
        assert await on.rows(WAITING) == [(key, None, None)]


async def test_status_says_that_sending_is_switched_off(database: str, tmp_path: Path) -> None:
    done = await start("status", cwd=tmp_path, database_url=database, enabled="off")
    assert "switched off here (DYNAMICS_SYNC_ENABLED)" in " ".join(done.stdout.split())
