"""Connections: trusted, counted, without cookies, and each request made once."""

import ssl

import aiohttp

from dynamics_sync.core.errors import ConfigurationError


def open_session(ca_file: str | None, timeout_seconds: float, connections: int) -> aiohttp.ClientSession:
    """A session for one gateway. It keeps no cookies: Dataverse's affinity cookie would tie all requests to one web
    server, and each web server has its own limits (Microsoft: "Send parallel requests").

    Raises:
        ConfigurationError: the file of trusted authorities cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError):
        raise ConfigurationError(
            "DYNAMICS_SYNC_CA_FILE cannot be read as a PEM file of certificates. Correct the path or the file."
        ) from None
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, limit=connections),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        middlewares=[_only_once],
    )


async def _only_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Where a connection is lost, aiohttp would send a GET or a DELETE once more by itself, past the breaker; not if it
    sees another error."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise  # nothing was sent
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
        raise aiohttp.ClientConnectionError from None


async def start_of_body(response: aiohttp.ClientResponse, enough: int) -> bytes:
    """The body up to `enough` bytes, and a little more where it is longer: the rest is not read."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(16 * 1024):
        body += chunk
        if len(body) > enough:
            break
    return bytes(body)
