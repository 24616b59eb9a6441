"""The state machine: transitions one by one, and invariants under any order of events."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dynamics_sync.core.circuit import (
    Blocked,
    Circuit,
    CircuitSettings,
    CircuitState,
    Permit,
    admit,
    on_failure,
    on_pause,
    on_release,
    on_success,
    retry_at,
    state_at,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = CircuitSettings()


def later(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def opened() -> Circuit:
    circuit = Circuit()
    for _ in range(3):
        admission = admit(circuit, START, "a", SETTINGS)
        assert isinstance(admission.verdict, Permit)
        circuit = on_failure(admission.circuit, admission.verdict, START, "http_503", SETTINGS)
    return circuit


def probing(now: datetime, circuit: Circuit | None = None) -> tuple[Circuit, Permit]:
    admission = admit(circuit or opened(), now, "prober", SETTINGS)
    assert isinstance(admission.verdict, Permit)
    assert admission.verdict.is_probe
    return admission.circuit, admission.verdict


def test_three_failures_in_a_row_open_it() -> None:
    circuit = opened()
    assert (circuit.state, circuit.failure_count, circuit.opened_at) == (CircuitState.OPEN, 3, START)
    assert circuit.last_error_code == "http_503"


def test_a_success_in_between_starts_the_count_anew() -> None:
    permit = Permit("a", 0, is_probe=False)
    circuit = on_failure(on_failure(Circuit(), permit, START, "x", SETTINGS), permit, START, "x", SETTINGS)
    assert on_success(circuit, permit).failure_count == 0
    assert on_success(Circuit(), permit) == Circuit()


def test_it_blocks_until_the_cool_down_is_over() -> None:
    verdict = admit(opened(), later(59.9), "a", SETTINGS).verdict
    assert verdict == Blocked(later(60), CircuitState.OPEN)
    assert state_at(opened(), later(59.9), SETTINGS) is CircuitState.OPEN
    assert state_at(opened(), later(60), SETTINGS) is CircuitState.HALF_OPEN


def test_one_probe_gets_through_and_nobody_else() -> None:
    circuit, _ = probing(later(60))
    assert circuit.state is CircuitState.HALF_OPEN
    assert isinstance(admit(circuit, later(60), "other", SETTINGS).verdict, Blocked)


def test_the_probes_success_closes_it() -> None:
    circuit, permit = probing(later(60))
    closed = on_success(circuit, permit)
    assert (closed.state, closed.failure_count, closed.opened_at) == (CircuitState.CLOSED, 0, None)
    assert closed.is_healthy


def test_the_probes_failure_opens_it_again_afresh() -> None:
    circuit, permit = probing(later(60))
    again = on_failure(circuit, permit, later(61), "timeout", SETTINGS)
    assert (again.state, again.opened_at, again.failure_count) == (CircuitState.OPEN, later(61), 4)
    assert isinstance(admit(again, later(120), "a", SETTINGS).verdict, Blocked)


def test_a_released_probe_frees_its_place_without_a_verdict() -> None:
    circuit, permit = probing(later(60))
    free = on_release(circuit, permit)
    assert free.state is CircuitState.HALF_OPEN
    probing(later(60), free)
    assert on_release(free, permit) == free
    assert on_release(Circuit(), Permit("a", 0, is_probe=False)) == Circuit()


def test_who_did_not_get_the_place_cannot_free_it() -> None:
    circuit, permit = probing(later(60))
    loser = Permit("loser", permit.generation, is_probe=True)
    assert on_release(circuit, loser) == circuit


def test_a_probe_that_died_loses_its_place_with_its_lease_and_its_verdict() -> None:
    circuit, dead = probing(later(60))
    assert isinstance(admit(circuit, later(149.9), "b", SETTINGS).verdict, Blocked)
    taken, _ = probing(later(150), circuit)
    assert on_success(taken, dead) == taken
    assert on_failure(taken, dead, later(150), "x", SETTINGS) == taken


def test_a_late_success_never_closes_an_open_circuit() -> None:
    late = Permit("slow", 0, is_probe=False)
    assert on_success(opened(), late) == opened()
    assert on_failure(opened(), late, later(1), "x", SETTINGS) == opened()


def test_a_clock_set_back_keeps_it_open_for_one_cool_down_at_most() -> None:
    admission = admit(opened(), later(-3600), "a", SETTINGS)
    assert admission.circuit.opened_at == later(-3600)
    assert admission.verdict == Blocked(later(-3540), CircuitState.OPEN)
    assert retry_at(opened(), later(-3600), SETTINGS) == later(-3540)


def test_a_clock_set_back_prolongs_neither_a_probe_nor_a_pause() -> None:
    circuit, _ = probing(later(60))
    assert admit(circuit, later(-3600), "a", SETTINGS).circuit.probe_until == later(-3510)
    paused = on_pause(Circuit(), START, 900, SETTINGS)
    assert admit(paused, later(-3600), "a", SETTINGS).circuit.paused_until == later(-2700)


def test_a_pause_holds_for_everybody_counts_as_nothing_and_ends_by_itself() -> None:
    paused = on_pause(Circuit(), START, 30, SETTINGS)
    assert admit(paused, later(29), "a", SETTINGS).verdict == Blocked(later(30), None)
    assert (paused.failure_count, paused.state) == (0, CircuitState.CLOSED)
    assert admit(paused, later(30), "a", SETTINGS).circuit.is_healthy
    assert on_pause(paused, START, 10, SETTINGS) == paused
    assert on_pause(Circuit(), START, -1, SETTINGS) == Circuit()
    assert on_pause(Circuit(), START, 1e300, SETTINGS).paused_until == later(900)


@pytest.mark.parametrize("name", ["failure_threshold", "cool_down_seconds", "probe_lease_seconds", "max_pause_seconds"])
def test_settings_that_make_no_sense_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        CircuitSettings(**{name: 0})


class AnyOrder(RuleBasedStateMachine):
    """Callers that come, answer, vanish and answer late, under a clock that jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.circuit = Circuit()
        self.now = START
        self.out: list[Permit] = []
        self.probe_taken_at: datetime | None = None

    @rule(seconds=st.floats(-100, 200))
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def somebody_asks(self) -> None:
        before = self.circuit
        admission = admit(before, self.now, "x", SETTINGS)
        self.circuit = admission.circuit
        match admission.verdict:
            case Permit() as permit:
                assert permit.is_probe == (before.state is not CircuitState.CLOSED)
                self.out.append(permit)
            case Blocked(retry, _):
                assert self.now < retry <= self.now + SETTINGS.max_pause

    @precondition(lambda self: self.out)
    @rule(data=st.data(), verdict=st.sampled_from(["success", "failure", "release", "vanish"]))
    def somebody_answers(self, data: st.DataObject, verdict: str) -> None:
        permit = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        before = self.circuit
        match verdict:
            case "success":
                self.circuit = on_success(before, permit)
            case "failure":
                self.circuit = on_failure(before, permit, self.now, "x", SETTINGS)
            case "release":
                self.circuit = on_release(before, permit)
        if permit.generation != before.generation:
            assert self.circuit == before

    @rule(seconds=st.floats(0, 2000))
    def dynamics_asks_for_silence(self, seconds: float) -> None:
        self.circuit = on_pause(self.circuit, self.now, seconds, SETTINGS)

    @invariant()
    def at_most_one_probe_counts(self) -> None:
        valid = [p for p in self.out if p.is_probe and p.generation == self.circuit.generation]
        assert len(valid) <= 1

    @invariant()
    def nothing_blocks_for_ever(self) -> None:
        assert retry_at(self.circuit, self.now, SETTINGS) <= self.now + SETTINGS.max_pause
        assert (self.circuit.failure_count >= 3) == (self.circuit.state is not CircuitState.CLOSED)


TestAnyOrder = AnyOrder.TestCase
