"""There and back over sockets: the simulator tells of what it holds, as Dataverse does, and the worker applies it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from support.engine import ENTITY_SET, NOTHING_WAITS, Stage, stage
from support.webhooks import PATH, SECRET, receiving

STATUS = {"active": 100000001, "expiring": 100000002, "revoked": 100000004}
IMAGES = {"post_image": ["hlf_externalid", "modifiedon"], "pre_image": ["hlf_externalid", "hlf_status"]}
KINDS = {
    "HttpHeader": {"x-webhook-secret": SECRET},
    "WebhookKey": {"code": SECRET},
    "HttpQueryString": {"secret": SECRET},
}


@dataclass
class Trip:
    """Both sides, and the way between them."""

    on: Stage
    address: str

    async def register(self, kind: str = "HttpHeader", **declared: Any) -> None:
        values = {"kind": kind, "values": KINDS[kind]}
        document = {"url": self.address, "entity": "hlf_certification", "authentication": values, **IMAGES, **declared}
        async with self.on.http.post(f"{self.on.simulator.url}/_simulator/webhooks", json=document) as response:
            assert response.status == 201, await response.text()

    async def edit(self, key: str, method: str = "PATCH", **attributes: Any) -> None:
        """A person, in Dynamics' own pages."""
        url = f"{self.on.simulator.url}/_simulator/records/{ENTITY_SET}/hlf_externalid='{key}'"
        async with self.on.http.request(method, url, json={"attributes": attributes}) as response:
            assert response.status == 204, await response.text()

    async def settled(self) -> None:
        """Until all that is told is here, and all that is here is there."""
        url = f"{self.on.simulator.url}/_simulator/webhooks/deliveries"
        async with asyncio.timeout(30):
            while True:
                async with self.on.http.get(url) as response:
                    told = await response.json()
                still = await self.on.rows("select count(*) from dynamics_sync.inbox where status = 'received'")
                nothing_waits = await self.on.rows(NOTHING_WAITS)
                all_told = all(one["outcome"] not in ("waiting", "sending") for one in told)
                if all_told and (still, nothing_waits) == ([(0,)], [(True,)]):
                    return
                await asyncio.sleep(0.02)

    async def both(self, key: str) -> tuple[Any, Any]:
        """The status here, and there."""
        ((here,),) = await self.on.rows("select status from public.certifications where id = %s", key)
        record = await self.on.record(key)
        return here, None if record is None else record["hlf_status"]

    async def verdicts(self) -> list[Any]:
        return await self.on.rows("select status, error_code from dynamics_sync.inbox order by id")


@asynccontextmanager
async def trip(database: str) -> AsyncIterator[Trip]:
    async with (
        stage(database, webhooks=True, webhook_secret=SECRET) as on,
        receiving(database) as dataverse,
    ):
        yield Trip(on, f"{dataverse.url}{PATH}")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_change_made_there_arrives_here_and_ours_comes_back_as_no_news(database: str, kind: str) -> None:
    async with trip(database) as way:
        await way.register(kind)
        key = await way.on.issue()
        await way.settled()
        assert await way.verdicts() == [("ignored", "inbox.own_change")]
        sent = len(await way.on.requests())
        await way.edit(key, hlf_status=STATUS["revoked"])
        await way.settled()
        assert await way.both(key) == ("revoked", STATUS["revoked"])
        assert [status for status, _ in await way.verdicts()] == ["ignored", "applied"]
        assert all(request["method"] == "GET" for request in (await way.on.requests())[sent:])


async def test_people_on_both_sides_change_columns_of_the_same_records_and_none_is_lost(database: str) -> None:
    async with trip(database) as way:
        await way.register()
        keys = [await way.on.issue() for _ in range(8)]
        await way.settled()

        async def here(key: str) -> None:
            for day in ("2028-01-01", "2029-01-01"):
                await way.on.user.execute("update public.certifications set expires_on = %s where id = %s", [day, key])

        async def there(key: str) -> None:
            for status in ("expiring", "revoked"):
                await way.edit(key, hlf_status=STATUS[status])

        await asyncio.gather(*(there(key) for key in keys), *(here(key) for key in keys))
        await way.settled()
        for key in keys:
            record = await way.on.record(key)
            assert record is not None
            assert await way.both(key) == ("revoked", STATUS["revoked"])
            assert record["hlf_expireson"] == "2029-01-01"
        query = "select column_name, winner from dynamics_sync.conflicts where winner = 'postgres'"
        assert await way.on.rows(query) == []


async def test_what_is_deleted_there_is_made_again(database: str) -> None:
    async with trip(database) as way:
        await way.register()
        key = await way.on.issue()
        await way.settled()
        await way.edit(key, "DELETE")
        await way.settled()
        assert await way.both(key) == ("active", STATUS["active"])
        assert await way.on.rows("select column_name, winner from dynamics_sync.conflicts") == [(None, "postgres")]


async def test_a_synchronous_step_does_as_well(database: str) -> None:
    async with trip(database) as way:
        await way.register(mode="synchronous")
        key = await way.on.issue()
        await way.settled()
        await way.edit(key, hlf_status=STATUS["revoked"])
        await way.settled()
        assert (await way.both(key))[0] == "revoked"
