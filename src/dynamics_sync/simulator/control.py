"""`/_simulator/…`: faults, the log of requests, the stored records, credentials. Needs no token.

It stands in for an operator of the simulated service; nothing of it exists in Dataverse.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from aiohttp import web

from dynamics_sync.simulator.errors import DataverseError
from dynamics_sync.simulator.faults import Faults
from dynamics_sync.simulator.people import Edit, People
from dynamics_sync.simulator.portal import Portal
from dynamics_sync.simulator.records import Backup, Record
from dynamics_sync.simulator.request_log import LoggedRequests
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import JsonObject, Table
from dynamics_sync.simulator.tokens import IdentityProvider
from dynamics_sync.simulator.webhooks.pipeline import Webhooks

Handler = Callable[[web.Request], Awaitable[web.Response]]


class Control:
    """The handlers."""

    def __init__(
        self,
        store: Store,
        faults: Faults,
        identities: IdentityProvider,
        log: LoggedRequests,
        portal: Portal,
        webhooks: Webhooks,
    ) -> None:
        self._store = store
        self._faults = faults
        self._identities = identities
        self._log = log
        self._portal = portal
        self._webhooks = webhooks
        self._people = People(store, webhooks)
        self._backup: Backup | None = None
        self._handlers: dict[tuple[str, str], Handler] = {
            ("POST", "faults"): self._add_fault,
            ("GET", "faults"): self._show_faults,
            ("DELETE", "faults"): self._lift_faults,
            ("GET", "requests"): self._show_requests,
            ("DELETE", "requests"): self._forget_requests,
            ("GET", "records/"): self._show_records,
            ("POST", "records/"): self._edit,
            ("PATCH", "records/"): self._edit,
            ("DELETE", "records/"): self._edit,
            ("POST", "credentials"): self._change_credentials,
            ("POST", "backup"): self._back_up,
            ("POST", "restore"): self._restore,
            ("GET", "portal"): self._show_portal,
            ("POST", "portal"): self._change_portal,
            ("POST", "webhooks"): self._register_webhook,
            ("GET", "webhooks"): self._show_webhooks,
            ("DELETE", "webhooks"): self._lift_webhooks,
            ("GET", "webhooks/deliveries"): self._show_deliveries,
        }

    async def handle(self, request: web.Request) -> web.Response:
        """One control request; what is wrong with it is said in `error`."""
        path = request.match_info["path"]
        handler = self._handlers.get((request.method, "records/" if path.startswith("records/") else path))
        if handler is None:
            known = ", ".join(f"{method} /_simulator/{path}" for method, path in self._handlers)
            return _problem(404, f"there is no {request.method} {request.path}; there is {known}{{entity_set}}")
        try:
            return await handler(request)
        except ValueError as error:
            return _problem(400, str(error))
        except DataverseError as error:
            return _problem(error.status, error.message)

    async def _add_fault(self, request: web.Request) -> web.Response:
        return web.json_response(asdict(self._faults.add(await _object(request))), status=201)

    async def _show_faults(self, _: web.Request) -> web.Response:
        return web.json_response([asdict(fault) for fault in self._faults.standing if fault.count != 0])

    async def _lift_faults(self, _: web.Request) -> web.Response:
        self._faults.lift()
        self._webhooks.release_held()
        return web.Response(status=204)

    async def _show_requests(self, _: web.Request) -> web.Response:
        return web.json_response([request.document() for request in self._log])

    async def _forget_requests(self, _: web.Request) -> web.Response:
        self._log.clear()
        return web.Response(status=204)

    async def _show_records(self, request: web.Request) -> web.Response:
        entity_set = request.match_info["path"].partition("/")[2]
        try:
            table = self._store.table(entity_set)
        except DataverseError:
            return _problem(404, f"there is no entity set {entity_set!r}; there is {', '.join(self._store.tables)}")
        return web.json_response([_shown(table, record) for record in self._store.all(table)])

    async def _edit(self, request: web.Request) -> web.Response:
        """`{"attributes": {…}, "user": "…"}` as a person would, in the form that the Web API takes attributes in."""
        wish = await _object(request) if request.can_read_body else {}
        if unknown := set(wish) - {"attributes", "user"}:
            raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
        attributes, user = wish.get("attributes", {}), wish.get("user", "a person")
        if not isinstance(attributes, dict) or not isinstance(user, str):
            raise ValueError("attributes must be an object and user a text")
        entity_set, _, key = request.match_info["path"].removeprefix("records/").partition("/")
        await self._people.edit(Edit(request.method, entity_set, key, attributes, user))
        return web.Response(status=204)

    async def _register_webhook(self, request: web.Request) -> web.Response:
        return web.json_response(self._webhooks.register(await _object(request)).document(), status=201)

    async def _show_webhooks(self, _: web.Request) -> web.Response:
        return web.json_response([one.document() for one in self._webhooks.registrations])

    async def _lift_webhooks(self, _: web.Request) -> web.Response:
        self._webhooks.lift()
        return web.Response(status=204)

    async def _show_deliveries(self, _: web.Request) -> web.Response:
        return web.json_response([delivery.document() for delivery in self._webhooks.deliveries])

    async def _back_up(self, _: web.Request) -> web.Response:
        self._backup = self._store.back_up()
        return web.Response(status=204)

    async def _restore(self, _: web.Request) -> web.Response:
        """All records as they were at the last backup."""
        if self._backup is None:
            raise ValueError("there is no backup; POST /_simulator/backup makes one")
        self._store.restore(self._backup)
        return web.Response(status=204)

    async def _show_portal(self, _: web.Request) -> web.Response:
        """How the portal is, and each event that it was sent."""
        deliveries = [asdict(delivery) for delivery in self._portal.deliveries]
        return web.json_response({**asdict(self._portal.drift), "deliveries": deliveries})

    async def _change_portal(self, request: web.Request) -> web.Response:
        """`{"contract": "2"}` and more: see `simulator.portal.Drift`; `{"secret": "whsec_…"}` changes the secret."""
        self._portal.change(await _object(request))
        return web.Response(status=204)

    async def _change_credentials(self, request: web.Request) -> web.Response:
        """`{"client_id": "demo", "client_secret": "new"}` rotates, `{"revoke": true}` ends all tokens so far."""
        wish = await _object(request)
        client, secret = wish.get("client_id", "demo"), wish.get("client_secret")
        if unknown := set(wish) - {"client_id", "client_secret", "revoke"}:
            raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
        if not isinstance(client, str) or not isinstance(secret, str | None):
            raise ValueError("client_id and client_secret must be text")
        if secret is not None:
            self._identities.rotate(client, secret)
        if wish.get("revoke") is True:
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


def _key(table: Table, record: Record) -> object:
    """The first alternate key that has values: its value, or its values if it has more than one column."""
    for key in table.alternate_keys:
        values = [record.attributes.get(table.columns_by_name[name].read_name) for name in key.columns]
        if None not in values:
            return values[0] if len(values) == 1 else values
    return None


def _problem(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _shown(table: Table, record: Record) -> JsonObject:
    return {
        "id": record.id,
        "key": _key(table, record),
        "attributes": record.attributes,
        "versions": record.versions,
    }
