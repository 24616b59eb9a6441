"""The identity provider, and what the Web API says to those who have no token."""

import base64
import ssl
from pathlib import Path

import aiohttp
import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.core.pipeline.transport import AioHttpTransport
from azure.identity.aio import ClientSecretCredential

from dynamics_sync.simulator import Simulator, SimulatorConfig

from .wire import TABLES, Answer, Client, Clock, StartClient


async def ask(client: Client, authorization: str | None = None, **changes: str | None) -> Answer:
    form = {"grant_type": "client_credentials", "client_id": "demo", "client_secret": "demo", "scope": "x/.default"}
    form = {name: value for name, value in (form | changes).items() if value is not None}
    headers = {"Authorization": authorization} if authorization else {}
    address = f"{client.url}/any-tenant/oauth2/v2.0/token"
    return await client.send_anything("POST", address, data=form, headers=headers)


async def test_a_token_by_form_and_by_basic(client: Client) -> None:
    by_form = await ask(client)
    basic = "Basic " + base64.b64encode(b"demo:demo").decode()
    by_basic = await ask(client, basic, client_id=None, client_secret=None)
    for answer in (by_form, by_basic):
        assert answer.status == 200
        assert answer.document["token_type"] == "Bearer"
        assert answer.document["expires_in"] == answer.document["ext_expires_in"] == 3599
    assert by_form.document["access_token"] != by_basic.document["access_token"]


@pytest.mark.parametrize(
    ("changes", "status", "error", "number"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client", 7000215),
        ({"client_secret": None}, 401, "invalid_client", 7000218),
        ({"client_id": "nobody"}, 400, "unauthorized_client", 700016),
        ({"client_id": None}, 400, "invalid_request", 900144),
        ({"grant_type": None}, 400, "invalid_request", 900144),
        ({"grant_type": "password"}, 400, "unsupported_grant_type", 70003),
        ({"scope": None}, 400, "invalid_scope", 70011),
        ({"scope": "x/.default y/.default"}, 400, "invalid_scope", 70011),
    ],
)
async def test_entras_refusals(
    client: Client, changes: dict[str, str | None], status: int, error: str, number: int
) -> None:
    answer = await ask(client, **changes)
    assert (answer.status, answer.document["error"], answer.document["error_codes"]) == (status, error, [number])
    assert answer.document["error_description"].startswith(f"AADSTS{number}: ")
    assert {"timestamp", "trace_id", "correlation_id"} <= set(answer.document)


async def test_malformed_credentials(client: Client) -> None:
    assert (await ask(client, "Basic !!!")).document["error_codes"] == [7000216]
    address = f"{client.url}/t/oauth2/v2.0/token"
    assert (await client.send_anything("GET", address)).document["error_codes"] == [900561]
    headers = {"Content-Type": "multipart/form-data"}
    assert (await client.send_anything("POST", address, data=b"\xff", headers=headers)).status == 400


@pytest.mark.parametrize("authorization", [None, "", "Bearer nonsense", "Basic ZGVtbzpkZW1v", "Bearer"])
async def test_no_answer_without_a_token(client: Client, authorization: str | None) -> None:
    client.token = None
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await client("GET", "WhoAmI", **headers)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith(f"Bearer authorization_uri={client.url}/")


async def test_tokens_expire(start: StartClient, clock: Clock) -> None:
    client = await start(now=clock, token_lifetime_seconds=60)
    clock.seconds += 59
    assert (await client("GET", "WhoAmI")).status == 200
    clock.seconds += 1
    assert (await client("GET", "WhoAmI")).status == 401
    await client.sign_in()
    assert (await client("GET", "WhoAmI")).status == 200


async def test_rotating_a_secret_and_revoking_tokens(client: Client) -> None:
    assert (await client.control("POST", "credentials", {"client_secret": "new"})).status == 204
    assert (await client("GET", "WhoAmI")).status == 200, "a token outlives the secret that it was got with"
    assert (await client.sign_in("demo")).status == 401
    assert (await client.control("POST", "credentials", {"revoke": True})).status == 204
    assert (await client("GET", "WhoAmI")).status == 401
    await client.sign_in("new")
    assert (await client("GET", "WhoAmI")).status == 200


async def test_azure_identity_gets_a_token_over_tls(tmp_path: Path) -> None:
    ca_file = tmp_path / "certificates" / "ca.pem"
    async with Simulator(SimulatorConfig(TABLES, tls=True, ca_file=ca_file)) as simulator:
        assert simulator.url.startswith("https://127.0.0.1:")
        assert simulator.ca_file == ca_file

        def credential(secret: str) -> ClientSecretCredential:
            connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca_file))
            return ClientSecretCredential(
                "some-tenant",
                "demo",
                secret,
                authority=simulator.url,
                disable_instance_discovery=True,
                transport=AioHttpTransport(session=aiohttp.ClientSession(connector=connector)),
                retry_total=0,
            )

        async with credential("demo") as right:
            token = await right.get_token(f"{simulator.url}/.default")
        async with credential("wrong") as wrong:
            with pytest.raises(ClientAuthenticationError, match="AADSTS7000215"):
                await wrong.get_token(f"{simulator.url}/.default")
        async with aiohttp.ClientSession() as session:
            headers = {"Authorization": f"Bearer {token.token}"}
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get(f"{simulator.url}/api/data/v9.2/WhoAmI", headers=headers)
        assert simulator.unforeseen == []
