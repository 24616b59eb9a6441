"""Single upserts without any database: `python -m benchmarks.bare.patches URL COUNT aiohttp|ours`.

With aiohttp, as one would write it; or with our client and our event loop: the most that a worker could do. Prints how
many a second.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import aiohttp
from yarl import URL

from benchmarks.payload import IN_FLIGHT, ROOT, address, body, headers
from dynamics_sync.cli.running import quickest_loop
from dynamics_sync.transport.client import open_client

Patch = Callable[[str, bytes], Awaitable[int]]


@asynccontextmanager
async def _with_aiohttp(url: str) -> AsyncIterator[Patch]:
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def patch(record: str, data: bytes) -> int:
            async with session.patch(URL(url + ROOT + record, encoded=True), data=data, headers=headers()) as response:
                return response.status

        yield patch


@asynccontextmanager
async def _with_ours(url: str) -> AsyncIterator[Patch]:
    async with open_client(url, None, timeout_seconds=60, connections=IN_FLIGHT) as client:

        async def patch(record: str, data: bytes) -> int:
            return (await client.request("PATCH", ROOT + record, headers=headers(), body=data)).status

        yield patch


async def patches(url: str, count: int, client: str) -> float:
    """PATCHes a second, from the first request to the last answer."""
    async with (_with_ours if client == "ours" else _with_aiohttp)(url) as patch:
        numbers = iter(range(count))
        data = json.dumps(body("active", "2026-01-01", "2027-01-01")).encode()

        async def sender() -> None:
            for _ in numbers:
                assert await patch(address(uuid4()), data) == 204

        began = time.perf_counter()
        await asyncio.gather(*(sender() for _ in range(IN_FLIGHT)))
        return count / (time.perf_counter() - began)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=quickest_loop() if sys.argv[3] == "ours" else None) as runner:
        print(json.dumps(runner.run(patches(sys.argv[1], int(sys.argv[2]), sys.argv[3]))))
