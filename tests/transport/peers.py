"""Servers on a real socket that do to a connection exactly what a test says."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from dynamics_sync.transport.client import HttpClient

Behaviour = Callable[["Peer"], Awaitable[None]]

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
MANY_SECONDS = 20.0
"""Longer than any test waits."""


@dataclass
class Peer:
    """The server's side of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    """How many connections there were before it."""
    requests: list[bytes]
    """All that were read whole, on any connection."""

    async def read(self) -> bytes:
        """A request, head and body; empty once the client has gone."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        request = head + await self.reader.readexactly(length)
        self.requests.append(request)
        return request

    async def say(self, *pieces: bytes) -> None:
        """Each leaves by itself, so that it may arrive by itself."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def is_left(self) -> None:
        """Wait until the client has gone."""
        try:
            while await self.reader.read(1024):
                pass
        except ConnectionError:
            pass


@dataclass
class Server:
    """Where it is, and what came."""

    url: str
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    open_now: int = 0
    most_at_once: int = 0


@asynccontextmanager
async def serving(behaviour: Behaviour, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """A server that behaves so on each connection, and then closes it."""
    failures: list[BaseException] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, server.connections, server.requests)
        server.connections += 1
        server.open_now += 1
        server.most_at_once = max(server.most_at_once, server.open_now)
        try:
            await behaviour(peer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        except BaseException as error:
            failures.append(error)
        finally:
            server.open_now -= 1
            writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    port = listening.sockets[0].getsockname()[1]
    server = Server(f"{'https' if tls else 'http'}://127.0.0.1:{port}")
    try:
        yield server
    finally:
        listening.close()
    assert failures == []


@asynccontextmanager
async def client_of(url: str, *, seconds: float = MANY_SECONDS, connections: int = 4) -> AsyncIterator[HttpClient]:
    """A client without TLS, closed at the end."""
    client = HttpClient(url, None, seconds, connections)
    try:
        yield client
    finally:
        await client.close()


def saying(*pieces: bytes) -> Behaviour:
    """Answers each request with this, in these pieces."""

    async def behaviour(peer: Peer) -> None:
        while await peer.read():
            await peer.say(*pieces)

    return behaviour


def saying_once(*pieces: bytes) -> Behaviour:
    """Answers one request with this, and closes the connection."""

    async def behaviour(peer: Peer) -> None:
        if await peer.read():
            await peer.say(*pieces)

    return behaviour
