"""The hand-written loop over a dirty set: claim, read, send, settle. `python -m benchmarks.bare.loop URL single|bulk`.

It has what is needed for speed and for nothing else: no retry, no breaker, no queue for what is refused, no check of a
lease. A few of these run beside one another in one process, so that one sends while another one waits for the database.
The database's address is in BENCH_DATABASE_URL.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import Any

import aiohttp
import psycopg
from yarl import URL

from benchmarks.payload import ENTITY_SET, IN_FLIGHT, LOGICAL_NAME, ROOT, address, body, headers

PUMPS = {"single": 2, "bulk": 3}
CLAIMED = {"single": 200, "bulk": 1000}
"""More made neither faster here."""

CLAIM = """
with due as (
  select record_key from bare.outbox
  where leased_until is null or leased_until < clock_timestamp()
  order by version limit %s for update skip locked
),
claimed as (
  update bare.outbox set leased_until = clock_timestamp() + interval '1 minute'
  where record_key = any(array(select record_key from due))
  returning record_key, version
)
select c.record_key, c.version, t.status, t.issued_on::text, t.expires_on::text
from claimed c cross join lateral (select * from public.certificates where id = c.record_key limit 1) t
"""
SETTLE = """
with gone as (
  delete from bare.outbox
  using unnest(%s::uuid[], %s::bigint[]) as sent (record_key, version)
  where outbox.record_key = sent.record_key and outbox.version = sent.version
)
insert into bare.record_state (record_key, version, payload_hash)
select * from unnest(%s::uuid[], %s::bigint[], %s::bytea[])
on conflict (record_key) do update
set version = excluded.version, payload_hash = excluded.payload_hash, sent_at = clock_timestamp()
"""

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Send = Callable[[Sequence[tuple[str, dict[str, object]]]], Awaitable[None]]


async def pump(connection: Connection, wake: asyncio.Event, claimed: int, send: Send) -> None:
    """One claim after another, for ever."""
    await connection.execute("set jit = off")
    await connection.execute("set enable_seqscan = off")  # a queue's statistics are those of when it was empty
    while True:
        wake.clear()
        rows = await (await connection.execute(CLAIM, [claimed], prepare=True)).fetchall()
        if not rows:
            await wake.wait()
            continue
        records = [(address(key), body(*columns)) for key, _, *columns in rows]
        await send(records)
        keys, versions = [row[0] for row in rows], [row[1] for row in rows]
        digests = [blake2b(json.dumps(each).encode(), digest_size=16).digest() for _, each in records]
        await connection.execute(SETTLE, [keys, versions, keys, versions, digests], prepare=True)


def single_sender(session: aiohttp.ClientSession, root: str) -> Send:
    """Each record by itself."""
    places = asyncio.Semaphore(IN_FLIGHT)

    async def patch(record: str, attributes: dict[str, object]) -> None:
        async with (
            places,
            session.patch(
                URL(root + record, encoded=True), data=json.dumps(attributes).encode(), headers=headers()
            ) as response,
        ):
            assert response.status == 204

    async def send(records: Sequence[tuple[str, dict[str, object]]]) -> None:
        await asyncio.gather(*(patch(*record) for record in records))

    return send


def bulk_sender(session: aiohttp.ClientSession, root: str) -> Send:
    """All in one request."""
    kind = {"@odata.type": f"Microsoft.Dynamics.CRM.{LOGICAL_NAME}"}
    action = URL(f"{root}{ENTITY_SET}/Microsoft.Dynamics.CRM.UpsertMultiple", encoded=True)

    async def send(records: Sequence[tuple[str, dict[str, object]]]) -> None:
        targets = [attributes | kind | {"@odata.id": record} for record, attributes in records]
        data = json.dumps({"Targets": targets}).encode()
        async with session.post(action, data=data, headers=headers()) as response:
            assert response.status == 204

    return send


SENDERS = {"single": single_sender, "bulk": bulk_sender}


async def main(url: str, form: str) -> None:
    """Until this process is ended."""
    database_url = os.environ["BENCH_DATABASE_URL"]
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        send = SENDERS[form](session, url + ROOT)
        wakes = []
        for _ in range(PUMPS[form]):
            connection = await psycopg.AsyncConnection.connect(database_url, autocommit=True)
            wakes.append(asyncio.Event())
            asyncio.create_task(pump(connection, wakes[-1], CLAIMED[form], send)).add_done_callback(_end)
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as listener:
            await listener.execute("listen bare")
            print("ready", flush=True)
            async for _ in listener.notifies():
                for wake in wakes:
                    wake.set()


def _end(pumping: asyncio.Task[None]) -> None:
    """One that fails ends everything."""
    if not pumping.cancelled() and pumping.exception() is not None:
        pumping.print_stack()
        os._exit(1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
