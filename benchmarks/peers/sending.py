"""How the workers of the peers send: as the bare loop does."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from benchmarks.payload import IN_FLIGHT, ROOT, address, headers

Send = Callable[[str, bytes], Awaitable[None]]


@asynccontextmanager
async def sender(url: str) -> AsyncIterator[Send]:
    """A function that upserts a record: its key, its body."""
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def send(key: str, data: bytes) -> None:
            record = URL(url + ROOT + address(key), encoded=True)
            async with session.patch(record, data=data, headers=headers()) as response:
                assert response.status == 204

        yield send
