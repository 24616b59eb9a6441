"""The identity provider: client credentials in, bearer tokens out (Entra ID: "OAuth 2.0 client credentials flow")."""

import base64
import binascii
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_plus
from uuid import uuid4


@dataclass(frozen=True, slots=True)
class TokenError(Exception):
    """Entra ID's refusal."""

    status: int
    error: str
    number: int
    text: str

    def document(self) -> dict[str, object]:
        return {
            "error": self.error,
            "error_description": f"AADSTS{self.number}: {self.text}",
            "error_codes": [self.number],
            "trace_id": str(uuid4()),
            "correlation_id": str(uuid4()),
        }


@dataclass(slots=True)
class IdentityProvider:
    """Clients and the tokens that they were given."""

    clients: dict[str, str]
    lifetime_seconds: int
    now: Callable[[], float]
    _tokens: dict[str, tuple[str, float]] = field(default_factory=dict)

    def issue(self, form: Mapping[str, str], authorization: str | None) -> dict[str, object]:
        """A token for client credentials, given in the form or by HTTP Basic.

        Raises:
            TokenError: as Entra ID words it.
        """
        client, secret = _credentials(form, authorization)
        if not form.get("grant_type"):
            raise TokenError(400, "invalid_request", 900144, "The request body must contain: 'grant_type'.")
        if form["grant_type"] != "client_credentials":
            raise TokenError(400, "unsupported_grant_type", 70003, "The app requested an unsupported grant type.")
        if not form.get("scope", "").endswith("/.default"):
            raise TokenError(
                400, "invalid_scope", 70011, "The provided value for the input parameter 'scope' is not valid."
            )
        if client not in self.clients:
            raise TokenError(400, "unauthorized_client", 700016, "Application was not found in the directory.")
        if not secrets.compare_digest(self.clients[client].encode(), secret.encode()):
            raise TokenError(401, "invalid_client", 7000215, "Invalid client secret provided.")
        token = _token()
        self._tokens = {known: use for known, use in self._tokens.items() if use[1] > self.now()}
        self._tokens[token] = (client, self.now() + self.lifetime_seconds)
        return {
            "token_type": "Bearer",
            "expires_in": self.lifetime_seconds,
            "ext_expires_in": self.lifetime_seconds,
            "access_token": token,
        }

    def user_of(self, authorization: str | None) -> str | None:
        """Whose token a request carries; None if it has none that is valid now."""
        scheme, _, token = (authorization or "").partition(" ")
        user, until = self._tokens.get(token.strip(), ("", 0.0))
        return user if scheme.lower() == "bearer" and until > self.now() else None

    def rotate(self, client: str, secret: str) -> None:
        """Give a client another secret."""
        self.clients[client] = secret

    def revoke_all(self) -> None:
        """Make every token so far invalid."""
        self._tokens.clear()


def discovery(authority: str, tenant: str) -> dict[str, object]:
    """What `.well-known/openid-configuration` says."""
    root = f"{authority}/{tenant}"
    return {
        "issuer": f"{root}/v2.0",
        "authorization_endpoint": f"{root}/oauth2/v2.0/authorize",
        "token_endpoint": f"{root}/oauth2/v2.0/token",
        "jwks_uri": f"{root}/discovery/v2.0/keys",
        "response_types_supported": ["code"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }


def _credentials(form: Mapping[str, str], authorization: str | None) -> tuple[str, str]:
    if authorization is not None and authorization.lower().startswith("basic "):
        try:
            text = base64.b64decode(authorization[6:], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise TokenError(401, "invalid_client", 7000216, "The credentials are malformed.") from None
        client, _, secret = text.partition(":")
        return unquote_plus(client), unquote_plus(secret)
    return form.get("client_id", ""), form.get("client_secret", "")


def _token() -> str:
    """Of a JWT's form, as Entra ID's are; only its novelty counts here."""
    head = base64.urlsafe_b64encode(json.dumps({"typ": "JWT", "alg": "none"}).encode()).rstrip(b"=").decode()
    return f"{head}.{secrets.token_urlsafe(48)}.{secrets.token_urlsafe(24)}"
