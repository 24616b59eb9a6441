"""Access tokens: OAuth 2.0 client credentials (R25).

azure-identity does it for every authority with TLS (`entra.py`). It refuses plain http, which is right; a development
authority on the loopback address is served by the same form post, written out here.
"""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote, urlencode, urlsplit

from dynamics_sync.core.errors import ConfigurationError, CredentialsError
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.ports import Clock
from dynamics_sync.transport.addresses import may_carry_secrets, target_of
from dynamics_sync.transport.client import open_client
from dynamics_sync.transport.errors import NoAnswerError

TOKEN_TIMEOUT_SECONDS = 10.0
MOST_OF_ANSWER = 64 * 1024
"""An answer is read no further than this."""

RENEWAL_MARGIN_SECONDS = 300.0
"""A token is renewed this long before it expires, or after nine tenths of a shorter life."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The app registration that dynamics-sync acts as."""

    tenant_id: str
    client_id: str
    client_secret: str = field(repr=False)
    authority_url: str = "https://login.microsoftonline.com"
    ca_file: str | None = None
    """A PEM file of the authorities to trust, instead of the system's."""


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and its life in seconds from when it was asked for."""

    value: str = field(repr=False)
    lifetime_seconds: float


class TokenRequest(Protocol):
    """Asks the identity provider for a new token."""

    async def __call__(self, scope: str) -> Token: ...


class Tokens:
    """One access token, shared by all requests; renewed early, and once however many tasks ask.

    Args:
        pause_seconds: how long a refusal is remembered, so that a wrong secret does not hammer the identity provider.
    """

    def __init__(self, request: TokenRequest, scope: str, clock: Clock, pause_seconds: float = 30.0) -> None:
        self._request = request
        self._scope = scope
        self._clock = clock
        self.pause_seconds = pause_seconds
        self._token: Token | None = None
        self._renew_at = 0.0
        self._refusal: CredentialsError | None = None
        self._refused_until = 0.0
        self._lock = asyncio.Lock()

    async def get(self) -> str:
        """A token that Dynamics should accept.

        Raises:
            CredentialsError: none can be had; for a while the answer stays the same without asking again.
        """
        if self._token is not None and self._clock.monotonic() < self._renew_at:
            return self._token.value
        async with self._lock:
            if self._token is not None and self._clock.monotonic() < self._renew_at:
                return self._token.value
            return await self._renew()

    def forget(self, value: str) -> None:
        """Dynamics refused this token: ask for another one next time, unless that has happened already."""
        if self._token is not None and self._token.value == value:
            self._token = None

    async def _renew(self) -> str:
        now = self._clock.monotonic()
        if self._refusal is not None and now < self._refused_until:
            raise self._refusal
        try:
            token = await self._request(self._scope)
        except CredentialsError as refusal:
            self._refusal, self._refused_until = refusal, self._clock.monotonic() + self.pause_seconds
            emit("token.unavailable", "error", retry_after_seconds=self.pause_seconds)
            raise
        self._token, self._refusal = token, None
        self._renew_at = now + token.lifetime_seconds - min(RENEWAL_MARGIN_SECONDS, token.lifetime_seconds / 10)
        return token.value


def token_request(credentials: Credentials, clock: Clock) -> TokenRequest:
    """The way to the authority: azure-identity, or a form post to a plain http authority on the loopback address.

    Raises:
        ConfigurationError: the authority is neither https nor on this machine.
    """
    if not may_carry_secrets(credentials.authority_url):
        raise ConfigurationError(
            "DYNAMICS_SYNC_AUTHORITY_URL must be an https:// address: the client secret is sent there. Plain http:// "
            "is taken only for this machine itself (127.0.0.1, ::1, localhost)."
        )
    if urlsplit(credentials.authority_url).scheme == "https":
        from dynamics_sync.dynamics.entra import EntraRequest  # slow to import, and only those who send need it

        return EntraRequest(credentials, clock)
    return LoopbackRequest(credentials)


class LoopbackRequest:
    """The same form post by hand, for a development authority on this machine."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def __call__(self, scope: str) -> Token:
        credentials = self._credentials
        address = f"{credentials.authority_url.rstrip('/')}/{quote(credentials.tenant_id)}/oauth2/v2.0/token"
        form = {
            "grant_type": "client_credentials",
            "client_id": credentials.client_id,
            "client_secret": credentials.client_secret,
            "scope": scope,
        }
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode(form).encode()
        try:
            async with open_client(address, None, TOKEN_TIMEOUT_SECONDS, connections=1) as client:
                response = await client.request(
                    "POST", target_of(address), headers=headers, body=body, enough=MOST_OF_ANSWER
                )
            if response.status in REFUSAL_STATUSES:
                raise CredentialsError(REFUSED)
            document = json.loads(response.body)
            return Token(str(document["access_token"]), float(document["expires_in"]))
        except (NoAnswerError, ValueError, TypeError, KeyError, RecursionError):
            raise CredentialsError(UNREACHABLE) from None


REFUSAL_STATUSES = (400, 401)
"""What Entra ID answers to wrong credentials. azure-identity raises the same error for any other answer, too."""

REFUSED = (
    "The identity provider refused the client id and secret. Check DYNAMICS_SYNC_TENANT_ID, DYNAMICS_SYNC_CLIENT_ID "
    "and DYNAMICS_SYNC_CLIENT_SECRET; a secret that has run out is renewed in Entra ID."
)
UNREACHABLE = (
    "The identity provider cannot be reached, or answers with something that is no token. Check "
    "DYNAMICS_SYNC_AUTHORITY_URL and DYNAMICS_SYNC_TENANT_ID."
)
UNTRUSTED = "The identity provider's certificate is not trusted. Name the authority to trust in DYNAMICS_SYNC_CA_FILE."
