"""pgqueuer: `python -m benchmarks.peers.pgqueuer_worker URL`. The database is BENCH_DATABASE_URL.

Chosen, after its pages "Performance Tuning" and "Benchmarks":
- asyncpg, by its own measurement much faster than psycopg; one connection for the manager; uvloop, as in `pgq run`;
- durability `durable`, the default: the others lose jobs with the server, which nobody else here does;
- its autovacuum settings are applied (`pgq autovac`, in `schemas.py`);
- a larger batch than the default of 10, as jobs are short. `max_concurrent_tasks` is left out, as it makes the query
  that fetches jobs dearer: what is in flight is limited by the HTTP client;
- LISTEN/NOTIFY wakes it, as always.
The payload carries the body, so that nothing has to be read.
"""

import os
import sys

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job

from benchmarks.peers.sending import sender

BATCH_SIZE = 1000
"""Of 10, 50, 100, 250, 500 and 1,000 the fastest here."""


async def main(url: str) -> None:
    connection = await asyncpg.connect(os.environ["BENCH_DATABASE_URL"])
    queue = PgQueuer(AsyncpgDriver(connection))
    async with sender(url) as send:

        @queue.entrypoint("upsert")
        async def upsert(job: Job) -> None:
            key, _, data = job.payload.partition(b" ")
            await send(key.decode(), data)

        print("ready", flush=True)
        await queue.run(batch_size=BATCH_SIZE)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
