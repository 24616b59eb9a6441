"""One connection to a server: HTTP/1.1 (RFC 9112), one request after the other.

Answers are read by llhttp, the parser of Node.js (httptools). What is given up is cut off at once: a request that
nobody waits for any more must not go on (I3).
"""

import asyncio
import zlib
from typing import cast

import httptools
from multidict import CIMultiDict, CIMultiDictProxy

from dynamics_sync.core.values import value
from dynamics_sync.transport.errors import NoAnswerError

MOST_BESIDE_BODY = 256 * 1024
"""Bytes of an answer that are not its body, at most: its head, and how a body in chunks is divided."""

MOST_OF_ERROR = 64 * 1024
"""An error's body is read no further than this, unless more is wanted."""

_GZIP = 16 + zlib.MAX_WBITS
"""What tells zlib that it is gzip."""


@value
class Response:
    """An answer. Names of headers are looked up without regard to case."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    """No more than was wanted, or a little more where it is longer."""


class Connection(asyncio.Protocol):
    """Ready for a request once it is made, and again after an answer that came as a whole (`is_free`)."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[Response] | None = None
        self._enough = 0
        self._is_reading = False
        self._keeps_alive = True
        self._beside_body = 0
        self._status = 0
        self._headers: list[tuple[str, str]] = []
        self._body = bytearray()

    @property
    def is_free(self) -> bool:
        """Whether another request may be made."""
        is_at_rest = not self._is_reading and self._keeps_alive and not self._transport.is_closing()
        return is_at_rest and self._transport.get_write_buffer_size() == 0

    async def exchange(self, request: bytes, enough: int, seconds: float) -> Response:
        """Send a request as it is, and wait for its answer.

        Args:
            enough: how many bytes of a success's body are wanted; with 0 its head is all that is waited for.

        Raises:
            NoAnswerError: none came in time, or none that is whole, or none that is HTTP.
        """
        answer: asyncio.Future[Response] = self._loop.create_future()
        self._answer = answer
        self._enough = enough
        self._begin()
        self._is_reading = True
        if self._transport.is_closing():
            self._fail()  # the server has closed it, as may happen at any time
        else:
            self._transport.write(request)
        limit = self._loop.call_later(seconds, self._fail, "timeout")
        try:
            return await answer
        except BaseException:
            self.close()
            raise
        finally:
            limit.cancel()
            self._answer = None

    def close(self) -> None:
        """Cut it off, whatever is still on its way."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self._ends_with_connection():
            self._finish()
        self._fail()

    def data_received(self, data: bytes) -> None:
        if not self._is_reading:
            self.close()  # nobody asked
            return
        self._beside_body += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._keeps_alive = False
            self._fail()
        if self._beside_body > MOST_BESIDE_BODY:
            self._fail()

    def on_message_begin(self) -> None:
        """Also after one that only said that more will follow."""
        if not self._is_reading:
            self._keeps_alive = False  # one more than was asked for
        self._begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self._keeps_alive &= self._parser.should_keep_alive()
        if self._status >= 400:
            self._enough = max(self._enough, MOST_OF_ERROR)
        if self._enough == 0 and self._status >= 200:
            self._finish()

    def on_body(self, body: bytes) -> None:
        self._beside_body -= len(body)
        if len(self._body) <= self._enough:
            self._body += body
        if len(self._body) > self._enough:
            self._finish()

    def on_message_complete(self) -> None:
        if self._status >= 200:
            self._is_reading = False
            self._finish()

    def _begin(self) -> None:
        self._beside_body, self._status = 0, 0
        self._headers, self._body = [], bytearray()

    def _ends_with_connection(self) -> bool:
        """Whether a body has no other end (RFC 9112, 6.3)."""
        named = {name.lower() for name, _ in self._headers}
        return self._status >= 200 and named.isdisjoint(("content-length", "transfer-encoding"))

    def _finish(self) -> None:
        if self._answer is None or self._answer.done():
            return
        headers = CIMultiDictProxy(CIMultiDict(self._headers))
        try:
            body = self._decoded(headers.get("Content-Encoding"))
        except zlib.error:
            self._fail()
        else:
            self._answer.set_result(Response(self._status, headers, body))

    def _decoded(self, encoding: str | None) -> bytes:
        body = bytes(self._body)
        if encoding != "gzip" or not body:
            return body
        decoder = zlib.decompressobj(_GZIP)
        decoded = decoder.decompress(body, self._enough + 1)
        if len(decoded) <= self._enough and not decoder.eof:
            raise zlib.error
        return decoded

    def _fail(self, code: str = "connection_reset") -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(NoAnswerError(code))
