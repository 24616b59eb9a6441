"""The Web API over HTTP: the request log, faults, tokens and limits around it."""

import asyncio
import time
from collections.abc import Callable, Mapping
from uuid import uuid4

from aiohttp import web

from dynamics_sync.simulator import errors, webapi
from dynamics_sync.simulator.batch import batch_requests, run_batch
from dynamics_sync.simulator.connections import Cut, break_off, client_base, cut
from dynamics_sync.simulator.faults import Fault, FaultKind, Faults
from dynamics_sync.simulator.limits import LimitKeeper
from dynamics_sync.simulator.messages import Reply, Request, error_reply, request_from
from dynamics_sync.simulator.organization import user_id
from dynamics_sync.simulator.request_log import LoggedRequest, LoggedRequests
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tokens import IdentityProvider
from dynamics_sync.simulator.webhooks.commit import RequestCommit
from dynamics_sync.simulator.webhooks.pipeline import Webhooks

_BEFORE_ANYTHING = (FaultKind.TIMEOUT, FaultKind.RESET, FaultKind.GARBLED)
_ANONYMOUS = ""


class BrokenOff(Exception):
    """A fault met a part of a batch and ends the whole of it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.kind)
        self.fault = fault


class WebApi:
    """Handles every request below the Web API's root."""

    def __init__(
        self,
        store: Store,
        identities: IdentityProvider,
        limits: LimitKeeper,
        faults: Faults,
        log: LoggedRequests,
        webhooks: Webhooks,
        now: Callable[[], float],
        base: str,
    ) -> None:
        self._store = store
        self._identities = identities
        self._limits = limits
        self._faults = faults
        self._log = log
        self._webhooks = webhooks
        self._now = now
        self._base = base

    async def handle(self, http: web.Request) -> web.Response:
        """One request, in the log from its arrival to its answer."""
        logged = LoggedRequest(self._now(), http.method, http.path)
        self._log.append(logged)
        try:
            response = await self._respond(http, logged)
            logged.status = None if isinstance(response, Cut) else response.status
            return response
        finally:
            logged.done_at = self._now()

    async def _respond(self, http: web.Request, logged: LoggedRequest) -> web.Response:
        try:
            request = await self._read(http)
        except errors.DataverseError as error:
            return self._send(error_reply(error), _ANONYMOUS)
        logged.entity_set = request.entity_set
        keys = self._named_keys(request)
        if request.method != "GET":
            request.keys = logged.keys = list(keys)
        fault = self._faults.take(request.method, request.entity_set, keys)
        if fault is not None and fault.kind in _BEFORE_ANYTHING:
            return await break_off(http, self._faults, fault)
        if fault is not None and fault.kind is FaultKind.STATUS:
            return self._send(fault.reply(), _ANONYMOUS)
        user = self._identities.user_of(http.headers.get("Authorization"))
        if user is None:
            return self._unauthorized(client_base(http, self._base))
        request.user_id = user_id(user)
        return await self._admitted(http, request, user, fault)

    async def _admitted(self, http: web.Request, request: Request, user: str, fault: Fault | None) -> web.Response:
        """A batch counts once. What a delay takes is execution time, and holds a place among the concurrent ones."""
        try:
            self._limits.begin(user)
        except errors.DataverseError as error:
            return self._send(error_reply(error), user)
        began = time.perf_counter()
        late: list[Fault] = [] if fault is None else [fault]
        try:
            if fault is not None and fault.kind is FaultKind.DELAY:
                await asyncio.sleep(fault.seconds)
            response = await self._answer(request, user, late)
            if late and late[-1] is not fault and late[-1].kind is FaultKind.DELAY:
                await asyncio.sleep(late[-1].seconds)
        except BrokenOff as broken:
            return await break_off(http, self._faults, broken.fault)
        finally:
            self._limits.end(user, time.perf_counter() - began)
        if any(one.kind is FaultKind.RESET_AFTER_WRITE for one in late):
            return cut(http)
        return response

    async def _read(self, http: web.Request) -> Request:
        if http.headers.get("Content-Encoding", "identity") != "identity":
            raise errors.encoding_not_served(http.headers["Content-Encoding"])
        try:
            body = await http.read() if http.can_read_body else b""
        except web.HTTPRequestEntityTooLarge:
            raise errors.too_large() from None
        except web.RequestPayloadError:
            raise errors.malformed("The request body cannot be read.") from None
        headers = {name.lower(): value for name, value in http.headers.items()}
        if "prefer" in headers:
            headers["prefer"] = ",".join(http.headers.getall("Prefer"))
        return request_from(http.method, http.rel_url.raw_path_qs, headers, body, client_base(http, self._base))

    def _named_keys(self, request: Request) -> list[str]:
        if request.path != "$batch":
            return webapi.named_keys(self._store, request)
        inner = (one for one in batch_requests(request) if one.method != "GET")
        return [key for one in inner for key in webapi.named_keys(self._store, one)]

    async def _answer(self, request: Request, user: str, late: list[Fault]) -> web.Response:
        commit = RequestCommit(self._webhooks, request)

        def answer_part(store: Store, part: Request) -> Reply:
            return self._answer_part(store, part, late)

        try:
            if request.path != "$batch":
                return self._send(await commit(request, lambda: webapi.answer(self._store, request)), user)
            batch = await run_batch(self._store, request, answer_part, commit)
            return self._sent(batch.status, batch.body, batch.content_type, {}, user)
        except errors.DataverseError as error:
            return self._send(error_reply(error, request), user)

    def _answer_part(self, store: Store, part: Request, late: list[Fault]) -> Reply:
        """A part of a batch, with the fault that is meant for it. Delays and lost answers wait for the end."""
        fault = None
        if self._faults.standing:
            fault = self._faults.take_for_part(part.method, part.entity_set, webapi.named_keys(store, part))
        if fault is None:
            return webapi.answer(store, part)
        if fault.kind in _BEFORE_ANYTHING:
            raise BrokenOff(fault)
        if fault.kind is not FaultKind.STATUS:
            late.append(fault)
            return webapi.answer(store, part)
        if fault.status < 400:
            return fault.reply()
        error = fault.reply().document["error"]
        raise errors.DataverseError(fault.status, error["code"], error["message"], dict(fault.reply().headers))

    def _unauthorized(self, base: str) -> web.Response:
        challenge = f"Bearer authorization_uri={base}/common/oauth2/authorize, resource_id={base}/"
        return self._sent(401, b"", None, {"WWW-Authenticate": challenge}, _ANONYMOUS)

    def _send(self, reply: Reply, user: str) -> web.Response:
        return self._sent(reply.status, reply.body, reply.content_type, reply.headers, user)

    def _sent(
        self, status: int, body: bytes, content_type: str | None, headers: Mapping[str, str], user: str
    ) -> web.Response:
        request_id = str(uuid4())
        every = {
            "OData-Version": "4.0",
            "REQ_ID": request_id,
            "x-ms-service-request-id": request_id,
            "Set-Cookie": "ARRAffinity=simulator; Path=/; HttpOnly",
            **self._limits.headers(user),
            **headers,
        }
        if content_type is not None:
            every["Content-Type"] = content_type
        return web.Response(status=status, body=body or None, headers=every)
