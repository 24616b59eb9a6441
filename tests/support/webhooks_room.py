"""A stage on which Dataverse tells of what somebody does there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from support.by_hand import Hand, hand
from support.engine import ENTITY_SET, Stage, stage
from support.webhooks import SECRET, Dataverse, Event, receiving

STATUS = {"pending": 100000000, "active": 100000001, "expiring": 100000002, "expired": 100000003, "revoked": 100000004}


@dataclass
class Room:
    """A stage, somebody in Dynamics, and Dataverse that tells of what they do."""

    on: Stage
    hand: Hand
    dataverse: Dataverse

    async def synchronised(self) -> str:
        """A record that both sides agree on, and have for long."""
        key = await self.on.issue()
        await self.on.settled()
        await self.on.user.execute("update dynamics_sync.record_state set applied_at = applied_at - interval '1 day'")
        return key

    async def event(self, key: str, **changed: Any) -> Event:
        """What is told of a change of that record."""
        async with self.on.http.get(f"{self.on.simulator.url}/_simulator/records/{ENTITY_SET}") as response:
            record_id = next(record["id"] for record in await response.json() if record["key"] == key)
        return Event(attributes=changed, record_id=record_id, image={"hlf_externalid": key})

    async def told(self, *events: Event) -> None:
        """They arrive, and are worked through."""
        for event in events:
            assert await self.dataverse.tell(event) == 202
        await self.on.until("select count(*) = 0 from dynamics_sync.inbox where status = 'received'")

    async def row(self, key: str) -> Any:
        return (await self.on.rows("select status, expires_on::text from public.certifications where id = %s", key))[0]

    async def inbox(self) -> list[Any]:
        return await self.on.rows("select status, error_code from dynamics_sync.inbox order by id")

    async def conflicts(self) -> list[Any]:
        return await self.on.rows("select column_name, winner from dynamics_sync.conflicts order by id")


@asynccontextmanager
async def room(database: str, *, target: str = "dynamics", **settings: Any) -> AsyncIterator[Room]:
    async with (
        stage(database, target=target, webhooks=True, webhook_secret=SECRET, **settings) as on,
        receiving(database, target=target) as dataverse,
    ):
        yield Room(on, await hand(on), dataverse)
