"""From an answer of Dataverse to the few facts that decide. No text is kept (R16)."""

import json
from collections.abc import Mapping
from datetime import datetime

from dynamics_sync.core.outcome import Answer
from dynamics_sync.core.redaction import error_code
from dynamics_sync.transport.answers import retry_after_seconds


def answer_from(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Answer:
    """What is known about an answer. `headers` look names up without regard to case."""
    error = _dataverse_error(body) if status >= 400 else None
    return Answer(
        status=status,
        error_code=None if error is None else error_code(error.get("code")),
        is_known_error=error is not None,
        retry_after_seconds=retry_after_seconds(headers.get("Retry-After"), now),
        etag=headers.get("ETag"),
    )


def _dataverse_error(body: bytes) -> Mapping[str, object] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else None
