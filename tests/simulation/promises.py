"""What must always hold, checked at every step of a history; `docs/guarantees.md` says it for people."""

from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from dynamics_sync.core.circuit import Circuit, CircuitState
from dynamics_sync.core.outcome import Answer, Transient
from simulation.dynamics_model import DynamicsModel
from simulation.loop import Process
from simulation.plan import Plan
from simulation.stores import EPOCH, Database

NEWS_SECONDS = 0.6
"""By then every worker that reaches the database knows what another one heard."""

REFUSALS = (200, 400)
"""After such an answer to all records of a request, each has to be judged by itself."""

DECISIONS = (204, 400, 404)
"""Such an answer to a record by itself leaves nothing open."""

MOST_EXTRA = 2
"""Requests that it takes at most to judge each record of one that was refused as a whole."""

GONE = "gone"
"""What Dynamics must hold of a record whose row was deleted: nothing, or an inactive record."""


@dataclass(slots=True)
class Flight:
    """A request under way, as its sender sees it: until it is answered, given up, or its sender is dead. A sender that
    stands still does not prolong it."""

    keys: tuple[str, ...]
    worker: int
    process: Process
    left_at: float
    given_up_at: float
    is_probe: bool
    one_by_one: bool
    """Each record stands by itself; else all are written or none."""
    most: int
    """As many records would have had room in it."""
    leases: Set[tuple[str, str | None]] = frozenset()
    """Its records, each with the claim that it left under."""
    generation: int = 0
    """The circuit's, when it left."""
    has_ended: bool = False
    has_decided: bool = False
    """It was answered, and nothing of it is left open."""
    extra: "list[Flight]" = field(default_factory=list)
    """It was refused as a whole: the requests that its records left in afterwards."""

    @property
    def is_together(self) -> bool:
        return len(self.keys) > 1 and not self.one_by_one

    def is_under_way(self, now: float) -> bool:
        return not self.has_ended and not self.process.is_dead and now < self.given_up_at


class Promises:
    """What was committed, what leaves and what is heard; and whether it may be so.

    Args:
        violate: is told what must not be.
    """

    def __init__(
        self,
        plan: Plan,
        database: Database,
        dynamics: DynamicsModel,
        cool_down: timedelta,
        violate: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._database = database
        self._dynamics = dynamics
        self._cool_down = cool_down
        self._now = database.clock
        self.violate = violate
        self.committed: dict[str, int | None] = {}
        """The newest committed state of each record; None if its row was deleted."""
        self.settled_by_person: set[str] = set()
        """Records whose queue entry a person discarded: Dynamics keeps what it has."""
        self._unneeded: dict[str, int] = {}
        """Requests for each record, less its changes."""
        self._flights: list[Flight] = []
        self._failed_at: list[float] = []
        """When workers heard of failures, since the circuit changed."""
        self._succeeded_at = 0.0
        """When one last heard of a success. It may be noted after failures that were heard of a little later."""
        self._changed_at = 0.0
        """When the circuit changed its state."""
        self._silent_from = self._silent_until = 0.0
        """Dynamics asked for silence."""
        self._has_probe_succeeded = False
        self._uncertain: set[tuple[str, str | None]] = set()
        """Records, and their claims, of requests that nobody knows the effect of."""
        self._unwell: Counter[int] = Counter()
        """Requests that left in each generation of the circuit, without those that were answered well."""
        self._refused_together: set[tuple[str, str | None]] = set()
        """Records of requests that were refused as a whole, and their claims: whoever still holds one knows of it."""
        self._refused: list[Flight] = []
        """The same requests, until their records are judged or something hinders that."""

    def commit(self, key: str, state: int | None) -> None:
        """A user changed a record."""
        self._unneeded[key] = self._unneeded.get(key, 0) - 1
        self.committed[key] = state
        self.settled_by_person.discard(key)

    def check(self) -> None:
        """I1: each committed change is noted, in the outbox, in an open queue entry, or applied in its newest state;
        what may have been written is kept in mind by whoever lets go of it."""
        database = self._database
        for key, claim in [*self._uncertain]:
            row = database.outbox.get(key)
            if row is None or row.lease_owner != claim:
                self._uncertain.remove((key, claim))
                if key not in database.unanswered:
                    self.violate(f"I1 {key} may have been written, and nobody keeps it in mind")
        waiting = database.waiting
        for key, state in self.committed.items():
            if key in waiting or key in database.open_entries or key in database.unanswered:
                continue
            if key not in self.settled_by_person and not self._holds(key, state):
                self.violate(f"I1 {key} is lost: Dynamics holds {self.held(key)}, not {state}, and nothing waits")

    def leave(self, flight: Flight) -> None:
        """I3, I4, I5, R3, R8, R10: a request leaves; may it?"""
        key = " ".join(flight.keys)
        for each in flight.keys:
            self._unneeded[each] += 1
        now = self._now()
        self._flights = under_way = [flight for flight in self._flights if flight.is_under_way(now)]
        if len(set(flight.keys)) < len(flight.keys) or any(
            not set(each.keys).isdisjoint(flight.keys) for each in under_way
        ):
            self.violate(f"I3 two requests for one of {key} at once")
        if flight.is_probe and len(flight.keys) > 1:
            self.violate(f"I4 a probe has more than one record: {key}")
        outbox = self._database.outbox
        flight.leases = {(each, outbox[each].lease_owner) for each in flight.keys if each in outbox}
        if flight.is_together and not flight.leases.isdisjoint(self._refused_together):
            self.violate(f"R10 a request that was refused together leaves together again: {key}")
        self._count_extra(flight)
        circuit = self._database.circuit
        flight.generation = circuit.generation
        self._unwell[circuit.generation] += 1
        if circuit.state is CircuitState.HALF_OPEN and under_way:
            self.violate("I4 a request leaves while a probe is under way")
        if circuit.state is CircuitState.OPEN and self._has_begun(circuit.opened_at):
            self.violate(f"I5 a request for {key} leaves while the circuit is open")
        if self._plan.spares_workers:
            failures = sum(self._succeeded_at + NEWS_SECONDS < at < now - NEWS_SECONDS for at in self._failed_at)
            if circuit.state is CircuitState.CLOSED and failures >= self._plan.failure_threshold:
                self.violate(f"R3 a request for {key} leaves after {failures} failures in a row")
            if self._silent_from + NEWS_SECONDS < now < self._silent_until:
                self.violate(f"R8 a request for {key} leaves although Dynamics asked for silence")
        self._flights.append(flight)

    def _count_extra(self, flight: Flight) -> None:
        """R10: two more requests judge what was refused as a whole, if they are answered and half of it fits in one."""
        for refused in [each for each in self._refused if not each.leases.isdisjoint(flight.leases)]:
            is_large = len(refused.keys) > MOST_EXTRA * flight.most
            if is_large or not all(each.has_decided for each in refused.extra):
                self._refused.remove(refused)
            elif len(refused.extra) == MOST_EXTRA:
                self.violate(f"R10 {' '.join(refused.keys)} were refused together and take more than two more requests")
            else:
                refused.extra.append(flight)

    def check_circuit(self, before: Circuit, after: Circuit) -> None:
        """R3, R5, R11: a failed request counts once; a circuit closes by a probe that succeeded, or by a person; it is
        probed after a whole cool-down."""
        if before.state is CircuitState.CLOSED and after.failure_count > self._unwell[before.generation]:
            self.violate(f"R3 {self._unwell[before.generation]} requests count as {after.failure_count} failures")
        closes = before.state is not CircuitState.CLOSED and after.state is CircuitState.CLOSED
        if closes and (before.state is CircuitState.OPEN or not self._has_probe_succeeded):
            self.violate("R5 the circuit closes although no probe succeeded")
        is_probed = before.state is CircuitState.OPEN and after.state is CircuitState.HALF_OPEN
        if is_probed and not self._has_begun((before.opened_at or EPOCH) + self._cool_down):
            self.violate("R5 a probe is let through before the cool-down is over")
        if after.generation != before.generation:
            self.begin_anew()
            if after.state is CircuitState.HALF_OPEN:
                self._has_probe_succeeded = False

    def begin_anew(self) -> None:
        """What was heard before the circuit changed counts no more."""
        self._changed_at = self._now()
        self._failed_at.clear()

    def hear(self, flight: Flight, said: Answer | Transient) -> None:
        """An answer reaches a worker."""
        flight.has_ended = True
        if flight.process.is_dead:
            return
        if self._now() < flight.given_up_at:
            if flight.is_together and isinstance(said, Answer) and said.status in REFUSALS:
                self._refused_together |= flight.leases
                self._refused.append(flight)
            flight.has_decided = isinstance(said, Answer) and said.status in DECISIONS
            broke_off = flight.one_by_one and isinstance(said, Answer) and said.status == 503
            if broke_off or said == Transient("connection_reset"):
                self._uncertain |= flight.leases
        if isinstance(said, Answer) and said.status == 429:
            self._silent_from = self._now()
            self._silent_until = self._silent_from + (said.retry_after_seconds or 0.0)
        elif isinstance(said, Transient) or said.status in (200, 503):
            if flight.left_at > self._changed_at:
                self._failed_at.append(self._now())
        else:
            self._succeeded_at = self._now()
            self._has_probe_succeeded |= flight.is_probe
            if self._succeeded_at < flight.given_up_at:
                self._unwell[flight.generation] -= 1

    def _has_begun(self, moment: datetime | None) -> bool:
        return moment is not None and moment <= self._database.now()

    def check_arrived(self) -> None:
        """I2: Dynamics holds exactly the newest state of every record that is not left in the queue."""
        for key, state in self.committed.items():
            is_left = key in self._database.open_entries or key in self.settled_by_person
            if not is_left and not self._holds(key, state):
                self.violate(f"I2 {key} is stale: Dynamics holds {self.held(key)}, not {state}")
            if self._plan.is_calm and self._unneeded.get(key, 0) > 0:
                self.violate(f"I6 {key} cost {self._unneeded[key]} requests more than it changed")

    def held(self, key: str) -> object:
        state = self._dynamics.state(key)
        return GONE if state is None or state["statecode"] == 1 else state["n"]

    def _holds(self, key: str, state: int | None) -> bool:
        return self.held(key) == (GONE if state is None else state)
