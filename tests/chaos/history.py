"""What happened in a run: what the database committed, what left the workers, what Dynamics was given.

All times are seconds since the epoch, by the clock of the one machine that everything runs on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

State: TypeAlias = int | None
"""A record's state: the number of the change whose values it has. None for one that is gone; in Dynamics that is one
that is inactive, or that never was there."""

TORN = -1
"""The state of a record in Dynamics that has values of two changes."""


@dataclass(frozen=True, slots=True)
class Change:
    """A committed change. Numbers grow with every change of a record, in the order in which they were committed."""

    number: int
    transaction: int
    key: str
    state: State
    """That the record has since then."""
    kind: str
    at: float


@dataclass(frozen=True, slots=True)
class Write:
    """A version of a record that Dynamics has stored."""

    key: str
    at: float
    state: State
    life: int = 0
    """A simulator that was killed has lost its records, and begins another life."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request in flight, as its sender sees it. It ends when the sender has the answer, gives up or is killed. A
    stopped process can do none of these: its request ends with the time that it had for it."""

    key: str
    sender: str
    began: float
    ended: float
    how: str
    frozen: bool = False
    """Its sender was stopped after it was admitted and before it left: it leaves when the sender goes on, and nothing
    that is decided meanwhile can call it back. I3 to I5 cannot hold for it; I2 must, at the end."""


@dataclass(frozen=True, slots=True)
class CircuitChange:
    """A change of the circuit's row."""

    at: float
    state: str
    generation: int
    opened_at: float | None = None
    is_probing: bool = False


@dataclass(frozen=True, slots=True)
class Owed:
    """The newest committed state of a record, and when it was made."""

    state: State
    since: float


@dataclass(frozen=True, slots=True)
class Look:
    """A look at the database between two moments: the records that neither the outbox nor an open queue entry has, and
    that Dynamics must therefore have, in this state."""

    before: float
    after: float
    states: Mapping[str, Owed]
    life: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was done to the parts: for the time line."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class History:
    """A whole run."""

    changes: Sequence[Change] = ()
    acknowledged: frozenset[int] = frozenset()
    """Transactions whose commit the database has confirmed to a user."""
    writes: Sequence[Write] = ()
    requests: Sequence[Request] = ()
    circuit: Sequence[CircuitChange] = ()
    looks: Sequence[Look] = ()
    ends: Sequence[Look] = ()
    """Looks at a system that is repaired and drained, while nobody changed anything."""
    events: Sequence[Event] = ()
