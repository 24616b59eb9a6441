"""The simulator as a server: sockets, tokens, limits and faults around the Web API."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from aiohttp import web

from dynamics_sync.simulator import errors, webapi
from dynamics_sync.simulator.addresses import split_path
from dynamics_sync.simulator.batch import run_batch
from dynamics_sync.simulator.control import Control, LoggedRequest
from dynamics_sync.simulator.faults import Fault, FaultKind, Faults
from dynamics_sync.simulator.limits import LimitKeeper, Limits
from dynamics_sync.simulator.messages import Reply, Request, error_reply, request_from
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import Table
from dynamics_sync.simulator.tls import make_certificate
from dynamics_sync.simulator.tokens import IdentityProvider, TokenError, discovery

MAX_BODY_BYTES = 120 * 1024 * 1024
"""Microsoft: "Use bulk operation messages", message size limits."""

GARBLED = "<!DOCTYPE html><html><head><title>Sign in to your account</title></head><body>Sign in</body></html>"


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """What the simulator is made of."""

    tables: tuple[Table, ...]
    host: str = "127.0.0.1"
    port: int = 0
    """0 for any free one."""
    clients: Mapping[str, str] = field(default_factory=lambda: {"demo": "demo"})
    token_lifetime_seconds: int = 3599
    limits: Limits = field(default_factory=Limits)
    ca_file: Path | None = None
    """Serve TLS, and write the authority to trust to this file."""
    seed: int = 0
    """For faults that meet a share of the requests."""
    now: Callable[[], float] = time.time


class Simulator:
    """A local Dataverse: `async with Simulator(config) as simulator: simulator.url`."""

    def __init__(self, config: SimulatorConfig) -> None:
        self._config = config
        self._now = config.now
        self._store = Store(config.tables, config.now)
        self._identities = IdentityProvider(dict(config.clients), config.token_lifetime_seconds, config.now)
        self._limits = LimitKeeper(config.limits, config.now)
        self._faults = Faults(config.seed)
        self._control = Control(self._store, self._faults, self._identities)
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(self._control.routes())
        app.router.add_post("/{tenant}/oauth2/v2.0/token", self._token)
        app.router.add_get("/{tenant}/v2.0/.well-known/openid-configuration", self._discovery)
        app.router.add_route("*", "/{path:.*}", self._web_api)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        context = None if self._config.ca_file is None else make_certificate(self._config.ca_file)
        site = web.TCPSite(self._runner, self._config.host, self._config.port, ssl_context=context)
        try:
            await site.start()
        except OSError:
            await self._runner.cleanup()
            raise
        port = self._runner.addresses[0][1]
        self.url = f"{'http' if context is None else 'https'}://{self._config.host}:{port}"

    async def stop(self) -> None:
        """Cut all connections and stop listening."""
        self._faults.lift()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _token(self, request: web.Request) -> web.StreamResponse:
        fault = self._faults.take_token()
        if fault is not None and (reply := await self._suffer(fault, request)) is not None:
            return reply
        form = {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
        try:
            return web.json_response(self._identities.issue(form, request.headers.get("Authorization")))
        except TokenError as error:
            return web.json_response(error.document(), status=error.status)

    async def _discovery(self, request: web.Request) -> web.Response:
        return web.json_response(discovery(self.url, request.match_info["tenant"]))

    async def _web_api(self, http: web.Request) -> web.StreamResponse:
        """One Web API request, noted in the log from its arrival to its answer."""
        body = await http.read()
        noted = LoggedRequest(self._now(), http.method, http.path, "")
        self._control.requests.append(noted)
        try:
            request = self._request(http, body)
        except errors.DataverseError as error:
            return self._finish(noted, self._sent(error_reply(error), {}))
        noted.entity_set = request.path.partition("(")[0].partition("/")[0]
        fault = self._faults.take(http.method, noted.entity_set, _named_keys(request))
        if fault is not None and fault.kind is not FaultKind.RESET_AFTER_WRITE:
            noted.keys = _named_keys(request)
            if (reply := await self._suffer(fault, http)) is not None:
                return self._finish(noted, reply)
        response = self._answer(http, request, noted)
        if fault is not None and fault.kind is FaultKind.RESET_AFTER_WRITE:
            return self._finish(noted, _cut(http))
        return self._finish(noted, response)

    def _request(self, http: web.Request, body: bytes) -> Request:
        headers = {name.lower(): value for name, value in http.headers.items()}
        return request_from(http.method, http.rel_url.raw_path_qs, headers, body, self.url)

    def _answer(self, http: web.Request, request: Request, noted: LoggedRequest) -> web.Response:
        user = self._identities.user_of(http.headers.get("Authorization"))
        if user is None:
            return self._unauthorized()
        began = time.perf_counter()
        try:
            self._limits.begin(user)
        except errors.DataverseError as error:
            return self._sent(error_reply(error), self._limits.headers(user))
        try:
            if request.path == "$batch":
                batch = run_batch(self._store, request, webapi.answer)
                headers = {**_STANDARD, **self._limits.headers(user), "Content-Type": batch.content_type}
                return web.Response(status=batch.status, body=batch.body, headers=headers)
            return self._sent(webapi.answer(self._store, request), self._limits.headers(user))
        except errors.DataverseError as error:
            return self._sent(error_reply(error), self._limits.headers(user))
        finally:
            noted.keys = request.keys or _named_keys(request)
            self._limits.end(user, time.perf_counter() - began)

    def _unauthorized(self) -> web.Response:
        authority = f"{self.url}/common/oauth2/authorize"
        challenge = f"Bearer authorization_uri={authority}, resource_id={self.url}/"
        return web.Response(status=401, headers={**_STANDARD, "WWW-Authenticate": challenge})

    def _sent(self, reply: Reply, headers: Mapping[str, str]) -> web.Response:
        all_headers = {**_STANDARD, "x-ms-service-request-id": str(uuid4()), **headers, **reply.headers}
        if reply.document is not None:
            all_headers["Content-Type"] = "application/json; odata.metadata=minimal"
        return web.Response(status=reply.status, body=reply.body or None, headers=all_headers)

    def _finish(self, noted: LoggedRequest, response: web.StreamResponse) -> web.StreamResponse:
        noted.done_at = self._now()
        noted.status = None if isinstance(response, _Cut) else response.status
        return response

    async def _suffer(self, fault: Fault, http: web.Request) -> web.StreamResponse | None:
        """What the client sees of a fault; None if the request goes on."""
        match fault.kind:
            case FaultKind.DELAY:
                await asyncio.sleep(fault.seconds)
                return None
            case FaultKind.TIMEOUT:
                await self._faults.lifted.wait()
                return _cut(http)
            case FaultKind.RESET:
                return _cut(http)
            case FaultKind.GARBLED:
                return web.Response(status=200, text=GARBLED, content_type="text/html")
        code, message = errors.STATUS_ERRORS.get(fault.status, ("", "The service is unavailable."))
        after = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
        if fault.status < 400:
            return web.Response(status=fault.status, headers=after)
        error = errors.DataverseError(fault.status, code if fault.code is None else fault.code, message, after)
        return self._sent(error_reply(error), {})


class _Cut(web.Response):
    """Stands for an answer that nobody gets."""


def _cut(http: web.Request) -> _Cut:
    if http.transport is not None:
        http.transport.abort()
    return _Cut(status=500)


def _named_keys(request: Request) -> list[str]:
    """The key in the address, for faults that meet one record."""
    try:
        key = split_path(request.path)[0].key
    except errors.DataverseError:
        return []
    if key is None:
        return []
    return [key.partition("=")[2].strip("'") or key]


_STANDARD = {
    "OData-Version": "4.0",
    "REQ_ID": "00000000-0000-4000-8000-000000000000",
    "Set-Cookie": "ARRAffinity=simulator; Path=/; HttpOnly",
}
