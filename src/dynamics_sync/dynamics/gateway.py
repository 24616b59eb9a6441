"""The Dataverse Web API as a gateway: reads the record, makes one request, says what the answer means."""

import json
import ssl
from collections.abc import Callable
from collections.abc import Mapping as MappingOf
from typing import Protocol

import aiohttp
from yarl import URL

from dynamics_sync.core.errors import ConfigurationError, CredentialsError
from dynamics_sync.core.mapping import DeleteRule, JsonValue, Mapping, TableMapping, UnsendableError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import (
    Answer,
    NothingToSend,
    NotReady,
    Outcome,
    Transient,
    Unsendable,
    classify_removal,
    classify_write,
)
from dynamics_sync.dynamics.answers import MAX_ERROR_BYTES, answer_from, connection_error_code
from dynamics_sync.dynamics.tokens import Tokens
from dynamics_sync.sync.ports import Clock

API_PATH = "/api/data/v9.2"

REQUEST_HEADERS = {
    "Accept": "application/json",
    "OData-Version": "4.0",
    "OData-MaxVersion": "4.0",
    "If-None-Match": "null",
}
"""On every request (Microsoft: "Compose HTTP requests and handle errors")."""


class Records(Protocol):
    """Where the present state of a record is read."""

    async def read(self, operation: SyncOperation) -> MappingOf[str, object] | None:
        """The mapped columns, or None if the record is gone; UnsendableError if its table cannot be read."""
        ...


def open_session(ca_file: str | None, timeout_seconds: float, connections: int) -> aiohttp.ClientSession:
    """A session for the Web API. It keeps no cookies: the affinity cookie would tie all requests to one web server,
    and each web server has its own limits (Microsoft: "Send parallel requests").

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
    )


class DataverseGateway:
    """Upserts, deactivates and deletes by alternate key: each may be sent again without harm after a lost answer."""

    def __init__(
        self,
        *,
        url: str,
        session: aiohttp.ClientSession,
        tokens: Tokens,
        records: Records,
        mapping: Mapping,
        clock: Clock,
    ) -> None:
        self._root = url + API_PATH + "/"
        self._session = session
        self._tokens = tokens
        self._records = records
        self._mapping = mapping
        self._clock = clock
        self._refused_token: str | None = None

    async def send(self, operation: SyncOperation) -> Outcome:
        """Bring the record in Dynamics to the state that its row has now. Raises only if the row cannot be read."""
        table = self._mapping.table(operation.source_table)
        if table is None:
            return Unsendable("mapping.unknown_table", operation.source_table)
        try:
            row = await self._records.read(operation)
            address = table.address(operation.record_key)
            if row is None:
                return await self._remove(operation, table, address)
            return await self._request(operation, "PATCH", address, table.body(row), classify_write)
        except UnsendableError as error:
            return Unsendable(error.code, error.name)

    async def renew_token(self) -> None:
        """Forget the token that Dynamics refused."""
        if self._refused_token is not None:
            self._tokens.forget(self._refused_token)

    async def who_am_i(self) -> Answer:
        """Ask Dynamics whether it lets us in; changes nothing.

        Raises:
            CredentialsError: there is no token.
            aiohttp.ClientError, TimeoutError: no answer.
        """
        return await self._exchange("GET", "WhoAmI", None, {})

    async def _remove(self, operation: SyncOperation, table: TableMapping, address: str) -> Outcome:
        match table.on_delete:
            case DeleteRule.IGNORE:
                return NothingToSend()
            case DeleteRule.DELETE:
                return await self._request(operation, "DELETE", address, None, classify_removal)
            case DeleteRule.DEACTIVATE:
                return await self._request(operation, "PATCH", address, dict(table.inactive), classify_removal)

    async def _request(
        self,
        operation: SyncOperation,
        method: str,
        address: str,
        body: dict[str, JsonValue] | None,
        classify: Callable[[Answer], Outcome],
    ) -> Outcome:
        headers = {"x-ms-client-request-id": operation.correlation_id} if operation.correlation_id else {}
        if classify is classify_removal:
            headers["If-Match"] = "*"  # a record that is to go must not be created first
        try:
            answer = await self._exchange(method, address, body, headers)
        except CredentialsError:
            return NotReady("token", self._tokens.pause_seconds)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Transient(connection_error_code(error))
        return classify(answer)

    async def _exchange(
        self, method: str, address: str, body: dict[str, JsonValue] | None, headers: dict[str, str]
    ) -> Answer:
        token = await self._tokens.get()
        all_headers = REQUEST_HEADERS | headers | {"Authorization": f"Bearer {token}"}
        if "If-Match" in headers:
            del all_headers["If-None-Match"]
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            all_headers["Content-Type"] = "application/json"
        url = URL(self._root + address, encoded=True)
        async with self._session.request(
            method, url, data=data, headers=all_headers, allow_redirects=False
        ) as response:
            text = await _start_of_body(response) if response.status >= 400 else b""
            answer = answer_from(response.status, response.headers, text, self._clock.now())
        if answer.status == 401:
            self._refused_token = token
        return answer


async def _start_of_body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(16 * 1024):
        body += chunk
        if len(body) > MAX_ERROR_BYTES:
            break
    return bytes(body)
