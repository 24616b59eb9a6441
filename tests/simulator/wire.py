"""Tables after Microsoft's examples, and a client that sends exactly what a test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from dynamics_sync.simulator import AlternateKey, Column, ColumnKind, Simulator, Table

ROOT = "/api/data/v9.2"

ACCOUNTS = Table(
    "account",
    "accounts",
    "accountid",
    (
        Column("name", required=True, max_length=20),
        Column("accountnumber"),
        Column("revenue", ColumnKind.DECIMAL),
        Column("creditlimit", ColumnKind.MONEY),
        Column("numberofemployees", ColumnKind.INTEGER),
        Column("creditonhold", ColumnKind.BOOLEAN),
        Column("opened", ColumnKind.DATE),
        Column("lastcall", ColumnKind.DATETIME),
        Column("industrycode", ColumnKind.CHOICE, options=(1, 2, 3)),
        Column("externalguid", ColumnKind.GUID),
        Column("primarycontactid", ColumnKind.LOOKUP, navigation_property="PrimaryContact", lookup_target="contacts"),
    ),
    (AlternateKey("account_number", ("accountnumber",)),),
    duplicates_by=("name",),
)
CONTACTS = Table(
    "contact",
    "contacts",
    "contactid",
    (Column("firstname"), Column("number", ColumnKind.INTEGER), Column("region"), Column("email")),
    (AlternateKey("number_region", ("number", "region")), AlternateKey("email", ("email",))),
)
TASKS = Table("task", "tasks", "activityid", (Column("subject", max_length=200),), bulk=False)
TABLES = (ACCOUNTS, CONTACTS, TASKS)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Any
    body: bytes
    document: Any

    @property
    def code(self) -> str:
        return str(self.document["error"]["code"])

    @property
    def message(self) -> str:
        return str(self.document["error"]["message"])

    @property
    def retry_after(self) -> int:
        return int(self.headers["Retry-After"])


class Client:
    """Sends requests as they are written, with a valid token unless told otherwise."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url
        self.token: str | None = None

    @classmethod
    @asynccontextmanager
    async def of(cls, simulator: Simulator) -> AsyncIterator["Client"]:
        """A client of a simulator that runs meanwhile."""
        async with simulator, aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            client = cls(session, simulator.url)
            await client.sign_in()
            yield client

    async def sign_in(self, secret: str = "demo") -> Answer:
        answer = await self.send_anything(
            "POST",
            f"{self.url}/some-tenant/oauth2/v2.0/token",
            data={
                "grant_type": "client_credentials",
                "client_id": "demo",
                "client_secret": secret,
                "scope": f"{self.url}/.default",
            },
        )
        if answer.status == 200 and answer.document is not None:
            self.token = answer.document["access_token"]
        return answer

    async def __call__(self, method: str, path: str, json: Any = None, **headers: str) -> Answer:
        """A Web API request. Header names are written with underscores: `If_Match='*'`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token is not None:
            named.setdefault("Authorization", f"Bearer {self.token}")
        return await self.send_anything(method, f"{self.url}{ROOT}/{path}", json=json, headers=named)

    async def send_anything(self, method: str, address: str, **options: Any) -> Answer:
        async with self.session.request(method, address, **options) as response:
            body = await response.read()
            is_json = "json" in response.headers.get("Content-Type", "")
            return Answer(response.status, response.headers, body, await response.json() if is_json and body else None)

    async def control(self, method: str, path: str, json: Any = None) -> Answer:
        return await self.send_anything(method, f"{self.url}/_simulator/{path}", json=json)

    async def batch(self, body: str | bytes, boundary: str = "b", **headers: str) -> Answer:
        """A `$batch` with that body. CRLF line ends, unless the body is bytes."""
        raw = body if isinstance(body, bytes) else body.replace("\n", "\r\n").encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named |= {"Content-Type": f"multipart/mixed; boundary={boundary}", "Authorization": f"Bearer {self.token}"}
        return await self.send_anything("POST", f"{self.url}{ROOT}/$batch", data=raw, headers=named)


@dataclass
class Clock:
    """Time that tests move."""

    seconds: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait, five seconds at most, until something has come about."""
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.01)


StartClient = Callable[..., Awaitable[Client]]
