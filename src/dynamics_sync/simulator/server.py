"""The simulator as a server."""

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from dynamics_sync.simulator.config import SimulatorConfig
from dynamics_sync.simulator.connections import break_off, client_base
from dynamics_sync.simulator.control import Control
from dynamics_sync.simulator.faults import FaultKind, Faults
from dynamics_sync.simulator.limits import LimitKeeper
from dynamics_sync.simulator.portal import Portal
from dynamics_sync.simulator.request_log import LoggedRequests
from dynamics_sync.simulator.service import WebApi
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tls import make_certificate
from dynamics_sync.simulator.tokens import IdentityProvider, TokenError, discovery
from dynamics_sync.simulator.webhooks.pipeline import Webhooks
from dynamics_sync.simulator.webhooks.rows import system_tables

MAX_BODY_BYTES = 116 * 1024 * 1024
"""Microsoft: "Use bulk operation messages", on message size limits."""


class Simulator:
    """A local Dataverse: `async with Simulator(config) as simulator: simulator.url`.

    `url` is the address of the environment and of the identity provider; it is known once the simulator has started.
    """

    def __init__(self, config: SimulatorConfig) -> None:
        self.url = ""
        self.ca_file = config.ca_file if config.tls else None
        """The certificate (PEM) to trust; None without TLS."""
        self.unforeseen: list[Exception] = []
        """Mistakes of the simulator's own: each was answered with 500. It should stay empty."""
        self._config = config
        self._store = Store(config.tables, config.now)
        self._identities = IdentityProvider(dict(config.clients), config.token_lifetime_seconds, config.now)
        self._limits = LimitKeeper(config.limits, config.now)
        self._faults = Faults(config.seed)
        self._portal = Portal(config.now, self._faults)
        self._log: LoggedRequests = deque(maxlen=config.logged_requests)
        self._webhooks = Webhooks(
            self._store,
            self._faults,
            config.now,
            config.webhook_timeout_seconds,
            config.logged_deliveries,
            self.unforeseen,
        )
        self._store.system_tables = system_tables(self._webhooks)
        self._runner: web.AppRunner | None = None

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
            OSError: the port is taken, or the authority's file cannot be written.
        """
        context = make_certificate(self.ca_file) if self.ca_file is not None else None
        application = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_last_resort(self.unforeseen)])
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, auto_decompress=False)
        application.router.add_route("*", "/{tenant}/oauth2/v2.0/token", self._token)
        application.router.add_get("/{tenant}/v2.0/.well-known/openid-configuration", self._discovery)
        application.router.add_post("/portal/v1/events", self._portal.events)
        application.router.add_get("/portal/mentors", self._portal.mentors)
        control = Control(self._store, self._faults, self._identities, self._log, self._portal, self._webhooks)
        application.router.add_route("*", "/_simulator/{path:.*}", control.handle)
        application.router.add_route("*", "/api/data/{path:.*}", self._web_api)
        application.router.add_route("*", "/{path:.*}", self._elsewhere)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._config.host, self._config.port, ssl_context=context).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self.url = f"{'http' if context is None else 'https'}://{self._config.host}:{runner.addresses[0][1]}"
        self._service = WebApi(
            self._store,
            self._identities,
            self._limits,
            self._faults,
            self._log,
            self._webhooks,
            self._config.now,
            self.url,
        )
        self._webhooks.start(self.url)

    async def stop(self) -> None:
        """Cut all connections and stop listening. What is stored stays, so that it can start again."""
        self._faults.lift()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self._webhooks.stop()

    async def _web_api(self, http: web.Request) -> web.StreamResponse:
        return await self._service.handle(http)

    async def _elsewhere(self, http: web.Request) -> web.StreamResponse:
        message = (
            f"There is nothing at {http.path}. The Web API is at /api/data/v9.2, the portal at /portal, the simulator "
            "at /_simulator."
        )
        return _problem(404, message)

    async def _token(self, http: web.Request) -> web.StreamResponse:
        fault = self._faults.take_for_token()
        try:
            if fault is not None and fault.kind is FaultKind.STATUS:
                after = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
                body = TokenError(fault.status, "temporarily_unavailable", 90033, "A transient error has occurred.")
                return web.json_response(body.document(self._config.now()), status=fault.status, headers=after)
            if fault is not None and fault.kind is not FaultKind.DELAY:
                return await break_off(http, self._faults, fault)
            if fault is not None:
                await asyncio.sleep(fault.seconds)
            if http.method != "POST":
                raise TokenError(400, "invalid_request", 900561, "The endpoint only accepts POST requests.")
            token = self._identities.issue(await http.read(), http.headers.get("Authorization"))
            return web.json_response(token, headers={"Cache-Control": "no-store, no-cache"})
        except TokenError as error:
            return web.json_response(error.document(self._config.now()), status=error.status)

    async def _discovery(self, http: web.Request) -> web.StreamResponse:
        return web.json_response(discovery(client_base(http, self.url), http.match_info["tenant"]))


def _last_resort(unforeseen: list[Exception]) -> Middleware:
    """Whatever was not foreseen is answered in Dataverse's form, and kept for tests to see."""

    @web.middleware
    async def answer_mistakes(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.RequestPayloadError:
            return _problem(400, "The request body cannot be read.")
        except web.HTTPException as error:
            return _problem(error.status, error.reason)
        except Exception as error:
            unforeseen.append(error)
            return _problem(500, "An unexpected error occurred.", "0x80040216")

    return answer_mistakes


def _problem(status: int, message: str, code: str = "") -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


async def run_simulator(config: SimulatorConfig, started: Callable[[Simulator], None] | None = None) -> None:
    """Serve until cancelled. `started` is called once the address is known.

    Raises:
        OSError: the port is taken.
    """
    async with Simulator(config) as simulator:
        if started is not None:
            started(simulator)
        await asyncio.Event().wait()
