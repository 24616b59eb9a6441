"""The circuit breaker as a pure state machine (R3, R5, R9, R11, R12).

Every function takes a circuit and the present time and gives back a circuit. Nothing here waits, reads a clock or
stores anything: `sync.breaker` does that, in memory or in PostgreSQL, by compare-and-set on `revision`.

            3 failures in a row                    cool-down over, one caller admitted
    CLOSED ────────────────────▶ OPEN ────────────────────────────────▶ HALF_OPEN
       ▲                          ▲                                        │   │
       │                          └──────────────── the probe fails ───────┘   │
       └─────────────────────────────────────────── the probe succeeds ────────┘
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum


class CircuitState(StrEnum):
    """What the circuit does with calls."""

    CLOSED = "closed"
    """Calls pass."""
    OPEN = "open"
    """No call passes until the cool-down is over."""
    HALF_OPEN = "half_open"
    """Exactly one call, the probe, passes; its result decides."""


@dataclass(frozen=True, slots=True)
class CircuitSettings:
    """When the circuit opens and for how long.

    Raises:
        ValueError: a value is zero or negative.
    """

    failure_threshold: int = 3
    """Consecutive failed requests, of all callers together, that open the circuit."""
    cool_down_seconds: float = 60.0
    """How long an open circuit stays silent before it lets a probe through."""
    probe_lease_seconds: float = 90.0
    """How long a probe may take before its place is given away: longer than any request's time-out."""
    max_pause_seconds: float = 900.0
    """The longest `Retry-After` that is honoured."""
    notice_seconds: float = 0.0
    """How soon all callers know of an opening: the silence of an open circuit is promised from that long after it was
    decided. Half of it is for storing it, the other half for using a permit. 0 where all see every change at once."""

    def __post_init__(self) -> None:
        for name in ("failure_threshold", "cool_down_seconds", "probe_lease_seconds", "max_pause_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}")
        if self.notice_seconds < 0:
            raise ValueError(f"notice_seconds must be 0 or more, not {self.notice_seconds}")

    @property
    def cool_down(self) -> timedelta:
        return timedelta(seconds=self.cool_down_seconds)

    @property
    def probe_lease(self) -> timedelta:
        return timedelta(seconds=self.probe_lease_seconds)

    @property
    def max_pause(self) -> timedelta:
        return timedelta(seconds=self.max_pause_seconds)

    @property
    def notice(self) -> timedelta:
        return timedelta(seconds=self.notice_seconds)

    @property
    def news_seconds(self) -> float:
        """How old a look at the circuit may be when an opening is stored, or when a request leaves."""
        return self.notice_seconds / 2


@dataclass(frozen=True, slots=True)
class Circuit:
    """The circuit's whole state, as it is stored. Times carry a time zone."""

    state: CircuitState = CircuitState.CLOSED
    failure_count: int = 0
    """Consecutive failed requests."""
    opened_at: datetime | None = None
    """Since when no request leaves. Up to `notice_seconds` ahead: whoever asks is blocked already then."""
    last_error_code: str | None = None
    probe_owner: str | None = None
    probe_until: datetime | None = None
    paused_until: datetime | None = None
    """Dynamics asked for silence (`Retry-After`) until then."""
    generation: int = 0
    """Counts transitions. A permit carries the one it was given in, so that a late answer can be told."""
    revision: int = 0
    """Counts changes of any kind: the value that compare-and-set compares."""

    @property
    def is_healthy(self) -> bool:
        """Closed, without a failure or a pause: nothing about it can keep a call back."""
        return self.state is CircuitState.CLOSED and self.failure_count == 0 and self.paused_until is None


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one request. It must be given back with a verdict, or released without one."""

    owner: str
    generation: int
    is_probe: bool


@dataclass(frozen=True, slots=True)
class Blocked:
    """No request may leave."""

    retry_at: datetime
    """The earliest time at which asking again makes sense."""
    reason: CircuitState | None
    """The state that blocks, or None where the target is only paused by `Retry-After`."""


@dataclass(frozen=True, slots=True)
class Admission:
    """An answer to "may I send?", and the circuit that it leaves behind."""

    circuit: Circuit
    verdict: Permit | Blocked


def state_at(circuit: Circuit, now: datetime, settings: CircuitSettings) -> CircuitState:
    """The state as a caller meets it: an open circuit whose cool-down is over is half-open, its probe still free."""
    if circuit.state is CircuitState.OPEN and retry_at(circuit, now, settings) <= now:
        return CircuitState.HALF_OPEN
    return circuit.state


def retry_at(circuit: Circuit, now: datetime, settings: CircuitSettings) -> datetime:
    """The earliest time at which a call may pass; `now` where one may pass at once."""
    waits = [now]
    if circuit.paused_until is not None:
        waits.append(min(circuit.paused_until, now + settings.max_pause))
    if circuit.state is CircuitState.OPEN and circuit.opened_at is not None:
        waits.append(min(circuit.opened_at, now + settings.notice) + settings.cool_down)
    if circuit.state is CircuitState.HALF_OPEN and circuit.probe_until is not None:
        waits.append(min(circuit.probe_until, now + settings.probe_lease))
    return max(waits)


def needs_new_times(circuit: Circuit, now: datetime, settings: CircuitSettings) -> bool:
    """The clock was set back: `admit` would stamp the circuit's times anew, and its silence begins to run only then."""
    return _without_future_times(circuit, now, settings) is not circuit


def admit(circuit: Circuit, now: datetime, owner: str, settings: CircuitSettings) -> Admission:
    """Ask for leave to send one request.

    In half-open one owner gets the probe; its place is free again when it reports, is released, or its lease ends.
    """
    circuit = _without_future_times(circuit, now, settings)
    earliest = retry_at(circuit, now, settings)
    if earliest > now:
        only_paused = circuit.state is CircuitState.CLOSED
        return Admission(circuit, Blocked(earliest, None if only_paused else circuit.state))
    if circuit.paused_until is not None:
        circuit = _changed(circuit, paused_until=None)
    if circuit.state is CircuitState.CLOSED:
        return Admission(circuit, Permit(owner, circuit.generation, is_probe=False))
    half_open = _transition(
        circuit, state=CircuitState.HALF_OPEN, probe_owner=owner, probe_until=now + settings.probe_lease
    )
    return Admission(half_open, Permit(owner, half_open.generation, is_probe=True))


def on_success(circuit: Circuit, permit: Permit) -> Circuit:
    """The request was answered by a Dynamics that works, a 4xx included (R8)."""
    if permit.generation != circuit.generation:
        return circuit
    if circuit.state is CircuitState.HALF_OPEN:
        return _closed(circuit)
    if circuit.failure_count == 0:
        return circuit
    return _changed(circuit, failure_count=0, last_error_code=None)


def on_failure(circuit: Circuit, permit: Permit, now: datetime, error_code: str, settings: CircuitSettings) -> Circuit:
    """The request failed in a way that says Dynamics is not well."""
    if permit.generation != circuit.generation:
        return circuit
    failure_count = circuit.failure_count + 1
    if circuit.state is CircuitState.CLOSED and failure_count < settings.failure_threshold:
        return _changed(circuit, failure_count=failure_count, last_error_code=error_code)
    return _opened(circuit, now, settings, failure_count=failure_count, last_error_code=error_code)


def force_open(circuit: Circuit, now: datetime, error_code: str, settings: CircuitSettings) -> Circuit:
    """A person wants silence: for one cool-down from now, then a probe decides. Nothing is stopped for ever."""
    return _opened(circuit, now, settings, last_error_code=error_code)


def force_closed(circuit: Circuit) -> Circuit:
    """A person knows that Dynamics is well: as if a probe had succeeded. A pause that Dynamics asked for stays."""
    if circuit.state is CircuitState.CLOSED and circuit.failure_count == 0:
        return circuit
    return _closed(circuit)


def on_pause(circuit: Circuit, now: datetime, seconds: float, settings: CircuitSettings) -> Circuit:
    """Dynamics asked for silence. Counts as neither success nor failure, and holds for every caller."""
    until = now + timedelta(seconds=min(max(seconds, 0.0), settings.max_pause_seconds))
    if until <= now or (circuit.paused_until is not None and circuit.paused_until >= until):
        return circuit
    return _changed(circuit, paused_until=until)


def on_release(circuit: Circuit, permit: Permit) -> Circuit:
    """The call ended without a verdict: cancelled, throttled, or no request was made. A probe frees its place.

    The owner is compared too: a caller who was cancelled while it asked does not know whether it got the place.
    """
    if not permit.is_probe or (permit.generation, permit.owner) != (circuit.generation, circuit.probe_owner):
        return circuit
    return _transition(circuit, state=CircuitState.HALF_OPEN)


def _without_future_times(circuit: Circuit, now: datetime, settings: CircuitSettings) -> Circuit:
    """A clock that was set back must not prolong anything: times too far ahead are stamped anew (R12)."""
    if circuit.opened_at is not None and circuit.opened_at > now + settings.notice:
        circuit = _changed(circuit, opened_at=now)
    if circuit.probe_until is not None and circuit.probe_until > now + settings.probe_lease:
        circuit = _changed(circuit, probe_until=now + settings.probe_lease)
    if circuit.paused_until is not None and circuit.paused_until > now + settings.max_pause:
        circuit = _changed(circuit, paused_until=now + settings.max_pause)
    return circuit


def _opened(circuit: Circuit, now: datetime, settings: CircuitSettings, **fields: object) -> Circuit:
    return _transition(circuit, state=CircuitState.OPEN, opened_at=now + settings.notice, **fields)


def _closed(circuit: Circuit) -> Circuit:
    return _transition(circuit, state=CircuitState.CLOSED, failure_count=0, opened_at=None, last_error_code=None)


def _changed(circuit: Circuit, **fields: object) -> Circuit:
    return replace(circuit, revision=circuit.revision + 1, **fields)  # type: ignore[arg-type]


def _transition(circuit: Circuit, **fields: object) -> Circuit:
    """Any change after which answers to earlier permits no longer count."""
    settled: dict[str, object] = {"probe_owner": None, "probe_until": None, "generation": circuit.generation + 1}
    return _changed(circuit, **settled | fields)
