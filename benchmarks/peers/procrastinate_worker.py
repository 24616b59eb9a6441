"""procrastinate: `python -m benchmarks.peers.procrastinate_worker URL`. The database is BENCH_DATABASE_URL.

Chosen, after its pages on the worker's options and on concurrency:
- an asynchronous task with psycopg, its default, and as many jobs at once as all others have requests in flight;
- a pool with a connection for several jobs at once, as each is fetched and finished by itself;
- LISTEN/NOTIFY is on, as always;
- `delete_jobs="successful"`, so that the table of jobs stays small.
The arguments carry the body, so that nothing has to be read.
"""

import asyncio
import os
import sys

import procrastinate

from benchmarks.payload import IN_FLIGHT
from benchmarks.peers.sending import sender

POOL_SIZE = 10
"""Fewer are slower here, more no faster."""


async def main(url: str) -> None:
    connector = procrastinate.PsycopgConnector(conninfo=os.environ["BENCH_DATABASE_URL"], max_size=POOL_SIZE)
    app = procrastinate.App(connector=connector)
    async with sender(url) as send, app.open_async():

        @app.task(name="upsert", queue="upsert")
        async def upsert(key: str, data: str) -> None:
            await send(key, data.encode())

        print("ready", flush=True)
        await app.run_worker_async(concurrency=IN_FLIGHT, delete_jobs="successful")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
