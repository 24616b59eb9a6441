"""Microsoft's Python SDK without any database: `python -m benchmarks.peers.sdk URL COUNT SIZE`.

Upserts COUNT records, SIZE in a call: 1 is a PATCH each, more is `UpsertMultiple`. Prints how many a second. The client
is the asynchronous one, used as its documentation shows: in one `async with`, so that connections are kept. As many
calls are under way as all others have requests, or, where a call is a thousand records, a few, as more are no faster.
"""

import asyncio
import json
import sys
import time
from uuid import uuid4

from azure.core.credentials import AccessToken
from azure.core.credentials_async import AsyncTokenCredential
from PowerPlatform.Dataverse.aio.async_client import AsyncDataverseClient
from PowerPlatform.Dataverse.models.upsert import UpsertItem

from benchmarks.payload import IN_FLIGHT, KEY, LOGICAL_NAME, body

BULK_CALLS = 4


class Token(AsyncTokenCredential):
    """A credential that costs nothing."""

    async def get_token(self, *scopes: str, **options: object) -> AccessToken:
        return AccessToken("x", int(time.time()) + 3600)

    async def close(self) -> None:
        """There is nothing to close."""

    async def __aexit__(self, *error: object) -> None:
        """Likewise."""


async def upserts(url: str, count: int, size: int) -> float:
    """Records a second, from the first request to the last answer."""
    async with AsyncDataverseClient(url, Token()) as client:
        items = [UpsertItem({KEY: str(uuid4())}, body("active", "2026-01-01", "2027-01-01")) for _ in range(count)]
        await client.records.upsert(LOGICAL_NAME, items[:1])  # what it asks of the table first
        parts = iter([items[at : at + size] for at in range(0, count, size)])

        async def sender() -> None:
            for part in parts:
                await client.records.upsert(LOGICAL_NAME, part)

        began = time.perf_counter()
        await asyncio.gather(*(sender() for _ in range(IN_FLIGHT if size == 1 else BULK_CALLS)))
        return count / (time.perf_counter() - began)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(upserts(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
