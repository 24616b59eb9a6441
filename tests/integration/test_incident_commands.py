"""An outage from its beginning to the replay of what it left behind, with the commands that a person uses and workers
that run meanwhile."""

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from dynamics_sync.simulator.limits import Limits
from support.commands import START, environment, launched, refused, start, worker_process
from support.database_clock import DatabaseClock
from support.engine import Stage, stage
from support.outbox import GATHER
from support.processes import Process

Run = Callable[..., Coroutine[Any, Any, subprocess.CompletedProcess[str]]]

COOL_DOWN = 60.0
WINDOW = 50

WATCH_THE_WINDOW = """
create table public.window_seen (most bigint not null);
insert into public.window_seen values (0);
create function public.look_at_window() returns trigger language plpgsql security definer as $$ begin
  update public.window_seen set most = greatest(
    most, (select count(*) from public.dynamics_sync_retry_queue where status = 'replaying')
  );
  return null;
end $$;
create trigger look_at_window after update on public.dynamics_sync_retry_queue
  for each statement execute function public.look_at_window();
"""

FROM_OUTBOX_TO_QUEUE = """
with incident as (
  insert into dynamics_sync.incidents (target, failing_since, closed_at, error_code, failure_count)
  values ('dynamics', clock_timestamp(), clock_timestamp(), 'http_503', 3) returning id
), gone as (delete from dynamics_sync.outbox returning *)
insert into public.dynamics_sync_retry_queue
  (source_table, record_key, operation_type, payload_json, failure_reason, error_code, attempt_count, status,
  incident_id)
select source_table, record_key, operation_type, '{"place": null}', 'circuit_open', 'http_503', 3,
  'pending_manual_replay', incident.id
from gone, incident
"""


@pytest.fixture
async def command(database: str, tmp_path: Path) -> Run:
    async def run(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return await start(*words, cwd=tmp_path, database_url=database, **settings)

    return run


async def left_behind(on: Stage, count: int) -> list[str]:
    """So many records that an outage, incident 1, left in the queue."""
    keys = [await on.issue() for _ in range(count)]
    await on.user.execute(GATHER)
    await on.user.execute(FROM_OUTBOX_TO_QUEUE)
    await on.user.execute(WATCH_THE_WINDOW)
    return keys


async def standing(on: Stage) -> dict[str, int]:
    return dict(await on.rows("select status, count(*) from public.dynamics_sync_retry_queue group by status"))


async def most_under_way(on: Stage) -> int:
    return int((await on.rows("select most from public.window_seen"))[0][0])


def replay_process(database: str, cwd: Path, *words: str) -> AbstractContextManager[Process]:
    """`queue replay --incident 1`, under way."""
    command = ("queue", "replay", "--incident", "1", "--yes", *words)
    return launched(*command, cwd=cwd, database_url=database, cool_down_seconds="0.5")


@pytest.mark.pooled_too
async def test_an_outage_from_the_first_failure_to_the_last_arrival(
    database: str, command: Run, tmp_path: Path
) -> None:
    """Ten records fail three times each. The last of these failures opens the circuit, so that most of the entries
    were made before."""
    settings = {"max_retries": "2", "base_delay_ms": "10", "failure_threshold": "30", "cool_down_seconds": "0.5"}
    # One after the other: an entry that is being written while the circuit opens would join at its next change only.
    settings["concurrency"] = "1"
    async with stage(database, working=False) as on, worker_process(on, database, tmp_path, **settings):
        await on.issue()
        await on.settled()
        await on.fault(kind="status", status=503)
        async with on.user.transaction():
            keys = [await on.issue() for _ in range(10)]
        await on.settled()
        await on.lift_faults()

        status = json.loads((await command("status", "--json")).stdout)
        assert (status["incident"], status["circuit"]["state"] == "closed") == (1, False)
        assert "This is incident 1, with 10 entries" in (await command("circuit", "show")).stdout
        assert "goes on" in (await command("circuit", "incidents")).stdout
        assert (await command("queue", "list")).stdout.count("incident 1") == 10
        preview = (await command("queue", "replay", "--incident", "1", "--dry-run")).stdout
        for word in ("10", "pending_manual_replay", "http_503", "a fault of its own", "would replay: 10", *keys):
            assert word in preview
        assert await standing(on) == {"pending_manual_replay": 10}

        done = await command("queue", "replay", "--incident", "1", "--yes", "--json", **settings)
        report = json.loads(done.stdout)
        assert (report["result"], report["arrived"], report["left"]) == ("replayed", 10, 0)
        assert all([await on.record(key) for key in keys])
        (incident,) = json.loads((await command("circuit", "incidents", "--json")).stdout)
        assert (incident["error_code"], incident["closed_at"] is None) == ("http_503", False)
        assert (incident["entries"], incident["open_entries"]) == ({"replayed": 10}, 0)


async def test_hundreds_do_not_knock_dynamics_over(database: str, command: Run, tmp_path: Path) -> None:
    """It takes no more than fifty at once and five hundred a second, from workers who would send four times as many."""
    simulated = {"limits": Limits(requests=500, window_seconds=1.0, concurrent=WINDOW, dop_hint=WINDOW)}
    async with stage(database, working=False, simulated=simulated) as on:
        keys = await left_behind(on, 500)
        async with worker_process(on, database, tmp_path, concurrency="200"):
            await on.fault(kind="delay", seconds=0.4)
            done = await command("queue", "replay", "--incident", "1", "--yes", "--per-second", "200")
        assert "replayed: 500 put back, 500 arrived, 0 failed again" in done.stdout
        assert {noted["status"] for noted in await on.requests()} == {204}
        assert await on.rows("select count(*) from dynamics_sync.incidents") == [(1,)]
        assert await standing(on) == {"replayed": 500}
        assert 1 < await most_under_way(on) <= WINDOW
        assert len(await on.records("hlf_certifications")) == len(keys)


async def test_a_replay_that_is_killed_loses_nothing_and_goes_on_when_asked_again(
    database: str, command: Run, tmp_path: Path
) -> None:
    async with stage(database, working=False) as on:
        await left_behind(on, 200)
        async with worker_process(on, database, tmp_path):
            with replay_process(database, tmp_path, "--per-second", "100") as replay:
                await on.until("select count(*) >= 30 from public.dynamics_sync_retry_queue where status = 'replayed'")
                replay.kill()
                await replay.wait()
            await on.settled()
            stands = await standing(on)
            assert stands["pending_manual_replay"] > 0
            assert sum(stands.values()) == 200
            done = await command("queue", "replay", "--incident", "1", "--yes", "--json", "--per-second", "200")
            assert json.loads(done.stdout)["arrived"] == stands["pending_manual_replay"]
        assert await standing(on) == {"replayed": 200}
        assert len(await on.records("hlf_certifications")) == 200
        assert await most_under_way(on) <= WINDOW


async def test_a_replay_that_is_interrupted_says_where_it_stands(database: str, tmp_path: Path) -> None:
    async with stage(database, working=False) as on:
        await left_behind(on, 200)
        with replay_process(database, tmp_path, "--per-second", "100") as replay:
            await on.until("select count(*) = 50 from public.dynamics_sync_retry_queue where status = 'replaying'")
            replay.terminate()
            _, errors = await replay.communicate()
        assert replay.returncode != 0
        assert "50 entries will be sent from the outbox. 150 entries not put back, still open" in errors.decode()


async def test_a_circuit_that_opens_meanwhile_is_waited_for(database: str, tmp_path: Path) -> None:
    settings = {"base_delay_ms": "10", "cool_down_seconds": "0.5", "failure_threshold": "3"}
    async with stage(database, working=False) as on:
        await left_behind(on, 200)
        async with worker_process(on, database, tmp_path, **settings) as worker:
            with replay_process(database, tmp_path, "--per-second", "100", "--json") as replay:
                await on.until("select count(*) >= 30 from public.dynamics_sync_retry_queue where status = 'replayed'")
                await on.fault(kind="status", status=503)
                await worker.says("circuit.opened", times=2)
                assert replay.returncode is None
                assert (await standing(on))["pending_manual_replay"] > 0
                await on.lift_faults()
                output, _ = await replay.communicate()
        report = json.loads(output)
        assert (report["end"], report["left"], replay.returncode) == ("all_told", 0, 0)
        assert report["arrived"] + len(report["failed_again"]) == 200
        assert await on.rows("select closed_at is not null from dynamics_sync.incidents where id = 2") == [(True,)]
        again = await on.rows("select id::text from public.dynamics_sync_retry_queue where incident_id = 2")
        assert {row[0] for row in again} >= set(report["failed_again"])


async def test_without_a_worker_it_ends_and_says_what_to_do(database: str, command: Run) -> None:
    async with stage(database, working=False) as on:
        await left_behind(on, 60)
        quick = ("--yes", "--patience", "1", "--per-second", "1000")
        done = await command("queue", "replay", "--incident", "1", *quick)
        refused(done, "no worker sends", "`dynamics-sync run`", "10 entries not put back", "the same command goes on")
        assert "replayed: 50 put back, 0 arrived" in done.stdout
        assert await standing(on) == {"replaying": 50, "pending_manual_replay": 10}
        await on.user.execute(
            "update public.dynamics_sync_retry_queue set status = 'replayed' where status = 'replaying'"
        )
        done = await command("queue", "replay", "--incident", "1", *quick)
        assert done.returncode == 0
        assert "10 entries will be sent from the outbox." in done.stdout


async def test_an_outage_that_goes_on_ends_it(database: str, command: Run) -> None:
    async with stage(database, working=False) as on:
        await left_behind(on, 3)
        await on.engine.stores.breaker.force_open()
        patience = ("--patience", "0.5")
        done = await command("queue", "replay", "--incident", "1", "--yes", *patience, cool_down_seconds="0.1")
        refused(done, "no call may pass", "the circuit is", "still open: the same command goes on")


async def test_an_incident_that_is_not_there_is_told(database: str, command: Run) -> None:
    assert "has never opened" in (await command("circuit", "incidents")).stdout
    for words in (("list",), ("replay", "--yes"), ("discard", "--dry-run")):
        refused(await command("queue", *words, "--incident", "7"), "no incident 7", "circuit incidents")
    refused(await command("queue", "list", "--incident", "none"), "integer")
    refused(await command("queue", "replay", "--all", "--incident", "1"), "one of --id, --status, --incident, --all")


async def test_what_an_incident_left_can_be_discarded(database: str, command: Run) -> None:
    async with stage(database, working=False) as on:
        await left_behind(on, 3)
        assert "would discard: 3" in (await command("queue", "discard", "--incident", "1", "--dry-run")).stdout
        done = await command("queue", "discard", "--incident", "1", "--yes", "--reason", "test data", "--json")
        assert len(json.loads(done.stdout)["entries"]) == 3
        assert await standing(on) == {"discarded": 3}
        assert (
            "no entry that is open that belongs to incident 1"
            in (await command("queue", "list", "--incident", "1")).stdout
        )


async def test_on_a_terminal_a_bar_shows_how_far_it_is(database: str, tmp_path: Path) -> None:
    async with stage(database, working=False) as on:
        await left_behind(on, 5)
        ours, theirs = pty.openpty()
        async with worker_process(on, database, tmp_path):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", START, "queue", "replay", "--all", "--yes"),
                cwd=tmp_path,
                env=environment({"database_url": database}) | {"TERM": "xterm-256color", "COLUMNS": "120"},
                stdout=theirs,
            )
            os.close(theirs)
            assert await process.wait() == 0
        shown = os.read(ours, 100_000).decode()
        os.close(ours)
        assert "replaying" in shown
        assert "5/5" in re.sub(r"\x1b\[[0-9;]*m", "", shown)


class TestByHand:
    async def test_opening_is_silence_for_one_cool_down_and_then_a_probe_decides(
        self, database: str, database_clock: DatabaseClock, command: Run
    ) -> None:
        async with stage(database, cool_down_seconds=COOL_DOWN) as on:
            await on.issue()
            await on.settled()
            refused(await command("circuit", "open"), "Nothing was done.")
            done = await command("circuit", "open", "--yes", "--reason", "their upgrade", "--json")
            shown = json.loads(done.stdout)
            assert (shown["state"], shown["last_error_code"], shown["incident"]) == ("open", "operator", 1)
            assert "circuit.opened" in done.stderr
            assert "A person opened the circuit" in (await command("circuit", "show")).stdout
            await on.until("select opened_at <= clock_timestamp() from dynamics_sync.circuit")
            key = await on.issue()
            before = len(await on.requests())
            await looked(on)
            assert len(await on.requests()) == before
            await database_clock.advance(COOL_DOWN)
            await on.settled()
            assert await on.record(key) is not None
            assert await on.rows("select closed_at is not null from dynamics_sync.incidents") == [(True,)]
            assert await on.rows("select action, incident_id, reason from dynamics_sync.audit") == [
                ("circuit_open", 1, "their upgrade")
            ]

    async def test_closing_lets_everything_pass_at_once(
        self, database: str, database_clock: DatabaseClock, command: Run
    ) -> None:
        async with stage(database, cool_down_seconds=COOL_DOWN) as on:
            await on.fault(kind="status", status=503)
            await on.issue()
            await on.settled()
            await on.lift_faults()
            key = await on.issue()
            refused(await command("circuit", "close"), "Nothing was done.")
            done = await command("circuit", "close", "--yes")
            assert "The circuit is closed." in done.stdout
            assert "circuit.closed" in done.stderr
            await on.settled()
            assert await on.record(key) is not None
            assert await on.rows("select id, closed_at is not null from dynamics_sync.incidents") == [(1, True)]
            audit = await on.rows("select actor <> '', action, target, incident_id, reason from dynamics_sync.audit")
            assert audit == [(True, "circuit_close", "dynamics", 1, None)]

    async def test_closing_what_is_closed_changes_nothing(self, database: str, command: Run) -> None:
        async with stage(database, working=False) as on:
            done = await command("circuit", "close", "--yes", "--json")
            assert json.loads(done.stdout)["state"] == "closed"
            assert await on.rows("select * from dynamics_sync.audit") == []


async def looked(on: Stage) -> None:
    """Until the worker has looked for something to do, to the end."""
    for _ in range(2):
        on.engine.worker.wake.set()
        async with asyncio.timeout(15):
            while on.engine.worker.wake.is_set():
                await asyncio.sleep(0.01)
