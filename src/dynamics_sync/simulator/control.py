"""`/_simulator/…`: faults, the log of requests, the stored records. Needs no token."""

import json
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from aiohttp import web

from dynamics_sync.simulator.errors import DataverseError
from dynamics_sync.simulator.faults import Faults
from dynamics_sync.simulator.store import Record, Store
from dynamics_sync.simulator.tables import JsonObject, Table
from dynamics_sync.simulator.tokens import IdentityProvider

LOGGED_REQUESTS = 500_000
"""The oldest are forgotten beyond that."""


@dataclass(slots=True)
class LoggedRequest:
    """One Web API request: no header, no body."""

    at: float
    method: str
    path: str
    entity_set: str
    done_at: float | None = None
    keys: list[str] = field(default_factory=list)
    status: int | None = None
    """None while it is under way, and where the connection was cut."""


class Control:
    """The handlers."""

    def __init__(self, store: Store, faults: Faults, identities: IdentityProvider) -> None:
        self.requests: deque[LoggedRequest] = deque(maxlen=LOGGED_REQUESTS)
        self._store = store
        self._faults = faults
        self._identities = identities

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/_simulator/faults", self._add_fault),
            web.get("/_simulator/faults", self._show_faults),
            web.delete("/_simulator/faults", self._lift_faults),
            web.get("/_simulator/requests", self._show_requests),
            web.delete("/_simulator/requests", self._forget_requests),
            web.get("/_simulator/records/{entity_set}", self._show_records),
            web.post("/_simulator/credentials", self._change_credentials),
        ]

    async def _add_fault(self, request: web.Request) -> web.Response:
        try:
            fault = self._faults.add(await _object(request))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(asdict(fault), status=201)

    async def _show_faults(self, _: web.Request) -> web.Response:
        return web.json_response([asdict(fault) for fault in self._faults.standing])

    async def _lift_faults(self, _: web.Request) -> web.Response:
        self._faults.lift()
        return web.Response(status=204)

    async def _show_requests(self, _: web.Request) -> web.Response:
        return web.json_response([asdict(request) for request in self.requests])

    async def _forget_requests(self, _: web.Request) -> web.Response:
        self.requests.clear()
        return web.Response(status=204)

    async def _show_records(self, request: web.Request) -> web.Response:
        try:
            table = self._store.table(request.match_info["entity_set"])
        except DataverseError as error:
            return web.json_response({"error": error.message}, status=404)
        return web.json_response([_shown(table, record) for record in self._store.all(table)])

    async def _change_credentials(self, request: web.Request) -> web.Response:
        """`{"client_id": …, "client_secret": …, "revoke": true}`: rotate a secret, revoke all tokens, or both."""
        try:
            wish = await _object(request)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        if "client_secret" in wish:
            self._identities.rotate(str(wish.get("client_id", "demo")), str(wish["client_secret"]))
        if wish.get("revoke"):
            self._identities.revoke_all()
        return web.Response(status=204)


async def _object(request: web.Request) -> dict[str, Any]:
    try:
        document = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise ValueError("the body is not valid JSON") from None
    if not isinstance(document, dict):
        raise ValueError("the body must be a JSON object")
    return document


def _shown(table: Table, record: Record) -> JsonObject:
    key = table.alternate_keys[0].columns if table.alternate_keys else ()
    values = [record.attributes.get(name) for name in key]
    return {
        "id": record.id,
        "key": values[0] if len(values) == 1 else values or None,
        "attributes": record.attributes,
        "versions": record.versions,
    }
