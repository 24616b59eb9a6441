"""JSON from outside: whatever it is, reading it raises nothing."""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from re import compile as pattern
from typing import Any
from uuid import UUID

_GUID = pattern(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def document_from(body: bytes) -> Mapping[str, Any] | None:
    """The JSON object that a body is; None if it is none, or one that nobody could read."""
    try:
        document = json.loads(body, parse_float=Decimal, parse_constant=_refuse)
    except (ValueError, RecursionError, ArithmeticError):
        return None
    return document if isinstance(document, dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def guid(value: object) -> str | None:
    """An id in small letters; None if the value is none, or the empty one."""
    if not isinstance(value, str) or _GUID.fullmatch(value) is None:
        return None
    return value.lower() if UUID(value).int else None


def pairs(value: object) -> Iterator[tuple[str, Any]]:
    """The entries of a dictionary as DataContractJsonSerializer writes it: `[{"key": …, "value": …}]`."""
    for entry in value if isinstance(value, list) else ():
        if isinstance(entry, dict) and isinstance(name := entry.get("key"), str):
            yield name, entry.get("value")
