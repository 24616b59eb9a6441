"""Single upserts without any database: `python -m benchmarks.bare.patches URL COUNT`. Prints how many a second."""

import asyncio
import json
import sys
import time
from uuid import uuid4

import aiohttp
from yarl import URL

from benchmarks.payload import IN_FLIGHT, address, body, headers


async def patches(url: str, count: int) -> float:
    """PATCHes a second, from the first request to the last answer."""
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        numbers = iter(range(count))
        data = json.dumps(body("active", "2026-01-01", "2027-01-01")).encode()

        async def sender() -> None:
            for _ in numbers:
                record = URL(f"{url}/api/data/v9.2/{address(uuid4())}", encoded=True)
                async with session.patch(record, data=data, headers=headers()) as response:
                    assert response.status == 204

        began = time.perf_counter()
        await asyncio.gather(*(sender() for _ in range(IN_FLIGHT)))
        return count / (time.perf_counter() - began)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(patches(sys.argv[1], int(sys.argv[2])))))
