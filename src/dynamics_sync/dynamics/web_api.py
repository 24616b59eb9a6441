"""One exchange with the Web API: what leaves with each request, and what is kept of an answer."""

from collections.abc import Callable, Mapping
from dataclasses import field
from datetime import datetime

import aiohttp
from yarl import URL

from dynamics_sync.core.outcome import Answer
from dynamics_sync.core.values import value
from dynamics_sync.dynamics.answers import MAX_ERROR_BYTES, answer_from
from dynamics_sync.dynamics.calls import API_PATH, REQUEST_HEADERS
from dynamics_sync.sync.ports import Clock
from dynamics_sync.transport.session import start_of_body


@value
class Exchanged:
    """An answer, when it came, and how long it took."""

    answer: Answer
    at: datetime
    seconds: float
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    """Of an error, or of a success whose body was asked for."""


class WebApi:
    """The Web API of one environment."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        clock: Clock,
        observe: Callable[[Exchanged], None] | None = None,
    ) -> None:
        self.environment = url + API_PATH + "/"
        self._session = session
        self._clock = clock
        self._observe = observe
        self.refused_token: str | None = None

    async def exchange(
        self,
        method: str,
        address: str,
        token: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] = REQUEST_HEADERS,
        correlation_id: str | None = None,
        read_bytes: int = 0,
    ) -> Exchanged:
        """Make one request. The connection is all that is waited for before it leaves.

        Args:
            read_bytes: how much of a success's body is read.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError: no answer.
        """
        sent = {**headers, "Authorization": f"Bearer {token}"}
        if correlation_id:
            sent["x-ms-client-request-id"] = correlation_id
        began = self._clock.monotonic()
        url = URL(self.environment + address, encoded=True)
        async with self._session.request(method, url, data=body, headers=sent, allow_redirects=False) as response:
            enough = read_bytes if response.status < 400 else MAX_ERROR_BYTES
            text = await start_of_body(response, enough) if enough else b""
            now = self._clock.now()
            answer = answer_from(response.status, response.headers, text, now)
            exchanged = Exchanged(answer, now, self._clock.monotonic() - began, response.headers, text)
        if answer.status == 401:
            self.refused_token = token
        if self._observe is not None:
            self._observe(exchanged)
        return exchanged
