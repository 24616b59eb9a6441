"""Faults on purpose: what `POST /_simulator/faults` declares."""

import asyncio
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class FaultKind(StrEnum):
    """What goes wrong."""

    STATUS = "status"
    DELAY = "delay"
    TIMEOUT = "timeout"
    RESET = "reset"
    RESET_AFTER_WRITE = "reset_after_write"
    GARBLED = "garbled"


@dataclass(slots=True)
class Fault:
    """One fault, and which requests it meets. Without `count` and `share` it meets all until it is lifted."""

    kind: FaultKind
    status: int = 503
    retry_after: float | None = None
    seconds: float = 0.0
    count: int | None = None
    share: float | None = None
    entity_set: str | None = None
    key: str | None = None
    method: str | None = None
    code: str | None = None
    path: str | None = None
    """`token` for the token endpoint; the Web API otherwise."""

    def meets(self, method: str, entity_set: str, keys: Collection[str]) -> bool:
        return (
            self.path is None
            and self.count != 0
            and self.method in (None, method)
            and self.entity_set in (None, entity_set)
            and (self.key is None or self.key in keys)
        )


class Faults:
    """The faults that stand, oldest first."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a repeatable choice, not a secret
        self.standing: list[Fault] = []
        self.lifted = asyncio.Event()

    def add(self, declared: Mapping[str, Any]) -> Fault:
        """Declare one.

        Raises:
            ValueError: a field is unknown or has a wrong value; the message says which.
        """
        fault = _fault(declared)
        self.standing.append(fault)
        return fault

    def lift(self) -> None:
        """End all of them; requests that hang are let go."""
        self.standing.clear()
        self.lifted.set()
        self.lifted = asyncio.Event()

    def take(self, method: str, entity_set: str, keys: Collection[str]) -> Fault | None:
        """The fault that meets this Web API request, counted down."""
        return self._take([fault for fault in self.standing if fault.meets(method, entity_set, keys)])

    def take_token(self) -> Fault | None:
        """The fault that meets a request for a token."""
        return self._take([fault for fault in self.standing if fault.path == "token" and fault.count != 0])

    def _take(self, candidates: list[Fault]) -> Fault | None:
        for fault in candidates:
            if fault.share is not None and self._random.random() >= fault.share:
                continue
            if fault.count is not None:
                fault.count -= 1
                if fault.count == 0:
                    self.standing.remove(fault)
            return fault
        return None


_FIELDS: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "status": (int,),
    "retry_after": (int, float),
    "seconds": (int, float),
    "count": (int,),
    "share": (int, float),
    "entity_set": (str,),
    "key": (str,),
    "method": (str,),
    "code": (str,),
    "path": (str,),
}


def _fault(declared: Mapping[str, Any]) -> Fault:
    fields = {name: value for name, value in declared.items() if value is not None}
    for name, value in fields.items():
        if name not in _FIELDS:
            raise ValueError(f"unknown field {name!r}; known are {', '.join(_FIELDS)}")
        if not isinstance(value, _FIELDS[name]) or isinstance(value, bool):
            raise ValueError(f"{name} has a wrong type")
    if fields.get("kind") not in list(FaultKind):
        raise ValueError(f"kind must be one of {', '.join(FaultKind)}")
    if not 200 <= fields.get("status", 503) <= 599:
        raise ValueError("status must lie between 200 and 599")
    if fields.get("count", 1) < 1:
        raise ValueError("count must be 1 or more")
    if not 0 <= fields.get("share", 0) <= 1:
        raise ValueError("share must lie between 0 and 1")
    if fields.get("path", "token") != "token":
        raise ValueError("path can only be 'token'")
    if not 0 <= fields.get("seconds", 0) <= 3600 or not 0 <= fields.get("retry_after", 0) <= 86400:
        raise ValueError("seconds and retry_after must not be negative, nor longer than an hour and a day")
    return Fault(**{**fields, "kind": FaultKind(fields["kind"])})
