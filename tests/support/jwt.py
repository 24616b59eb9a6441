"""Tokens of Supabase's shape, and forged ones."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from uuid import UUID

JWT_SECRET = "a secret of the tests, at least 32 bytes long"


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _segment(content: Mapping[str, object]) -> str:
    return _text(json.dumps(content).encode())


def token(role: str, *, secret: str = JWT_SECRET, lives_seconds: float = 3600, **claims: object) -> str:
    """A signed token (HS256) for a role of the database."""
    payload = {"aud": "authenticated", "role": role, "exp": int(time.time() + lives_seconds), **claims}
    signed = f"{_segment({'alg': 'HS256', 'typ': 'JWT'})}.{_segment(payload)}"
    return f"{signed}.{_text(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))}"


def user_token(user: UUID, **claims: object) -> str:
    """What the app of somebody who is signed in sends."""
    return token("authenticated", **{"sub": str(user), **claims})  # type: ignore[arg-type]


def with_claims(signed: str, **claims: object) -> str:
    """The token with other claims, under the signature that it has."""
    head, payload, signature = signed.split(".")
    known = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return f"{head}.{_segment(known | claims)}.{signature}"


def unsigned(role: str) -> str:
    """A token that claims to need no signature."""
    _, payload, _ = token(role).split(".")
    return f"{_segment({'alg': 'none', 'typ': 'JWT'})}.{payload}."
