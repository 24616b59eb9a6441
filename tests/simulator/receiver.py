"""A receiver of webhooks on a real socket, which answers as it is told to."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from .wire import Client, eventually


@dataclass(frozen=True)
class Received:
    """One request."""

    method: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    raw: str

    @property
    def body(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.raw)
        return document

    @property
    def target(self) -> dict[str, Any]:
        """The value of the parameter `Target`."""
        return dict(by_key(self.body["InputParameters"])["Target"])

    @property
    def attributes(self) -> dict[str, Any]:
        """The target's attributes by name."""
        return by_key(self.target["Attributes"])


@dataclass
class Receiver:
    """`answers` are the statuses of the first requests; all others get 200. `gate` keeps answers back while closed."""

    answers: list[int] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def __aenter__(self) -> Self:
        self.gate.set()
        application = web.Application(client_max_size=10_000_000)
        application.router.add_route("*", "/{path:.*}", self._receive)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.gate.set()
        await self._runner.cleanup()

    async def wait_for(self, count: int) -> list[Received]:
        """So many requests, or a time-out after five seconds."""
        async with asyncio.timeout(5):
            while len(self.received) < count:
                await asyncio.sleep(0.005)
        return self.received

    async def _receive(self, request: web.Request) -> web.Response:
        raw = (await request.read()).decode()
        status = self.answers.pop(0) if self.answers else 200
        self.received.append(Received(request.method, request.headers, request.query, raw))
        await self.gate.wait()
        headers = {"Location": "/elsewhere"} if 300 <= status < 400 else {}
        return web.Response(status=status, headers=headers)


def by_key(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """What .NET writes as a list of keys and values."""
    return {pair["key"]: pair["value"] for pair in pairs}


async def register(client: Client, receiver: Receiver, **changes: Any) -> dict[str, Any]:
    declared = {
        "url": receiver.url,
        "name": "test",
        "entity": "account",
        "authentication": {"kind": "WebhookKey", "values": {"code": "k"}},
        **changes,
    }
    answer = await client.control("POST", "webhooks", declared)
    assert answer.status == 201, answer.document
    registration: dict[str, Any] = answer.document
    return registration


async def deliveries(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.control("GET", "webhooks/deliveries")).document
    return found


async def settled(client: Client) -> list[dict[str, Any]]:
    """The deliveries, once none is on its way."""

    async def are_settled() -> bool:
        return all(one["outcome"] not in ("waiting", "sending") for one in await deliveries(client))

    await eventually(are_settled)
    return await deliveries(client)


async def fault(client: Client, **declared: Any) -> None:
    answer = await client.control("POST", "faults", declared)
    assert answer.status == 201, answer.document


async def rename(client: Client, *names: str, key: str = "A1") -> list[int]:
    return [(await client("PATCH", f"accounts(accountnumber='{key}')", {"name": name})).status for name in names]


async def name_of(client: Client, key: str = "A1") -> str:
    return str((await client("GET", f"accounts(accountnumber='{key}')")).document["name"])


def told(receiver: Receiver) -> list[str]:
    """The names, in the order of their arrival."""
    return [one.attributes["name"] for one in receiver.received]
