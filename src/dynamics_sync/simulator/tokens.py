"""The identity provider: client credentials in, bearer tokens out.

Microsoft: "Microsoft identity platform and the OAuth 2.0 client credentials flow", "Microsoft Entra error codes".
"""

import base64
import binascii
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qsl, unquote_plus
from uuid import uuid4


class TokenError(Exception):
    """Entra ID's refusal."""

    def __init__(self, status: int, error: str, number: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.error = error
        self.number = number
        self.text = text

    def document(self, now: float) -> dict[str, object]:
        """The body that says so."""
        trace_id, correlation_id = str(uuid4()), str(uuid4())
        timestamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        return {
            "error": self.error,
            "error_description": f"AADSTS{self.number}: {self.text} Trace ID: {trace_id} "
            f"Correlation ID: {correlation_id} Timestamp: {timestamp}",
            "error_codes": [self.number],
            "timestamp": timestamp,
            "trace_id": trace_id,
            "correlation_id": correlation_id,
            "error_uri": f"https://login.microsoftonline.com/error?code={self.number}",
        }


@dataclass(slots=True)
class IdentityProvider:
    """Clients and the tokens that they were given."""

    clients: dict[str, str]
    lifetime_seconds: int
    now: Callable[[], float]
    _tokens: dict[str, tuple[str, float]] = field(default_factory=dict)

    def issue(self, body: bytes, authorization: str | None) -> dict[str, object]:
        """A token for client credentials, given in the form or by HTTP Basic.

        Raises:
            TokenError: as Entra ID words it.
        """
        form = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        client, secret = _credentials(form, authorization)
        self._check(form, client, secret)
        token = _token()
        now = self.now()
        self._tokens = {known: use for known, use in self._tokens.items() if use[1] > now}
        self._tokens[token] = (client, now + self.lifetime_seconds)
        return {
            "token_type": "Bearer",
            "expires_in": self.lifetime_seconds,
            "ext_expires_in": self.lifetime_seconds,
            "access_token": token,
        }

    def user_of(self, authorization: str | None) -> str | None:
        """Whose token a request carries; None if it has none that is valid now."""
        if authorization is None or authorization[:7].lower() != "bearer ":
            return None
        user, until = self._tokens.get(authorization[7:].strip(), ("", 0.0))
        return user if until > self.now() else None

    def rotate(self, client: str, secret: str) -> None:
        """Give a client another secret."""
        self.clients[client] = secret

    def revoke_all(self) -> None:
        """Make every token so far invalid."""
        self._tokens.clear()

    def _check(self, form: Mapping[str, str], client: str, secret: str) -> None:
        if not form.get("grant_type"):
            text = "The request body must contain the following parameter: 'grant_type'."
            raise TokenError(400, "invalid_request", 900144, text)
        if form["grant_type"] != "client_credentials":
            text = "The app requested an unsupported grant type '" + form["grant_type"] + "'."
            raise TokenError(400, "unsupported_grant_type", 70003, text)
        if not client:
            text = "The request body must contain the following parameter: 'client_id'."
            raise TokenError(400, "invalid_request", 900144, text)
        if not form.get("scope", "").endswith("/.default") or " " in form["scope"].strip():
            text = f"The provided value for the input parameter 'scope' is not valid. The scope {form.get('scope', '')}"
            raise TokenError(400, "invalid_scope", 70011, f"{text} is not valid.")
        if client not in self.clients:
            text = f"Application with identifier '{client}' was not found in the directory."
            raise TokenError(400, "unauthorized_client", 700016, text)
        if not secret:
            text = "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."
            raise TokenError(401, "invalid_client", 7000218, text)
        if not hmac.compare_digest(self.clients[client].encode(), secret.encode("utf-8", "replace")):
            text = (
                "Invalid client secret provided. Ensure the secret being sent in the request is the client secret "
                f"value, not the client secret ID, for a secret added to app '{client}'."
            )
            raise TokenError(401, "invalid_client", 7000215, text)


def discovery(authority: str, tenant: str) -> dict[str, object]:
    """What `.well-known/openid-configuration` says, as far as azure-identity and msal read it."""
    root = f"{authority}/{tenant}"
    return {
        "issuer": f"{root}/v2.0",
        "authorization_endpoint": f"{root}/oauth2/v2.0/authorize",
        "token_endpoint": f"{root}/oauth2/v2.0/token",
        "jwks_uri": f"{root}/discovery/v2.0/keys",
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "response_types_supported": ["code"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }


def _credentials(form: Mapping[str, str], authorization: str | None) -> tuple[str, str]:
    if authorization is None or authorization[:6].lower() != "basic ":
        return form.get("client_id", ""), form.get("client_secret", "")
    try:
        text = base64.b64decode(authorization[6:], validate=True).decode()
    except (binascii.Error, ValueError):
        raise TokenError(401, "invalid_client", 7000216, "The credentials are malformed.") from None
    client, _, secret = text.partition(":")
    return unquote_plus(client), unquote_plus(secret)


def _token() -> str:
    """Of a JWT's form, as Entra ID's are; only its novelty counts here."""
    head = base64.urlsafe_b64encode(json.dumps({"typ": "JWT", "alg": "none"}).encode()).rstrip(b"=").decode()
    return f"{head}.{secrets.token_urlsafe(48)}.{secrets.token_urlsafe(24)}"
