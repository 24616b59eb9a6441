"""Faults on purpose: what `POST /_simulator/faults` declares, and which requests it meets."""

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dynamics_sync.simulator.errors import STATUS_ERRORS, DataverseError
from dynamics_sync.simulator.messages import Reply, error_reply


class FaultKind(StrEnum):
    """What goes wrong."""

    STATUS = "status"
    """An answer with that status, and nothing is done."""
    DELAY = "delay"
    """The answer takes `seconds`; the request holds its place among the concurrent ones meanwhile."""
    TIMEOUT = "timeout"
    """No answer, until the client goes or the fault is lifted."""
    RESET = "reset"
    """The connection is aborted, and nothing is done."""
    RESET_AFTER_WRITE = "reset_after_write"
    """The connection is aborted after it was done."""
    GARBLED = "garbled"
    """200 with a page instead of an answer, and nothing is done."""
    DUPLICATE = "duplicate"
    """A webhook is sent twice."""
    OUT_OF_ORDER = "out_of_order"
    """A webhook waits until a later one of its registration was sent, or faults are lifted."""
    LOST = "lost"
    """A webhook is never sent."""
    OVERSIZED = "oversized"
    """A webhook is trimmed, as if it were too large."""


OF_WEBHOOKS = frozenset({FaultKind.DUPLICATE, FaultKind.OUT_OF_ORDER, FaultKind.LOST, FaultKind.OVERSIZED})
"""What can only happen to webhooks. A delay can happen to them too, if the fault says that it is for them."""
OF_SYNCHRONOUS_WEBHOOKS = frozenset({FaultKind.DUPLICATE, FaultKind.OVERSIZED, FaultKind.DELAY})


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
    message: str | None = None
    path: str | None = None
    """`token` for the token endpoint, `portal` for the portal's events, `webhooks` for what is sent; the Web API
    otherwise."""

    @property
    def is_filtered(self) -> bool:
        """Whether it is meant for some requests only."""
        return any(wanted is not None for wanted in (self.entity_set, self.key, self.method))

    def meets(self, method: str, entity_set: str, keys: Collection[str]) -> bool:
        """Whether it is meant for this Web API request. Keys are compared as Dataverse compares them."""
        return self.path is None and self.method in (None, method) and self._is_meant_for(entity_set, keys)

    def meets_webhook(self, entity_set: str, keys: Collection[str]) -> bool:
        """Whether it is meant for what is sent of a change of this record, which goes by its id and its keys."""
        return self.path == "webhooks" and self._is_meant_for(entity_set, keys)

    def _is_meant_for(self, entity_set: str, keys: Collection[str]) -> bool:
        return self.entity_set in (None, entity_set) and (
            self.key is None or self.key.casefold() in (key.casefold() for key in keys)
        )

    def reply(self) -> Reply:
        """The answer of a fault of kind `status`."""
        after = {} if self.retry_after is None else {"Retry-After": f"{self.retry_after:g}"}
        if self.status < 400:
            return Reply(self.status, headers=after)
        code, message = STATUS_ERRORS.get(self.status, ("", "An error has occurred."))
        given_code = code if self.code is None else self.code
        return error_reply(DataverseError(self.status, given_code, self.message or message, after))


class Faults:
    """The faults that stand, oldest first; the first that meets a request counts."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a repeatable choice, not a secret
        self.standing: list[Fault] = []

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

    def stands(self, fault: Fault) -> bool:
        """Whether it was not lifted."""
        return any(other is fault for other in self.standing)

    def take(self, method: str, entity_set: str, keys: Collection[str]) -> Fault | None:
        """The fault that meets this Web API request, counted down."""
        if not self.standing:
            return None
        return self._take(fault for fault in self.standing if fault.meets(method, entity_set, keys))

    def take_for_part(self, method: str, entity_set: str, keys: Collection[str]) -> Fault | None:
        """The fault that meets this part of a batch. Unfiltered ones are for the batch as a whole."""
        return self._take(
            fault for fault in self.standing if fault.is_filtered and fault.meets(method, entity_set, keys)
        )

    def take_for_token(self) -> Fault | None:
        """The fault that meets a request for a token."""
        return self._take(fault for fault in self.standing if fault.path == "token")

    def take_for_portal(self, method: str, key: str | None) -> Fault | None:
        """The fault that meets an event that the portal is sent."""
        return self._take(
            fault
            for fault in self.standing
            if fault.path == "portal" and fault.method in (None, method) and fault.key in (None, key)
        )

    def take_for_webhook(self, entity_set: str, keys: Collection[str], kinds: Collection[FaultKind]) -> Fault | None:
        """The fault that meets a webhook, if it is one of these."""
        return self._take(
            fault for fault in self.standing if fault.kind in kinds and fault.meets_webhook(entity_set, keys)
        )

    def _take(self, candidates: Iterable[Fault]) -> Fault | None:
        for fault in candidates:
            if fault.count == 0 or (fault.share is not None and self._random.random() >= fault.share):
                continue
            if fault.count is not None:
                fault.count -= 1
            self._forget_spent(fault)
            return fault
        return None

    def _forget_spent(self, fault: Fault) -> None:
        """A spent time-out stands on, so that lifting it can let go those that it holds."""
        if fault.count == 0 and fault.kind is not FaultKind.TIMEOUT:
            self.standing = [other for other in self.standing if other is not fault]


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
    "message": (str,),
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
    _check_path(fields)
    if not 0 <= fields.get("seconds", 0) <= 3600:
        raise ValueError("seconds must lie between 0 and 3600")
    if not 0 <= fields.get("retry_after", 0) <= 86400:
        raise ValueError("retry_after must lie between 0 and 86400 seconds")
    fields["method"] = fields["method"].upper() if "method" in fields else None
    return Fault(**{**fields, "kind": FaultKind(fields["kind"])})


def _check_path(fields: dict[str, Any]) -> None:
    kind = FaultKind(fields["kind"])
    path = fields["path"] = fields.get("path", "webhooks" if kind in OF_WEBHOOKS else None)
    if path not in (None, "token", "portal", "webhooks"):
        raise ValueError("path can only be 'token', 'portal' or 'webhooks'; without it a fault is for the Web API")
    if path == "webhooks" and kind not in (*OF_WEBHOOKS, FaultKind.DELAY):
        raise ValueError(f"webhooks cannot have {kind}: let the receiver answer so, or not at all")
    if path != "webhooks" and kind in OF_WEBHOOKS:
        raise ValueError(f"{kind} is for webhooks only")
    if path == "webhooks" and "method" in fields:
        raise ValueError("method is for requests: webhooks are registered by message")
