"""One exchange with the Web API: what leaves with each request, and what is kept of an answer."""

from collections.abc import Callable, Mapping
from dataclasses import field
from datetime import datetime

from dynamics_sync.core.outcome import Answer
from dynamics_sync.core.values import value
from dynamics_sync.dynamics.answers import answer_from
from dynamics_sync.dynamics.calls import API_PATH, REQUEST_HEADERS
from dynamics_sync.sync.ports import Clock
from dynamics_sync.transport.client import HttpClient


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
        client: HttpClient,
        clock: Clock,
        observe: Callable[[Exchanged], None] | None = None,
    ) -> None:
        self.environment = url + API_PATH + "/"
        self._client = client
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
            NoAnswerError: there was none.
        """
        sent = {**headers, "Authorization": f"Bearer {token}"}
        if correlation_id:
            sent["x-ms-client-request-id"] = correlation_id
        began = self._clock.monotonic()
        response = await self._client.request(
            method, f"{API_PATH}/{address}", headers=sent, body=body, enough=read_bytes
        )
        now = self._clock.now()
        answer = answer_from(response.status, response.headers, response.body, now)
        exchanged = Exchanged(answer, now, self._clock.monotonic() - began, response.headers, response.body)
        if answer.status == 401:
            self.refused_token = token
        if self._observe is not None:
            self._observe(exchanged)
        return exchanged
