"""One PATCH per record: changed certifications through a worker, beside the same PATCHes without any database.

Both sides send to one local server, in a process of its own, that answers 204 at once. Rounds alternate, and the figure
is the ratio of their medians.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from uuid import uuid4

import aiohttp
from rich.console import Console
from rich.table import Table

from dynamics_sync import app, sandbox
from dynamics_sync.dynamics.calls import REQUEST_HEADERS
from dynamics_sync.logs import configure_logging
from dynamics_sync.postgres.connections import connect
from dynamics_sync.postgres.embedded import EmbeddedPostgres
from dynamics_sync.postgres.migrate import migrate
from dynamics_sync.settings import load_settings
from dynamics_sync.stores import migration_sets

RECORDS = 5_000
ROUNDS = 9
IN_FLIGHT = 64

SERVER = """
import asyncio
TOKEN = b'{"token_type":"Bearer","expires_in":3599,"access_token":"x"}'
class Answers(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.buffer = transport, b''
    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b'\\r\\n\\r\\n')) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b'content-length:')
            length = int(head[at + 15:].split(b'\\r\\n', 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length:]
            if head.startswith(b'post'):
                head = b'HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n'
                self.transport.write(head % len(TOKEN) + TOKEN)
            else:
                self.transport.write(b'HTTP/1.1 204 No Content\\r\\n\\r\\n')
async def main():
    server = await asyncio.get_running_loop().create_server(Answers, '127.0.0.1', 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


async def bare_patches(url: str) -> float:
    """PATCHes a second, without any database."""
    body = json.dumps({"hlf_status": 100000001, "hlf_issuedon": "2026-01-01", "hlf_expireson": "2027-01-01"}).encode()
    headers = REQUEST_HEADERS | {"Content-Type": "application/json", "Authorization": "Bearer x"}
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        numbers = iter(range(RECORDS))

        async def sender() -> None:
            for _ in numbers:
                address = f"{url}/api/data/v9.2/hlf_certifications(hlf_externalid='{uuid4()}')"
                its_own = {"x-ms-client-request-id": str(uuid4())}
                async with session.patch(address, data=body, headers=headers | its_own) as response:
                    assert response.status == 204

        began = time.perf_counter()
        await asyncio.gather(*(sender() for _ in range(IN_FLIGHT)))
        return RECORDS / (time.perf_counter() - began)


async def through_the_worker(database_url: str, url: str) -> float:
    """Changed certifications a second, from the first claim to the last settlement."""
    settings = sandbox.with_simulator(load_settings(database_url=database_url, concurrency=IN_FLIGHT), url)
    async with app.open_engine(settings, database_url) as engine, await connect(database_url) as user:
        await user.execute(
            "update public.certifications set status = case status when 'active' then 'expired' else 'active' end"
        )
        began = time.perf_counter()
        working = asyncio.create_task(app.run_worker(engine))
        while engine.worker.in_flight or await engine.stores.waiting():
            await asyncio.sleep(0.005)
        seconds = time.perf_counter() - began
        engine.worker.stop()
        await working
    return RECORDS / seconds


async def prepare(database_url: str) -> None:
    await migrate(database_url, migration_sets(load_settings()))
    organisation, chapter, mentor = uuid4(), uuid4(), uuid4()
    async with await connect(database_url) as user:
        await user.execute("insert into public.organisations values (%s, 'x')", [organisation])
        await user.execute("insert into public.chapters values (%s, %s, 'x')", [chapter, organisation])
        await user.execute(
            "insert into public.peer_mentors (id, chapter_id, display_name) values (%s, %s, 'x')", [mentor, chapter]
        )
        await user.execute(
            "insert into public.certifications (peer_mentor_id, chapter_id, status) "
            "select %s, %s, 'active' from generate_series(1, %s)",
            [mentor, chapter, RECORDS],
        )


async def measure(database_url: str, url: str) -> tuple[list[float], list[float]]:
    await prepare(database_url)
    bare, worker = [], []
    for _ in range(ROUNDS):
        bare.append(await bare_patches(url))
        worker.append(await through_the_worker(database_url, url))
    return bare, worker


def main() -> None:
    configure_logging()
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        with EmbeddedPostgres() as postgres:
            bare, worker = asyncio.run(measure(postgres.url, url))
    finally:
        server.terminate()
        server.wait()
    table = Table(
        "", "median", "least", "most", title=f"{RECORDS} records, one PATCH each, {ROUNDS} rounds, per second"
    )
    for name, figures in (("PATCHes without any database", bare), ("through one worker", worker)):
        table.add_row(name, *(f"{figure:,.0f}" for figure in (statistics.median(figures), min(figures), max(figures))))
    Console().print(table)
    Console().print(
        f"ratio of the medians: [bold]{statistics.median(worker) / statistics.median(bare):.2f}[/] (bar: 0.5)"
    )


if __name__ == "__main__":
    main()
