"""From an HTTP answer's headers, and from a broken connection, to the few facts that decide. No text is kept (R16)."""

import asyncio
import math
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp


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


def _seconds_until(value: str, now: datetime) -> float | None:
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - now).total_seconds(), 0.0)
