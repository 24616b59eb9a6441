"""Requests to one server, over connections that are kept: trusted, counted, without cookies, each made once.

aiohttp needs five times as long for a request, more than all the rest that a worker does for a record; and sends some
a second time by itself.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from aiohappyeyeballs import start_connection

from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.transport.addresses import DEFAULT_PORTS, may_be_sent, origin_of
from dynamics_sync.transport.connection import Connection, Response
from dynamics_sync.transport.errors import NoAnswerError

KEPT_SECONDS = 15.0
"""For how long a connection that is not needed may be used again: servers close theirs after a while, unasked."""

NEXT_ADDRESS_SECONDS = 0.25
"""How soon a server's next address is tried, too, where one does not answer (RFC 8305)."""


class HttpClient:
    """A server's requests. No cookie is kept: Dataverse's affinity cookie would tie all requests to one web server, and
    each web server has its own limits (Microsoft: "Send parallel requests"). No redirect is followed.

    Args:
        url: where the server is, `https://host[:port]`; what follows is left out.
        trusted: who vouches for the server; not asked with plain http.
        timeout_seconds: how long a request may take in all, the wait for a connection included.
        connections: how many there are at most.

    Raises:
        ValueError: the server's name is none.
    """

    def __init__(self, url: str, trusted: ssl.SSLContext | None, timeout_seconds: float, connections: int) -> None:
        scheme, host, self._port = origin_of(url)
        self._host = host.encode("idna").decode("ascii")
        self._trusted = trusted if scheme == "https" else None
        named = _authority(scheme, self._host, self._port)
        self._beginning = f" HTTP/1.1\r\nHost: {named}\r\nUser-Agent: dynamics-sync\r\n"
        self._timeout_seconds = timeout_seconds
        self._places = asyncio.Semaphore(connections)
        self._free: list[tuple[Connection, float]] = []
        self._loop = asyncio.get_running_loop()

    async def request(
        self, method: str, target: str, *, headers: Mapping[str, str], body: bytes | None = None, enough: int = 0
    ) -> Response:
        """Make a request, once.

        Args:
            target: path and query, encoded.
            enough: how many bytes of a success's body are wanted; of a longer one a little more is given, and the rest
                not waited for. Of an error it is at least `MOST_OF_ERROR`.

        Raises:
            NoAnswerError: there was none, or not in time.
            ValueError: the target or a header has characters that may not stand there.
        """
        request = self._head(method, target, headers, body) + (body or b"")
        until = self._loop.time() + self._timeout_seconds
        await self._enter(until)
        try:
            connection = self._kept() or await self._connect(until)
            response = await connection.exchange(request, enough, until - self._loop.time())
            if connection.is_free:
                self._free.append((connection, self._loop.time()))
            else:
                connection.close()
        finally:
            self._places.release()
        return response

    async def close(self) -> None:
        """Close what is kept."""
        while self._free:
            self._free.pop()[0].close()
        await asyncio.sleep(0)  # this is done in the loop's next turn

    def _head(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
        if not may_be_sent("".join((target, *headers.values()))) or " " in target:
            raise ValueError("A request's target and headers are printable ASCII.")
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        return f"{method} {target}{self._beginning}{lines}{length}\r\n".encode("ascii")

    async def _enter(self, until: float) -> None:
        """Wait until there are fewer requests than connections."""
        if not self._places.locked():
            await self._places.acquire()
            return
        try:
            async with asyncio.timeout_at(until):
                await self._places.acquire()
        except TimeoutError:
            raise NoAnswerError("timeout") from None

    def _kept(self) -> Connection | None:
        """The one that was used last. Where that is too long ago, all the others are no better."""
        while self._free:
            connection, since = self._free.pop()
            if connection.is_free and self._loop.time() - since < KEPT_SECONDS:
                return connection
            connection.close()
        return None

    async def _connect(self, until: float) -> Connection:
        try:
            async with asyncio.timeout_at(until):
                addresses = await self._loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                connected = await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS)
                try:
                    _, connection = await self._loop.create_connection(
                        Connection,
                        sock=connected,
                        ssl=self._trusted,
                        server_hostname=self._host if self._trusted else None,
                    )
                except BaseException:
                    connected.close()
                    raise
        except OSError as error:
            raise NoAnswerError(_code(error)) from None
        return connection


@asynccontextmanager
async def open_client(
    url: str, ca_file: str | None, timeout_seconds: float, connections: int
) -> AsyncIterator[HttpClient]:
    """A client for one server.

    Args:
        ca_file: a PEM file of the authorities to trust, instead of the system's.

    Raises:
        ConfigurationError: the address or the file cannot be used.
    """
    trusted = _trusted(ca_file) if ca_file or urlsplit(url).scheme == "https" else None
    try:
        client = HttpClient(url, trusted, timeout_seconds, connections)
    except ValueError:
        raise ConfigurationError(
            f"{urlsplit(url).hostname} is no name that a host can have. Correct the address in the settings."
        ) from None
    try:
        yield client
    finally:
        await client.close()


def _trusted(ca_file: str | None) -> ssl.SSLContext:
    try:
        trusted = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError):
        raise ConfigurationError(
            "DYNAMICS_SYNC_CA_FILE cannot be read as a PEM file of certificates. Correct the path or the file."
        ) from None
    trusted.set_alpn_protocols(["http/1.1"])
    return trusted


def _authority(scheme: str, host: str, port: int) -> str:
    """A host and its port as they are named to it (RFC 9110, 4.2.3 and 7.2): a default port is not."""
    named = f"[{host}]" if ":" in host else host
    return named if port == DEFAULT_PORTS[scheme] else f"{named}:{port}"


def _code(error: OSError) -> str:
    """Our code for a connection that could not be made."""
    match error:
        case TimeoutError():
            return "timeout"
        case ssl.SSLError():
            return "tls"
        case socket.gaierror():
            return "dns"
    return "connection_refused"
