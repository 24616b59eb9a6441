"""Whether a webhook's sender knows the secret (Microsoft: "Register a webhook", on its authentication options)."""

import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from re import compile as pattern
from secrets import token_bytes
from urllib.parse import unquote_to_bytes

from dynamics_sync.core.errors import ConfigurationError

LEAST_CHARACTERS = 16

WEBHOOK_KEY = "code"
"""The parameter that Dataverse names for the kind WebhookKey."""

_SECRET = pattern(r"[!-~]+")
_TOKEN = pattern(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_ONCE = token_bytes(16)


@dataclass(frozen=True, slots=True)
class WebhookSecrets:
    """The secrets that are valid now, and where a sender may put one: a header (HttpHeader), the parameter `code`
    (WebhookKey) or another parameter (HttpQueryString).

    Raises:
        ConfigurationError: there is none, or one that is too easy to guess or cannot be sent.
    """

    valid: Sequence[str] = field(repr=False)
    header: str = "x-webhook-secret"
    parameter: str = "secret"

    def __post_init__(self) -> None:
        if not self.valid:
            raise ConfigurationError(
                "DYNAMICS_SYNC_WEBHOOKS is on, so DYNAMICS_SYNC_WEBHOOK_SECRET must be set: without it anybody could "
                "change records. Choose at least 16 random characters, and register the webhook with the same."
            )
        for secret in self.valid:
            if len(secret) < LEAST_CHARACTERS or _SECRET.fullmatch(secret) is None:
                raise ConfigurationError(
                    f"DYNAMICS_SYNC_WEBHOOK_SECRET and DYNAMICS_SYNC_WEBHOOK_PREVIOUS_SECRET must have at least "
                    f"{LEAST_CHARACTERS} characters, of ASCII and without blanks. Letters and digits are best."
                )
        if _TOKEN.fullmatch(self.header) is None:
            raise ConfigurationError("DYNAMICS_SYNC_WEBHOOK_HEADER must be the name of an HTTP header.")
        if not self.parameter:
            raise ConfigurationError("DYNAMICS_SYNC_WEBHOOK_PARAMETER must not be empty.")

    def admit(self, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> bool:
        """Whether one of the values in any of the three places is one of the secrets.

        All are compared, digest with digest: how long it takes tells nothing of how much of one was right.
        """
        presented = [*self._in_headers(headers), *self._in_query(query)]
        matches = [
            hmac.compare_digest(_digest(value), _digest(secret.encode()))
            for value in presented
            for secret in self.valid
        ]
        return any(matches)

    def _in_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
        wanted = self.header.lower().encode()
        return (value for name, value in headers if name.lower() == wanted)

    def _in_query(self, query: bytes) -> Iterator[bytes]:
        """A plus is a plus: no secret has a blank that it could stand for."""
        wanted = {WEBHOOK_KEY.encode(), self.parameter.encode()}
        for part in query.split(b"&"):
            name, _, value = part.partition(b"=")
            if unquote_to_bytes(name) in wanted:
                yield unquote_to_bytes(value)

    def without_secret(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers but for the one that carries the secret, should it have a name that is stored."""
        return {name: value for name, value in headers.items() if name != self.header.lower()}


def _digest(value: bytes) -> bytes:
    return blake2b(value, key=_ONCE).digest()
