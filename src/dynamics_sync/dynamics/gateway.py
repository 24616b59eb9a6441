"""The Dataverse Web API as a gateway: reads the record, makes one request, says what the answer means."""

import json
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from dynamics_sync.core.errors import CredentialsError
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
from dynamics_sync.dynamics.answers import MAX_ERROR_BYTES, answer_from
from dynamics_sync.dynamics.tokens import Tokens
from dynamics_sync.sync.ports import Clock, Records, Request
from dynamics_sync.transport.answers import connection_error_code
from dynamics_sync.transport.session import start_of_body

API_PATH = "/api/data/v9.2"

REQUEST_HEADERS = {
    "Accept": "application/json",
    "OData-Version": "4.0",
    "OData-MaxVersion": "4.0",
    "If-None-Match": "null",
}
"""On every request (Microsoft: "Compose HTTP requests and handle errors")."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request of the Web API, without what all have in common."""

    method: str
    address: str
    """Below the Web API's root."""
    body: MappingOf[str, JsonValue] | None = field(default=None, repr=False)
    only_if_there: bool = False
    """A record that is to go must not be created first."""


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

    async def prepare(self, operation: SyncOperation) -> Request | NothingToSend | Unsendable | NotReady:
        """Read the record's row, and have a token. Raises only if the row cannot be read."""
        table = self._mapping.table(operation.source_table)
        if table is None:
            return Unsendable("mapping.unknown_table", operation.source_table)
        try:
            call = _call_for(table, operation, await self._records.read(operation))
        except UnsendableError as error:
            return Unsendable(error.code, error.name)
        if call is None:
            return NothingToSend()
        try:
            return DataverseRequest(self, operation, call, await self._tokens.get())
        except CredentialsError:
            return NotReady("token", self._tokens.pause_seconds)

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
        return await self.exchange(Call("GET", "WhoAmI"), await self._tokens.get())

    async def exchange(self, call: Call, token: str, correlation_id: str | None = None) -> Answer:
        """Make one request. The connection is all that is waited for before it leaves.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError: no answer.
        """
        headers = REQUEST_HEADERS | {"Authorization": f"Bearer {token}"}
        if call.only_if_there:
            del headers["If-None-Match"]
            headers["If-Match"] = "*"
        if correlation_id:
            headers["x-ms-client-request-id"] = correlation_id
        data = None
        if call.body is not None:
            data = json.dumps(call.body).encode()
            headers["Content-Type"] = "application/json"
        url = URL(self._root + call.address, encoded=True)
        async with self._session.request(
            call.method, url, data=data, headers=headers, allow_redirects=False
        ) as response:
            text = await start_of_body(response, MAX_ERROR_BYTES) if response.status >= 400 else b""
            answer = answer_from(response.status, response.headers, text, self._clock.now())
        if answer.status == 401:
            self._refused_token = token
        return answer


@dataclass(frozen=True, slots=True)
class DataverseRequest:
    """A write that is ready to leave."""

    gateway: DataverseGateway
    operation: SyncOperation
    call: Call
    token: str = field(repr=False)

    async def send(self) -> Outcome:
        """Make it, and say what the answer means."""
        try:
            answer = await self.gateway.exchange(self.call, self.token, self.operation.correlation_id)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Transient(connection_error_code(error))
        return classify_removal(answer) if self.call.only_if_there else classify_write(answer)


def _call_for(table: TableMapping, operation: SyncOperation, row: MappingOf[str, object] | None) -> Call | None:
    """What brings Dynamics to the row's state; None where nothing is to be done.

    Raises:
        UnsendableError: the row or its key has no form in Dynamics.
    """
    address = table.address(operation.record_key)
    if row is not None:
        return Call("PATCH", address, table.body(row))
    match table.on_delete:
        case DeleteRule.IGNORE:
            return None
        case DeleteRule.DELETE:
            return Call("DELETE", address, only_if_there=True)
        case DeleteRule.DEACTIVATE:
            return Call("PATCH", address, dict(table.inactive), only_if_there=True)
