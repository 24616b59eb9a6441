"""Signatures of the Standard Webhooks convention (standardwebhooks.com), made by its own library."""

import base64
import binascii
import hashlib
import json
from datetime import UTC, datetime

from standardwebhooks import Webhook

from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.core.operation import SyncOperation

PREFIX = "whsec_"
FEWEST_BYTES, MOST_BYTES = 24, 64
"""What the convention asks of a secret."""


class Signer:
    """Signs with one secret, or with two while the receiver changes from one to the other.

    Args:
        secrets: `whsec_…`, or two of them with a space in between.

    Raises:
        ConfigurationError: they are no such secrets. The message does not quote them.
    """

    def __init__(self, secrets: str) -> None:
        self._webhooks = [Webhook(_checked(secret)) for secret in secrets.split()]
        if not 1 <= len(self._webhooks) <= 2:
            raise ConfigurationError(
                "DYNAMICS_SYNC_PORTAL_SECRET holds one secret, or two with a space in between while it is changed."
            )

    def headers(self, webhook_id: str, body: str, now: datetime) -> dict[str, str]:
        """What the receiver verifies: the id, the time in seconds since the epoch, a signature for each secret."""
        at = now.astimezone(UTC)
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(webhook.sign(webhook_id, at, body) for webhook in self._webhooks),
        }


def webhook_id(operation: SyncOperation) -> str:
    """The same for each delivery of one version of a record, and for no other."""
    version = [operation.target, operation.source_table, operation.record_key, operation.version]
    return "msg_" + hashlib.sha256(json.dumps(version).encode()).hexdigest()[:40]


def _checked(secret: str) -> str:
    text = secret.removeprefix(PREFIX).rstrip("=")
    try:
        size = len(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if not secret.startswith(PREFIX) or not FEWEST_BYTES <= size <= MOST_BYTES:
        raise ConfigurationError(
            f"DYNAMICS_SYNC_PORTAL_SECRET must be {PREFIX} and {FEWEST_BYTES} to {MOST_BYTES} bytes in base64, as the "
            "Standard Webhooks convention has it. Copy it from the portal once more."
        )
    return secret
