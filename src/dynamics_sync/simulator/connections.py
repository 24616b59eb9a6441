"""What a client sees of a fault on its connection."""

import asyncio
import contextlib
import re
import socket
import struct

from aiohttp import web

from dynamics_sync.simulator.faults import Fault, FaultKind, Faults

_POLL_SECONDS = 0.02

GARBLED = "<!DOCTYPE html><html><head><title>Sign in to your account</title></head><body>Sign in</body></html>"


_HOST = re.compile(r"[A-Za-z0-9.\-]+(:\d+)?|\[[0-9a-fA-F:]+\](:\d+)?")


def client_base(http: web.Request, default: str) -> str:
    """Scheme and host as the client wrote them, as Dataverse's addresses have them; it may know us by another name."""
    host = http.headers.get("Host", "")
    return f"{http.scheme}://{host}" if _HOST.fullmatch(host) else default


class Cut(web.Response):
    """Stands for an answer that nobody gets."""


def cut(http: web.Request) -> Cut:
    """Abort the connection with a reset, not with an orderly end."""
    transport = http.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return Cut(status=500)


async def hang(http: web.Request, faults: Faults, fault: Fault) -> Cut:
    """No answer, until the client goes or the fault is lifted."""
    while faults.stands(fault) and _is_open(http):
        await asyncio.sleep(_POLL_SECONDS)
    return cut(http)


def _is_open(http: web.Request) -> bool:
    return http.transport is not None and not http.transport.is_closing()


async def break_off(http: web.Request, faults: Faults, fault: Fault) -> web.Response:
    """The end of a request that a fault keeps from being answered: a time-out, a reset, a page instead of an answer."""
    if fault.kind is FaultKind.TIMEOUT:
        return await hang(http, faults, fault)
    if fault.kind is FaultKind.GARBLED:
        return web.Response(status=200, text=GARBLED, content_type="text/html")
    return cut(http)
