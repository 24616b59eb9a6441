"""People and programs beside dynamics-sync: who changes a record in Dynamics with a request of their own, and who
changes rows in a way that no trigger sees."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from support.engine import ENTITY_SET, Stage

PAST_THE_TRIGGERS = "set session_replication_role = replica"
AS_EVERYBODY = "set session_replication_role = origin"


class Hand:
    """Somebody with an access token."""

    def __init__(self, on: Stage, headers: dict[str, str]) -> None:
        self._on = on
        self._headers = headers

    async def edit(self, key: str, entity_set: str = ENTITY_SET, by: str = "hlf_externalid", **attributes: Any) -> None:
        await self._request("PATCH", f"{entity_set}({by}='{key}')", attributes)

    async def upsert(self, keys: Sequence[str], entity_set: str = ENTITY_SET, **attributes: Any) -> None:
        """Many at once, alike."""
        targets = [
            {
                "@odata.type": f"Microsoft.Dynamics.CRM.{entity_set[:-1]}",
                "@odata.id": f"{entity_set}(hlf_externalid='{key}')",
                **attributes,
            }
            for key in keys
        ]
        await self._request("POST", f"{entity_set}/Microsoft.Dynamics.CRM.UpsertMultiple", {"Targets": targets})

    async def create(self, entity_set: str = ENTITY_SET, **attributes: Any) -> None:
        await self._request("POST", entity_set, attributes)

    async def delete(self, key: str, entity_set: str = ENTITY_SET, by: str = "hlf_externalid") -> None:
        await self._request("DELETE", f"{entity_set}({by}='{key}')", None)

    async def _request(self, method: str, address: str, body: Any) -> None:
        url = f"{self._on.simulator.url}/api/data/v9.2/{address}"
        async with self._on.http.request(method, url, json=body, headers=self._headers) as response:
            assert response.status == 204, await response.text()


async def hand(on: Stage) -> Hand:
    """Sign in."""
    form = {"grant_type": "client_credentials", "client_id": "demo", "client_secret": "demo"}
    form["scope"] = f"{on.simulator.url}/.default"
    async with on.http.post(f"{on.simulator.url}/demo/oauth2/v2.0/token", data=form) as response:
        token = (await response.json())["access_token"]
    return Hand(on, {"Authorization": f"Bearer {token}"})


async def back_up(on: Stage) -> None:
    async with on.http.post(f"{on.simulator.url}/_simulator/backup") as response:
        assert response.status == 204


async def restore(on: Stage) -> None:
    """Dynamics, from its last backup."""
    async with on.http.post(f"{on.simulator.url}/_simulator/restore") as response:
        assert response.status == 204


@asynccontextmanager
async def past_the_triggers(on: Stage) -> AsyncIterator[None]:
    """What the user does meanwhile is not captured, as in a restoration."""
    await on.user.execute(PAST_THE_TRIGGERS)
    try:
        yield
    finally:
        await on.user.execute(AS_EVERYBODY)
