"""From an HTTP answer to the few facts that decide, and from a broken connection to a code. No text is kept (R16)."""

import asyncio
import json
import math
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp

from dynamics_sync.core.outcome import Answer
from dynamics_sync.core.redaction import error_code

MAX_ERROR_BYTES = 64 * 1024
"""An error's body is read no further than this."""


def answer_from(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Answer:
    """What is known about an answer. `headers` look names up without regard to case."""
    error = _dataverse_error(body) if status >= 400 else None
    return Answer(
        status=status,
        error_code=None if error is None else error_code(error.get("code")),
        is_dataverse_error=error is not None,
        retry_after_seconds=retry_after_seconds(headers.get("Retry-After"), now),
        etag=headers.get("ETag"),
    )


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """`Retry-After` as a number of seconds or an HTTP date; None if it is absent or neither (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return _seconds_until(value, now)
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def connection_error_code(error: BaseException) -> str:
    """Our code for a request that got no answer. The order matters: aiohttp's classes inherit from one another."""
    match error:
        case TimeoutError() | asyncio.TimeoutError():
            return "timeout"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError() | ssl.SSLError():
            return "tls"
        case aiohttp.ClientConnectorDNSError():
            return "dns"
        case aiohttp.ClientConnectorError():
            return "connection_refused"
    return "connection_reset"


def _dataverse_error(body: bytes) -> Mapping[str, object] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else None


def _seconds_until(value: str, now: datetime) -> float | None:
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - now).total_seconds(), 0.0)
