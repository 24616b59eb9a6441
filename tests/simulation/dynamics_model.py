"""Dynamics as a state machine without sockets, for the deterministic simulation.

One entity set, its records by alternate key, and the faults that the simulator knows. It imports nothing of the
simulator and nothing of ours, so that a mistake in one of them is not also in the other:
`tests/contracts/test_dynamics.py` asks both the same and compares what they say.

It is called millions of times. A body is a mapping of attributes to values that fit their columns; it names
`statecode` and `statuscode` together or not at all. Nobody changes a mapping that was handed over.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Literal, TypeAlias

Method: TypeAlias = Literal["PATCH", "DELETE"]
FaultKind: TypeAlias = Literal["status", "delay", "timeout", "reset", "reset_after_write", "garbled"]
State: TypeAlias = Mapping[str, object]

ABSENT_CODE = "0x80060891"
"""404: there is no record with that alternate key."""

STATUS_CODES = {
    400: "0x80040203",
    401: "0x80072560",
    403: "0x80040220",
    404: ABSENT_CODE,
    412: "0x80060882",
    429: "0x80072322",
    500: "0x80040216",
}
"""Dataverse's codes; other errors come from in front of it, and their code is empty."""

NEW = {"statecode": 0, "statuscode": 1}
"""What a new record has: it is active."""


class End(Enum):
    """How a request ends."""

    ANSWERED = "answered"
    RESET = "reset"
    """The connection is aborted."""
    HANGS = "hangs"
    """Nothing comes and nothing is done, until the client goes or `lift` aborts the connection."""
    LATER = "later"
    """Nothing is done yet: after `seconds`, whether the client still waits or not, `apply` does it and says the
    answer."""


class Reaction:
    """What becomes of a request."""

    __slots__ = ("code", "end", "retry_after", "seconds", "status")

    def __init__(
        self,
        end: End,
        status: int | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.end = end
        self.status = status
        self.code = code
        """The code of Dataverse's error body, which may be empty; None where there is no such body."""
        self.retry_after = retry_after
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"Reaction({self.end.value}, {self.status}, {self.code}, {self.retry_after}, {self.seconds})"


DONE = Reaction(End.ANSWERED, 204)
NO_SUCH_RECORD = Reaction(End.ANSWERED, 404, ABSENT_CODE)
GARBLED = Reaction(End.ANSWERED, 200)
RESET = Reaction(End.RESET)
HANGS = Reaction(End.HANGS)


class Record:
    """What was ever written under one key."""

    __slots__ = ("key", "versions")

    def __init__(self, key: str) -> None:
        self.key = key
        self.versions: list[State | None] = []
        """In the order of the writes; None where the record was deleted."""


class Fault:
    """One fault, and which requests it meets. Without `count` it meets all until it is lifted."""

    __slots__ = ("code", "count", "key", "kind", "method", "retry_after", "seconds", "status")

    def __init__(
        self,
        kind: FaultKind,
        *,
        status: int = 503,
        retry_after: float | None = None,
        seconds: float = 0.0,
        count: int | None = None,
        key: str | None = None,
        method: Method | None = None,
        code: str | None = None,
    ) -> None:
        self.kind = kind
        self.status = status
        self.retry_after = retry_after
        self.seconds = seconds
        self.count = count
        self.key = None if key is None else key.casefold()
        self.method = method
        self.code = code

    def answer(self) -> Reaction:
        """The answer of a fault of kind `status`; below 400 it has no body."""
        if self.status < 400:
            return Reaction(End.ANSWERED, self.status, None, self.retry_after)
        code = STATUS_CODES.get(self.status, "") if self.code is None else self.code
        return Reaction(End.ANSWERED, self.status, code, self.retry_after)


class DynamicsModel:
    """The records, and the faults that stand, oldest first: the first that meets a request counts."""

    __slots__ = ("_faults", "_records")

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._records: dict[str, Record] = {}

    def records(self) -> dict[str, State]:
        """The newest state of each record that is there, by the key that it was created with."""
        return {record.key: state for record in self._records.values() if (state := record.versions[-1]) is not None}

    def state(self, key: str) -> State | None:
        """The newest state of one record."""
        record = self._records.get(key.casefold())
        return None if record is None else record.versions[-1]

    def versions(self, key: str) -> list[State | None]:
        """All that was ever written of one record, oldest first; None for each deletion."""
        record = self._records.get(key.casefold())
        return [] if record is None else record.versions

    def fault(self, fault: Fault) -> None:
        """From now on requests meet it."""
        self._faults.append(fault)

    def lift(self) -> None:
        """End all faults. Requests that hang are reset."""
        self._faults.clear()

    def receive(self, method: Method, key: str, body: State | None, if_match: bool = False) -> Reaction:
        """A request arrives. What `apply` does is done, unless a fault keeps it from being done, or `LATER`."""
        fault = self._take(method, key) if self._faults else None
        if fault is None:
            return self.apply(method, key, body, if_match)
        match fault.kind:
            case "status":
                return fault.answer()
            case "delay":
                return Reaction(End.LATER, seconds=fault.seconds)
            case "timeout":
                return HANGS
            case "garbled":
                return GARBLED
            case "reset_after_write":
                self.apply(method, key, body, if_match)
        return RESET

    def apply(self, method: Method, key: str, body: State | None, if_match: bool = False) -> Reaction:
        """Do what is asked, past all faults. PATCH creates what is not there, except with `If-Match: *`."""
        folded = key.casefold()
        record = self._records.get(folded)
        before = None if record is None else record.versions[-1]
        if before is None and (if_match or method == "DELETE"):
            return NO_SUCH_RECORD
        if record is None:
            record = self._records[folded] = Record(key)
        if method == "DELETE":
            record.versions.append(None)
            return DONE
        if before is None:
            record.key, before = key, NEW
        record.versions.append({**before, **(body or {})})
        return DONE

    def _take(self, method: Method, key: str) -> Fault | None:
        """The fault that meets this request, counted down."""
        folded = key.casefold()
        for fault in self._faults:
            if (fault.method is None or fault.method == method) and (fault.key is None or fault.key == folded):
                if fault.count is not None:
                    fault.count -= 1
                    if fault.count == 0:
                        self._faults.remove(fault)
                return fault
        return None
