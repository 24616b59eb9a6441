"""Addresses: which a secret or a token may be sent to, and their parts."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}

_AMBIGUOUS = re.compile(r"[\s\\@]|\][^:/?#]")
"""What one parser takes for a part of the host and another one not; a user has no place in these addresses either."""


def may_carry_secrets(url: str) -> bool:
    """Whether this is an https:// address, or an http:// address of this machine itself."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # ValueError if it is no port
    except ValueError:
        return False
    if not parts.hostname or _AMBIGUOUS.search(url):
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port (RFC 6454), a default port included.

    Raises:
        ValueError: it is no http:// or https:// address, or the port is none.
    """
    parts = urlsplit(url)
    if not parts.hostname or parts.scheme not in DEFAULT_PORTS:
        raise ValueError("An address has a scheme and a host.")
    return parts.scheme, parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme]


def target_of(url: str) -> str:
    """What is asked for there: path and query."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def may_be_sent(text: str) -> bool:
    """Whether it may stand in the first line of a request, or be a header: only printable ASCII may."""
    return text.isascii() and text.isprintable()


def _is_loopback(host: str) -> bool:
    """By its spelling alone: what a name resolves to can change between the check and the request."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
