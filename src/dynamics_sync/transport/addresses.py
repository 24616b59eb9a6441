"""Which addresses a secret or a token may be sent to."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

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


def _is_loopback(host: str) -> bool:
    """By its spelling alone: what a name resolves to can change between the check and the request."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
