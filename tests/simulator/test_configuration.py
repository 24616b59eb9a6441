"""Declaring tables, starting, stopping, serving until cancelled."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dynamics_sync.simulator import (
    AlternateKey,
    Column,
    ColumnKind,
    Simulator,
    SimulatorConfig,
    Table,
    load_tables,
    run_simulator,
)

from .wire import ACCOUNTS, TABLES

DECLARED = """
[[tables]]
logical_name = "account"
entity_set = "accounts"
duplicates_by = ["name"]

[tables.columns]
name = { required = true, max_length = 160 }
industrycode = { kind = "choice", options = [1, 2] }
primarycontactid = { kind = "lookup", navigation_property = "Contact", lookup_target = "contacts" }

[tables.alternate_keys]
by_name = ["name"]

[[tables]]
logical_name = "contact"
entity_set = "contacts"
primary_id = "id"
bulk = false
columns = {}
"""


def test_tables_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tables.toml"
    path.write_text(DECLARED)
    assert load_tables(path) == (
        Table(
            "account",
            "accounts",
            "accountid",
            (
                Column("name", required=True, max_length=160),
                Column("industrycode", ColumnKind.CHOICE, options=(1, 2)),
                Column("primarycontactid", ColumnKind.LOOKUP, navigation_property="Contact", lookup_target="contacts"),
            ),
            (AlternateKey("by_name", ("name",)),),
            duplicates_by=("name",),
        ),
        Table("contact", "contacts", "id", (), bulk=False),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tables", "tables.toml"),
        ("x = 1", "'tables' is missing"),
        ("tables = 1", "tables.toml"),
        ("[[tables]]\nlogical_name = 'a'\nentity_set = 'as'", "'columns' is missing"),
        (DECLARED.replace('"choice"', '"colour"'), "colour"),
        (DECLARED.replace("max_length", "max_lenght"), "max_lenght"),
        (DECLARED.replace('by_name = ["name"]', 'by_name = ["nothing"]'), "nothing"),
        (DECLARED.replace("bulk", "bluk"), "bluk"),
    ],
)
def test_a_file_that_declares_no_tables_says_why(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "tables.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        load_tables(path)


@pytest.mark.parametrize(
    ("columns", "keys"),
    [
        ((Column("a"), Column("a")), ()),
        ((Column("tid"),), ()),
        ((Column("a"),), (AlternateKey("k", ("b",)),)),
        ((Column("a"),), (AlternateKey("k", ()),)),
    ],
)
def test_a_table_that_cannot_be(columns: tuple[Column, ...], keys: tuple[AlternateKey, ...]) -> None:
    with pytest.raises(ValueError, match="table 't'"):
        Table("t", "ts", "tid", columns, keys)


@pytest.mark.parametrize(
    "settings", [{"tables": ()}, {"tables": (ACCOUNTS, ACCOUNTS)}, {"tables": TABLES, "tls": True}]
)
def test_a_configuration_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"table|tls"):
        SimulatorConfig(**settings)


async def test_a_port_that_is_taken() -> None:
    async with Simulator(SimulatorConfig(TABLES)) as simulator:
        port = int(simulator.url.rpartition(":")[2])
        with pytest.raises(OSError, match="address already in use"):
            await Simulator(SimulatorConfig(TABLES, port=port)).start()


async def test_what_is_stored_outlives_a_stop() -> None:
    simulator = Simulator(SimulatorConfig(TABLES))

    async def records(session: aiohttp.ClientSession) -> Any:
        async with session.get(f"{simulator.url}/_simulator/records/contacts") as answer:
            return await answer.json()

    async with aiohttp.ClientSession() as session:
        async with simulator:
            form = {"grant_type": "client_credentials", "scope": "/.default"}
            form |= {"client_id": "demo", "client_secret": "demo"}
            async with session.post(f"{simulator.url}/t/oauth2/v2.0/token", data=form) as answer:
                headers = {"Authorization": f"Bearer {(await answer.json())['access_token']}"}
            address = f"{simulator.url}/api/data/v9.2/contacts"
            async with session.post(address, json={"email": "a@example.com"}, headers=headers) as answer:
                assert answer.status == 204
        with pytest.raises(aiohttp.ClientError):
            await records(session)
        async with simulator:
            assert [record["key"] for record in await records(session)] == ["a@example.com"]


async def test_it_serves_until_cancelled() -> None:
    urls: asyncio.Queue[str] = asyncio.Queue()
    running = asyncio.create_task(run_simulator(SimulatorConfig(TABLES), lambda one: urls.put_nowait(one.url)))
    url = await urls.get()
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/_simulator/requests") as answer:
            assert await answer.json() == []
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"{url}/_simulator/requests")
