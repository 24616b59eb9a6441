"""`dynamics-sync queue` as a person uses it, on entries that a real refusal made."""

import json
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from support.commands import refused, start
from support.engine import Stage, stage

Queue = Callable[..., Coroutine[Any, Any, subprocess.CompletedProcess[str]]]


@pytest.fixture
def queue(database: str, tmp_path: Path) -> Queue:
    async def run(*words: str) -> subprocess.CompletedProcess[str]:
        return await start("queue", *words, cwd=tmp_path, database_url=database)

    return run


async def refuse(on: Stage, count: int) -> list[str]:
    """So many entries; the ids of the queue, oldest first."""
    await on.fault(kind="status", status=400, count=count)
    for _ in range(count):
        await on.issue()
    await on.settled()
    return [str(entry.id) for entry in await on.engine.stores.queue.entries()]


async def test_an_entry_from_the_list_to_its_replay(database: str, queue: Queue) -> None:
    async with stage(database) as on:
        (entry,) = await refuse(on, 1)
        listed = (await queue("list")).stdout
        assert entry in listed
        assert "requires_investigation" in listed
        shown = (await queue("show", entry)).stdout
        assert "Dynamics found an argument invalid." in " ".join(shown.split())
        assert "attempt 1" in shown

        assert f"would replay: 1\n  {entry}" in (await queue("replay", "--id", entry, "--dry-run")).stdout
        refused(await queue("replay", "--id", entry), "Nothing was done.")
        assert [status for status, *_ in await on.queue()] == ["requires_investigation"]
        await on.fault(kind="status", status=400, count=1)
        again = (await queue("replay", "--id", entry, "--yes")).stdout
        assert "replayed: 1 put back, 0 arrived, 1 failed again" in again
        assert f"`dynamics-sync queue show` says why:\n  {entry}" in again
        assert "replayed: 1 put back, 1 arrived" in (await queue("replay", "--id", entry, "--yes")).stdout
        await on.settled()
        assert [status for status, *_ in await on.queue()] == ["replayed"]
        assert (await queue("list")).stdout == "The queue is empty.\n"
        assert entry in (await queue("list", "--status", "replayed")).stdout
        assert "nothing to replay: 0" in (await queue("replay", "--id", entry, "--yes")).stdout


async def test_discarding_asks_for_a_choice_and_notes_the_reason(database: str, queue: Queue) -> None:
    async with stage(database) as on:
        entries = await refuse(on, 3)
        refused(await queue("discard", "--yes"), "one of --id, --status, --incident, --all")
        refused(await queue("discard", "--all", "--id", entries[0]), "one of --id, --status, --incident, --all")
        done = await queue("discard", "--id", entries[0], "--yes", "--reason", "no such person", "--json")
        assert json.loads(done.stdout)["entries"] == [entries[0]]
        assert await on.rows("select action, reason from dynamics_sync.audit") == [("discard", "no such person")]

        assert "These are the oldest 1 of 2." in (await queue("list", "--limit", "1")).stdout
        assert [entry["id"] for entry in json.loads((await queue("list", "--json")).stdout)] == entries[1:]
        done = await queue("discard", "--status", "requires_investigation", "--yes", "--json")
        assert json.loads(done.stdout)["entries"] == entries[1:]
        assert "no entry of status replaying" in (await queue("list", "--status", "replaying")).stdout


async def test_an_entry_that_is_not_there_is_told(database: str, queue: Queue) -> None:
    refused(await queue("show", str(uuid4())), "The queue has no entry", "dynamics-sync queue list")
    refused(await queue("show", "7"), "valid UUID")
