"""Access tokens from a real identity provider: over TLS by azure-identity, on this machine by a form post."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from dynamics_sync import app, sandbox
from dynamics_sync.core.errors import ConfigurationError, CredentialsError
from dynamics_sync.dynamics import tokens
from dynamics_sync.dynamics.checks import check_dynamics
from dynamics_sync.dynamics.tokens import Credentials, Tokens, token_request
from dynamics_sync.simulator import Simulator, SimulatorConfig
from dynamics_sync.simulator.tls import make_certificate
from dynamics_sync.sync.clock import SystemClock
from support.clock import FakeClock
from support.commands import worker_process
from support.engine import ENTITY_SET, Stage, engine_settings, stage

TABLES = sandbox.simulator_tables(app.read_mapping(None))
SECRET = "s3cret~value"
HOUR = 3600.0


class MovableTime:
    """The simulator's time, which a test can move."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def over_tls(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {"tls": True, "ca_file": tmp_path / "ca.pem", "clients": {"demo": "demo"}} | more


def credentials(url: str, ca_file: Path | None, secret: str = SECRET) -> Credentials:
    return Credentials("demo", "demo", secret, url, str(ca_file) if ca_file else None)


async def statuses(on: Stage) -> list[int]:
    return [noted["status"] for noted in await on.requests()]


async def test_a_worker_sends_over_tls(database: str, tmp_path: Path) -> None:
    async with (
        stage(database, working=False, simulated=over_tls(tmp_path)) as on,
        worker_process(on, database, tmp_path) as worker,
    ):
        assert on.simulator.url.startswith("https://")
        key = await on.issue()
        await on.settled()
        assert await on.record(key) is not None
        assert (await worker.health("ready"))[0] == 200


async def test_revoked_tokens_are_renewed_without_a_trace_in_the_queue(database: str, tmp_path: Path) -> None:
    async with (
        stage(database, working=False, simulated=over_tls(tmp_path)) as on,
        worker_process(on, database, tmp_path),
    ):
        await on.issue()
        await on.settled()
        await on.credentials(revoke=True)
        await on.issue()
        await on.settled()
        assert await statuses(on) == [204, 401, 204]
        assert await on.queue() == []


async def test_a_token_that_ran_out_earlier_than_promised_is_renewed(database: str, tmp_path: Path) -> None:
    now = MovableTime()
    async with stage(database, simulated=over_tls(tmp_path, now=now)) as on:
        await on.issue()
        await on.settled()
        now.ahead = 2 * HOUR
        await on.issue()
        await on.settled()
        assert await statuses(on) == [204, 401, 204]
        assert await on.queue() == []


async def test_a_new_token_that_is_refused_too_queues_the_record(database: str, tmp_path: Path) -> None:
    async with stage(database, simulated=over_tls(tmp_path)) as on:
        await on.fault(kind="status", status=401, entity_set=ENTITY_SET)
        await on.issue()
        await on.settled()
        assert await statuses(on) == [401, 401]
        assert await on.queue() == [("requires_investigation", 1, "unauthorized", "0x80072560")]
        assert (await on.engine.stores.breaker.state()).value == "closed"


async def test_a_rotated_secret_is_waited_for_and_nothing_else_is_sent(database: str, tmp_path: Path) -> None:
    async with (
        stage(database, working=False, simulated=over_tls(tmp_path)) as on,
        worker_process(on, database, tmp_path, token_pause_seconds="0.3") as worker,
    ):
        await on.issue()
        await on.settled()
        await on.credentials(client_secret=SECRET, revoke=True)
        key = await on.issue()
        await worker.says("token.unavailable", times=3)

        ready = await worker.answers("ready", 503)
        assert {name: check["status"] for name, check in ready["checks"].items()} == {
            "database": "pass",
            "schema": "pass",
            "token": "fail",
        }
        assert "DYNAMICS_SYNC_CLIENT_SECRET" in ready["checks"]["token"]["detail"]
        assert (await worker.health("live"))[0] == 200
        _, circuit = await worker.health("circuit")
        assert (circuit["state"], circuit["failure_count"]) == ("closed", 0)
        assert await statuses(on) == [204, 401]
        assert await on.rows("select record_key, attempts from dynamics_sync.outbox") == [(key, 0)]

        await on.credentials(client_secret="demo")
        await on.settled()
        assert await on.record(key) is not None
        assert await on.queue() == []
        assert (await worker.health("ready"))[0] == 200
        assert "demo" not in worker.log.read_text()


async def test_a_worker_without_a_token_rests_between_tries(database: str) -> None:
    async with stage(database, poll_seconds=600) as on:
        await on.credentials(client_secret=SECRET)
        with capture_logs() as logs:
            await on.issue()
            async with asyncio.timeout(10):
                while not any(log["event"] == "token.unavailable" for log in logs):
                    await asyncio.sleep(0.02)
        last_transaction = "select pg_current_xact_id()::text::bigint"
        before = (await on.rows(last_transaction))[0][0]
        await asyncio.sleep(0.5)
        assert (await on.rows(last_transaction))[0][0] - before < 20


@pytest.fixture(params=["http", "https"])
async def provider(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Simulator]:
    """An identity provider, without and with TLS."""
    tls = request.param == "https"
    config = SimulatorConfig(TABLES, clients={"demo": SECRET}, tls=tls, ca_file=tmp_path / "ca.pem" if tls else None)
    async with Simulator(config) as simulator:
        yield simulator
        assert simulator.unforeseen == []


def tokens_of(url: str, ca_file: Path | None, secret: str = SECRET, pause_seconds: float = 30.0) -> Tokens:
    clock = SystemClock()
    return Tokens(token_request(credentials(url, ca_file, secret), clock), f"{url}/.default", clock, pause_seconds)


async def test_many_who_ask_at_once_share_one_token(provider: Simulator) -> None:
    shared = tokens_of(provider.url, provider.ca_file)
    assert len(set(await asyncio.gather(*(shared.get() for _ in range(20))))) == 1


async def test_a_forgotten_token_is_not_given_again(provider: Simulator) -> None:
    shared = tokens_of(provider.url, provider.ca_file)
    first = await shared.get()
    shared.forget(first)
    second = await shared.get()
    shared.forget(first)
    assert first != second == await shared.get()


async def test_a_token_is_renewed_before_it_expires(tmp_path: Path) -> None:
    clock = FakeClock()
    config = SimulatorConfig(TABLES, clients={"demo": SECRET}, now=lambda: clock.now().timestamp())
    async with Simulator(config) as simulator:
        request = token_request(credentials(simulator.url, None), clock)
        shared = Tokens(request, f"{simulator.url}/.default", clock)
        first = await shared.get()
        clock.advance(3000)
        assert await shared.get() == first
        clock.advance(350)
        assert await shared.get() != first


async def test_a_wrong_secret_is_told_without_being_quoted(provider: Simulator) -> None:
    with pytest.raises(CredentialsError, match="DYNAMICS_SYNC_CLIENT_SECRET") as refusal:
        await tokens_of(provider.url, provider.ca_file, "wrong-s3cret").get()
    assert "wrong-s3cret" not in str(refusal.value)


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 503, "retry_after": 60},
        {"kind": "status", "status": 429, "retry_after": 60},
        {"kind": "garbled"},
        {"kind": "reset"},
        {"kind": "timeout"},
    ],
    ids=lambda fault: str(fault.get("status", fault["kind"])),
)
async def test_a_provider_in_trouble_is_told_remembered_and_asked_again(
    provider: Simulator, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "TOKEN_TIMEOUT_SECONDS", 0.5)
    shared = tokens_of(provider.url, provider.ca_file, pause_seconds=0.2)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as http:
        await http.post(f"{provider.url}/_simulator/faults", json=fault | {"path": "token"})
        with pytest.raises(CredentialsError, match="cannot be reached"):
            await shared.get()
        await http.delete(f"{provider.url}/_simulator/faults")
    with pytest.raises(CredentialsError, match="cannot be reached"):
        await shared.get()
    async with asyncio.timeout(10):
        while True:
            try:
                assert await shared.get()
                return
            except CredentialsError:
                await asyncio.sleep(0.02)


Handler = Callable[[web.Request], Awaitable[web.Response]]


@asynccontextmanager
async def server(handler: Handler, ca_file: Path | None = None) -> AsyncIterator[str]:
    """Any web server on this machine."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        context = make_certificate(ca_file) if ca_file else None
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"{'https' if ca_file else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
async def test_no_redirect_takes_the_secret_elsewhere(tmp_path: Path, status: int, tls: bool) -> None:
    reached: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        reached.append(await request.text())
        return web.json_response({"access_token": "x", "expires_in": 3600, "token_type": "Bearer"})

    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(server(elsewhere))

        async def redirect(request: web.Request) -> web.Response:
            return web.Response(status=status, headers={"Location": f"{other}{request.path}"})

        ca_file = tmp_path / "ca.pem" if tls else None
        authority = await stack.enter_async_context(server(redirect, ca_file))
        with pytest.raises(CredentialsError):
            await tokens_of(authority, ca_file).get()
    assert reached == []


async def test_a_dynamics_that_redirects_gets_no_second_request_and_is_no_success(
    database: str, tmp_path: Path
) -> None:
    """A log-in page (R27). The token does not follow the redirect either."""
    reached: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        reached.append(request.path)
        return web.Response(status=204)

    async with server(elsewhere) as other:

        async def redirect(request: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": f"{other}/login"})

        async with server(redirect, tmp_path / "ca.pem") as dynamics, stage(database, working=False) as on:
            settings = engine_settings(database, on.simulator.url, ca_file=tmp_path / "ca.pem")
            settings = settings.model_copy(update={"dynamics_url": dynamics})
            async with app.open_engine(settings, database) as engine:
                with pytest.raises(ConfigurationError, match="is not the Dataverse Web API"):
                    await check_dynamics(engine.gateway)
                working = asyncio.create_task(app.run_worker(engine))
                await on.issue()
                await on.settled()
                engine.worker.stop()
                await working
            assert await on.queue() == [("requires_investigation", 1, "contract_mismatch", "contract_mismatch")]
    assert reached == []


async def test_a_tenant_that_cannot_be_one_is_told(tmp_path: Path) -> None:
    clock = SystemClock()
    request = token_request(Credentials("no tenant!", "demo", SECRET, "https://127.0.0.1:1"), clock)
    with pytest.raises(CredentialsError, match="DYNAMICS_SYNC_TENANT_ID"):
        await request("https://127.0.0.1:1/.default")
