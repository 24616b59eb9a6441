"""`dynamics-sync inbox` as a person uses it, and a contract that changes under us."""

import json
import subprocess
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from dynamics_sync.core.incoming import RecordChange
from dynamics_sync.dynamics.webhooks import CONTRACTS, remote_execution_context_v1
from dynamics_sync.sync.inbox_ports import Contract
from support.commands import refused, start
from support.webhooks import option
from support.webhooks_room import STATUS, room

Inbox = Callable[..., Coroutine[Any, Any, subprocess.CompletedProcess[str]]]


@pytest.fixture
def inbox(database: str, tmp_path: Path) -> Inbox:
    async def run(*words: str) -> subprocess.CompletedProcess[str]:
        return await start(*words, cwd=tmp_path, database_url=database)

    return run


def tomorrows(document: Mapping[str, Any]) -> bytes:
    """A contract of tomorrow, in which the names begin with small letters."""
    return json.dumps({f"{name[0].lower()}{name[1:]}": value for name, value in document.items()}).encode()


def read_tomorrows(headers: Mapping[str, str], body: bytes) -> RecordChange | None:
    document = {f"{name[0].upper()}{name[1:]}": value for name, value in json.loads(body).items()}
    return remote_execution_context_v1.read(headers, json.dumps(document).encode())


async def test_a_contract_that_nobody_understands_waits_and_is_applied_once_somebody_does(
    database: str, inbox: Inbox
) -> None:
    async with room(database) as here:
        key = await here.synchronised()
        event = await here.event(key, hlf_status=option(STATUS["revoked"]))
        assert await here.dataverse.deliver(tomorrows(event.document())) == 202
        await here.told()
        assert await here.inbox() == [("unrecognised", "inbox.unrecognised")]
        assert "inbox: unrecognised" in (await inbox("status")).stdout

        listed = await inbox("inbox", "list")
        assert "No version of the webhook contract" in " ".join(listed.stdout.split())
        ((number,),) = await here.on.rows("select id from dynamics_sync.inbox")
        assert "unrecognised" in (await inbox("inbox", "show", str(number))).stdout
        assert (await inbox("inbox", "replay", "--all", "--dry-run")).stdout == "would replay: 1\n"
        refused(await inbox("inbox", "replay", "--all"), "Nothing was done.")
        assert (await inbox("inbox", "replay", "--id", str(number), "--yes")).stdout == "replayed: 1\n"
        await here.told()
        assert await here.inbox() == [("unrecognised", "inbox.unrecognised")]

        assert here.on.engine.inbox is not None
        here.on.engine.inbox.contracts = [*CONTRACTS, Contract("tomorrow/2", read_tomorrows)]
        assert json.loads((await inbox("inbox", "replay", "--all", "--yes", "--json")).stdout)["deliveries"] == [number]
        await here.told()
        assert await here.row(key) == ("revoked", "2099-01-31")
        assert await here.on.rows("select status, contract from dynamics_sync.inbox") == [("applied", "tomorrow/2")]
        assert await here.on.rows("select action from dynamics_sync.audit") == [("inbox replay",)] * 2
        assert "Nothing waits in the inbox." in (await inbox("inbox", "list")).stdout


async def test_the_list_shows_what_is_wrong_and_every_conflict_and_no_value(database: str, inbox: Inbox) -> None:
    async with room(database) as here:
        key = await here.synchronised()
        await here.told((await here.event(key)).but(message="Delete", image={}, before={"hlf_externalid": key}))
        await here.told(await here.event(key, hlf_status="Kari Nordmann"))
        listed = (await inbox("inbox", "list", "--json")).stdout
        told = json.loads(listed)
        assert [each["winner"] for each in told["conflicts"]] == ["postgres"]
        ((number, code, place),) = [(each["id"], each["error_code"], each["place"]) for each in told["deliveries"]]
        assert (code, place) == ("inbox.unknown_choice", "status")
        shown = (await inbox("inbox", "show", str(number), "--json")).stdout
        assert "Kari" not in listed + shown
        assert told["counts"] == {"applied": 1, "requires_investigation": 1, "conflicts": 1}
        assert "deleted in Dynamics" in (await inbox("inbox", "list")).stdout
        assert "deleted there: postgres wins" in (await inbox("inbox", "show", str(number - 1))).stdout


async def test_what_is_not_there_and_what_is_not_said_is_told(database: str, inbox: Inbox) -> None:
    refused(await inbox("inbox", "show", "7"), "The inbox has no delivery 7", "dynamics-sync inbox list")
    refused(await inbox("inbox", "replay", "--yes"), "one of --id, --all")
    assert (await inbox("inbox", "replay", "--all")).stdout == "nothing to replay: 0\n"
