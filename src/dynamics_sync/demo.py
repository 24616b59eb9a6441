"""`dynamics-sync demo`: the main job as a story, on real parts, with an account that must add up."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import structlog
from psycopg.rows import dict_row
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dynamics_sync import app, sandbox
from dynamics_sync.core.circuit import CircuitState
from dynamics_sync.core.errors import DynamicsSyncError
from dynamics_sync.core.operation import DYNAMICS, QueueStatus
from dynamics_sync.postgres.connections import Connection, connect
from dynamics_sync.postgres.embedded import EmbeddedPostgres
from dynamics_sync.postgres.migrate import migrate
from dynamics_sync.settings import load_settings
from dynamics_sync.simulator import Simulator, SimulatorConfig
from dynamics_sync.stores import migration_sets

CERTIFICATIONS = 40
COOL_DOWN_SECONDS = 4.0
STEP_TIMEOUT_SECONDS = 40.0
ENTITY_SET = "hlf_certifications"

ALL_THAT_WAITS = """
select record_key from dynamics_sync.outbox union select unnest(record_keys) from dynamics_sync.changes
"""

COLOURS = {CircuitState.CLOSED: "green", CircuitState.OPEN: "red", CircuitState.HALF_OPEN: "yellow"}


class DemoError(DynamicsSyncError):
    """A step of the story did not happen."""


def run_demo(console: Console) -> bool:
    """Tell the story; True if the account adds up."""
    structlog.configure(processors=[_drop_event])  # the story itself says what happens
    console.print(
        Panel("[bold]dynamics-sync[/]: every change reaches Dynamics, or a person knows why not.", expand=False)
    )
    with EmbeddedPostgres(bindir=load_settings().pg_bindir, durable=False) as server:
        return asyncio.run(_tell(console, server.url))


def _drop_event(*_: object) -> structlog.typing.EventDict:
    raise structlog.DropEvent


@dataclass(slots=True)
class _State:
    """What the live display shows."""

    circuit: CircuitState = CircuitState.CLOSED
    waiting: int = 0
    applied: int = 0
    queued: int = 0
    requests: int = 0
    failed_requests: int = 0
    title: str = ""
    done: list[str] = field(default_factory=list)

    def __rich__(self) -> Group:
        numbers = Table(box=None, padding=(0, 3, 0, 0))
        for heading in (
            "circuit",
            "waiting in the outbox",
            "applied in Dynamics",
            "queue for a person",
            "requests",
            "of them refused",
        ):
            numbers.add_column(heading, style="bold")
        numbers.add_row(
            Text(self.circuit, style=f"bold {COLOURS[self.circuit]}"),
            *(str(n) for n in (self.waiting, self.applied, self.queued, self.requests, self.failed_requests)),
        )
        lines = [Text.from_markup(f"[green]✓[/] {line}") for line in self.done]
        now = [Text.from_markup(f"[cyan]…[/] {self.title}")] if self.title else []
        return Group(*lines, *now, Panel(numbers, title="now", title_align="left", expand=False))


class _Story:
    """The parts on stage: a user's connection, the simulator's control address, the engine, the display."""

    def __init__(
        self, user: Connection, engine: app.Engine, http: aiohttp.ClientSession, url: str, state: _State
    ) -> None:
        self._user = user
        self._engine = engine
        self._http = http
        self._url = url
        self.state = state
        self._chapter = uuid4()
        self._mentor = uuid4()
        self.changes: dict[UUID, int] = {}

    async def prepare(self) -> None:
        organisation = uuid4()
        await self._user.execute("insert into public.organisations values (%s, 'Demo')", [organisation])
        await self._user.execute("insert into public.chapters values (%s, %s, 'Oslo')", [self._chapter, organisation])
        await self._user.execute(
            "insert into public.peer_mentors (id, chapter_id, display_name) values (%s, %s, 'A mentor')",
            [self._mentor, self._chapter],
        )

    async def issue(self, count: int) -> None:
        """New certifications, each in a transaction of its own."""
        for _ in range(count):
            cursor = await self._user.execute(
                "insert into public.certifications (peer_mentor_id, chapter_id, status, issued_on, expires_on) "
                "values (%s, %s, 'active', current_date, current_date + 365) returning id",
                [self._mentor, self._chapter],
            )
            row = await cursor.fetchone()
            if row is not None:
                self.changes[row[0]] = 1

    async def change(self, ids: list[UUID], status: str) -> None:
        for certification in ids:
            await self._user.execute(
                "update public.certifications set status = %s where id = %s", [status, certification]
            )
            self.changes[certification] += 1

    async def fault(self, **declared: object) -> None:
        async with self._http.post(f"{self._url}/_simulator/faults", json=declared) as response:
            response.raise_for_status()

    async def lift_faults(self) -> None:
        async with self._http.delete(f"{self._url}/_simulator/faults") as response:
            response.raise_for_status()

    async def replay_queue(self) -> None:
        queue = self._engine.stores.queue
        await queue.replay([entry.id for entry in await queue.entries()], "demo")

    async def requests(self) -> list[dict[str, Any]]:
        async with self._http.get(f"{self._url}/_simulator/requests") as response:
            return [noted for noted in await response.json() if noted["entity_set"] == ENTITY_SET]

    async def records(self) -> dict[str, dict[str, Any]]:
        async with self._http.get(f"{self._url}/_simulator/records/{ENTITY_SET}") as response:
            return {record["key"]: record["attributes"] for record in await response.json()}

    async def look(self) -> None:
        """Bring the display up to date, from both sides."""
        requests = await self.requests()
        stores = self._engine.stores
        counts = await stores.queue.counts()
        self.state.circuit = await stores.breaker.state()
        self.state.waiting = await stores.waiting()
        self.state.queued = sum(counts.get(s, 0) for s in QueueStatus if s.is_open)
        self.state.applied = len(await self.records())
        self.state.requests = len(requests)
        self.state.failed_requests = sum(1 for noted in requests if (noted["status"] or 599) >= 400)

    async def step(self, title: str, done: str, until: Callable[[_State], bool]) -> None:
        """Show a title until a condition on the state holds; DemoError if it does not come true."""
        self.state.title = title
        try:
            async with asyncio.timeout(STEP_TIMEOUT_SECONDS):
                await self.look()
                while not until(self.state):
                    await asyncio.sleep(0.1)
                    await self.look()
        except TimeoutError:
            raise DemoError(f"The demo waited in vain for: {title}") from None
        self.state.done.append(done)
        self.state.title = ""

    async def account(self) -> dict[str, int]:
        """Where each committed change is, read from both databases."""
        records = await self.records()
        choices = app.read_mapping(None).tables[0].columns["status"].choices or {}
        cursor = self._user.cursor(row_factory=dict_row)
        await cursor.execute("select id, status, expires_on from public.certifications")
        rows = await cursor.fetchall()
        waiting = {row[0] for row in await self._fetch(ALL_THAT_WAITS)}
        entries = await self._engine.stores.queue.entries()
        queued = {entry.record_key for entry in entries if QueueStatus(entry.status).is_open}
        found = {"committed": sum(self.changes.values()), "applied": 0, "queued": 0, "waiting": 0, "lost": 0}
        for row in rows:
            key = str(row["id"])
            held = records.get(key, {})
            is_there = (held.get("hlf_status"), held.get("hlf_expireson")) == (
                choices[row["status"]],
                str(row["expires_on"]),
            )
            place = "waiting" if key in waiting else "queued" if key in queued else "applied" if is_there else "lost"
            found[place] += self.changes[row["id"]]
        return found

    async def _fetch(self, query: str) -> list[tuple[Any, ...]]:
        return await (await self._user.execute(query.encode())).fetchall()


def _drained(state: _State) -> bool:
    return state.waiting == 0 and state.circuit is CircuitState.CLOSED


def _opened(state: _State) -> bool:
    return state.circuit is CircuitState.OPEN


def _one_refused(state: _State) -> bool:
    return state.queued > 0 and state.waiting == 0


def _queue_empty(state: _State) -> bool:
    return state.queued == 0 and state.waiting == 0


async def _tell(console: Console, database_url: str) -> bool:
    settings = load_settings(database_url=database_url, target=DYNAMICS, mapping=None, enabled=True)
    await migrate(database_url, migration_sets(settings))
    tables = sandbox.simulator_tables(app.read_mapping(None))
    async with Simulator(SimulatorConfig(tables)) as simulator, aiohttp.ClientSession() as http:
        settings = sandbox.with_simulator(settings, simulator.url).model_copy(
            update={"cool_down_seconds": COOL_DOWN_SECONDS, "base_delay_ms": 300, "poll_seconds": 0.2}
        )
        async with app.open_engine(settings, database_url) as engine, await connect(database_url) as user:
            state = _State()
            story = _Story(user, engine, http, simulator.url, state)
            working = asyncio.create_task(app.run_worker(engine))
            try:
                with Live(state, console=console, refresh_per_second=10):
                    await _acts(story)
                if not console.is_terminal:
                    console.print()  # there, a live display ends without a line break
            finally:
                engine.worker.stop()
                await working
            return _show_account(console, await story.account())


async def _acts(story: _Story) -> None:
    await story.prepare()
    await story.issue(CERTIFICATIONS)
    ids = list(story.changes)
    await story.step(
        f"{CERTIFICATIONS} certifications are committed in PostgreSQL …",
        f"{CERTIFICATIONS} certifications were committed and arrived in Dynamics",
        _drained,
    )
    refused = ids[-1]
    await story.fault(kind="status", status=400, key=str(refused))
    await story.change([refused], "revoked")
    await story.step(
        "Dynamics refuses one record with a 400 …",
        "One record was refused with a 400: not retried, in the queue as [bold]requires_investigation[/]",
        _one_refused,
    )
    await story.fault(kind="status", status=503)
    await story.change(ids[:10], "expiring")
    await story.step(
        "Dynamics answers 503 to everything …",
        "Dynamics answered 503: after 3 failures in a row the circuit [bold red]opened[/]",
        _opened,
    )
    sent_before = await _silence(story, ids)
    await story.lift_faults()
    await story.fault(kind="status", status=400, key=str(refused))
    await story.step(
        "Dynamics is back; one probe is let through when the cool-down ends …",
        "One probe got through, the circuit [bold green]closed[/], the backlog drained",
        _drained,
    )
    probe, *rest = (await story.requests())[sent_before:]
    if any(noted["at"] < probe["done_at"] for noted in rest):
        raise DemoError("Another request left while the probe was on its way.")
    await story.lift_faults()
    await story.replay_queue()
    await story.step(
        "The cause is put right; a person replays the queue …",
        "What was in the queue was replayed and arrived",
        _queue_empty,
    )


async def _silence(story: _Story, ids: list[UUID]) -> int:
    """While the circuit is open, changes wait and no request leaves. Gives the number of requests before."""
    before = len(await story.requests())
    await story.change(ids[5:25], "expired")
    story.state.title = "While it is open, 20 more certifications change …"
    for _ in range(15):
        await asyncio.sleep(0.1)
        await story.look()
    left = len(await story.requests()) - before
    if left:
        raise DemoError(f"{left} requests left while the circuit was open.")
    story.state.done.append("Changes made meanwhile [bold]wait in the outbox[/]; not one request left")
    return before


def _show_account(console: Console, found: dict[str, int]) -> bool:
    adds_up = found["lost"] == 0 and found["committed"] == found["applied"] + found["queued"] + found["waiting"]
    sign = "=" if adds_up else "≠"
    colour = "green" if adds_up else "red"
    console.print(
        Panel(
            f"committed changes [bold]{found['committed']}[/] {sign} applied [bold]{found['applied']}[/] + queued "
            f"[bold]{found['queued']}[/] + waiting [bold]{found['waiting']}[/]\n"
            + ("Nothing was lost." if adds_up else f"[bold red]{found['lost']} changes are lost.[/]"),
            title="account, read from both databases",
            border_style=colour,
            expand=False,
        )
    )
    return adds_up
