"""Decides whether what must always hold (I1 to I5 in ARCHITECTURE.md) held in a history."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from chaos.history import CircuitChange, Event, History, Look, Owed, Request, State, Write

NOTICE_SECONDS = 0.25
"""From when on an open circuit must be silent, at the latest: the 100 ms that a look at a healthy circuit is believed,
and what the commit and the round trip may take. Where `opened_at` lies further ahead, from then on."""


class Rule(StrEnum):
    """What can be violated."""

    LOST = "lost"
    """I1: in neither outbox nor queue, and its newest state was never written to Dynamics."""
    STALE = "stale"
    """I2: an older state was the last that was written."""
    PHANTOM = "phantom"
    """Dynamics was given a state that was never committed, or values of two changes at once."""
    OVERLAP = "overlap"
    """I3: two requests in flight for one record."""
    SECOND_PROBE = "second probe"
    """I4: another request than the one probe in half-open."""
    WHILE_OPEN = "while open"
    """I5: a request began while the circuit was open."""
    FORGOTTEN = "forgotten commit"
    """The database has lost a commit that it had confirmed: nothing else can be judged by it."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken."""

    rule: Rule
    at: float
    text: str
    key: str | None = None


def check(history: History) -> list[Violation]:
    """Every violation, oldest first."""
    requests = sorted((request for request in history.requests if not request.frozen), key=lambda each: each.began)
    found = [
        *_forgotten(history),
        *_phantoms(history),
        *_unaccounted(history),
        *_not_newest(history),
        *_overlaps(requests),
        *_second_probes(history, requests),
        *_while_open(history, requests),
    ]
    return sorted(found, key=lambda violation: violation.at)


def _forgotten(history: History) -> Iterator[Violation]:
    committed = {change.transaction for change in history.changes}
    for transaction in sorted(history.acknowledged - committed):
        yield Violation(Rule.FORGOTTEN, 0.0, f"transaction {transaction} was confirmed and is not there")


def _phantoms(history: History) -> Iterator[Violation]:
    committed = {(change.key, change.state) for change in history.changes}
    for write in history.writes:
        if write.state is not None and (write.key, write.state) not in committed:
            yield Violation(Rule.PHANTOM, write.at, f"Dynamics got state {write.state}", write.key)


def _unaccounted(history: History) -> Iterator[Violation]:
    """I1, at each look. What was given and then overwritten by an older state is I2's: it must be healed by the end."""
    given = _Given(history.writes)
    told, fine = set(), set()
    for look in [*history.looks, *history.ends]:
        for key, owed in look.states.items():
            if (key, owed, look.life) in fine or (key, owed) in told:
                continue
            if given.has(key, owed, look):
                fine.add((key, owed, look.life))
            else:
                told.add((key, owed))
                yield Violation(Rule.LOST, look.after, f"state {owed.state} is nowhere", key)


def _not_newest(history: History) -> Iterator[Violation]:
    """I2, at each end."""
    given = _Given(history.writes)
    for look in history.ends:
        for key, owed in look.states.items():
            last = given.last(key, look)
            if last != owed.state and given.has(key, owed, look):
                yield Violation(Rule.STALE, look.after, f"state {last} instead of {owed.state}", key)


def overwritten(history: History) -> int:
    """How many writes put an older state over a newer one: to be healed by the end."""
    newest: dict[tuple[str, int], int] = {}
    found = 0
    for write in sorted(history.writes, key=lambda write: write.at):
        if write.state is not None:
            known = newest.get((write.key, write.life), write.state)
            found += write.state < known
            newest[write.key, write.life] = max(known, write.state)
    return found


def late_writes(history: History) -> int:
    """How many writes took effect when no sender waited for them any more: it had given up, or was dead."""
    spans: dict[str, list[Request]] = defaultdict(list)
    for request in history.requests:
        spans[request.key].append(request)
    return sum(
        not any(request.began <= write.at <= request.ended for request in spans[write.key]) for write in history.writes
    )


class _Given:
    """What Dynamics was given, by record and life."""

    def __init__(self, writes: Sequence[Write]) -> None:
        self._writes: dict[tuple[str, int], list[Write]] = defaultdict(list)
        for write in sorted(writes, key=lambda write: write.at):
            self._writes[write.key, write.life].append(write)

    def _until(self, key: str, look: Look) -> list[Write]:
        of_record = self._writes.get((key, look.life), [])
        return of_record[: bisect_right(of_record, look.after, key=lambda write: write.at)]

    def last(self, key: str, look: Look) -> State:
        """The state that Dynamics had at the look's end."""
        before = self._until(key, look)
        return before[-1].state if before else None

    def has(self, key: str, owed: Owed, look: Look) -> bool:
        """Whether it was given this state, or a newer one, before the look's end."""
        before = self._until(key, look)
        if any(write.state is None and write.at >= owed.since for write in before):
            return True
        if owed.state is None:  # it may never have been there, until a request that was decided on before took effect
            given_before = [write.state for write in before if write.at < owed.since]
            return not given_before or given_before[-1] is None
        return any(write.state is not None and write.state >= owed.state for write in before)


def _overlaps(requests: Sequence[Request]) -> Iterator[Violation]:
    by_key: dict[str, list[Request]] = defaultdict(list)
    for request in requests:
        by_key[request.key].append(request)
    for key, of_record in by_key.items():
        last = of_record[0]
        for request in of_record[1:]:
            if request.began < last.ended:
                seconds = last.ended - request.began
                text = f"{request.sender} began {seconds:.3f} s before the end of the request of {last.sender}"
                yield Violation(Rule.OVERLAP, request.began, text, key)
            last = max(last, request, key=lambda each: each.ended)


def _second_probes(history: History, requests: Sequence[Request]) -> Iterator[Violation]:
    """A request beside the probe, or without leave; and a probe that began while the one before it, whose place was
    given away, was still in flight."""
    last_probe: Request | None = None
    for change, until in _spans(history):
        if change.state != "half_open":
            last_probe = None
            continue
        probe, *others = _begun(requests, change.at, until) or [None]
        if probe is not None and (not change.is_probing or (last_probe and probe.began < last_probe.ended)):
            others = [probe, *others]
        last_probe = probe or last_probe
        for request in others:
            text = f"{request.sender} began, with the circuit half-open in generation {change.generation}"
            yield Violation(Rule.SECOND_PROBE, request.began, text, request.key)


def _while_open(history: History, requests: Sequence[Request]) -> Iterator[Violation]:
    for change, until in _spans(history):
        if change.state != "open" or change.opened_at is None:
            continue
        for request in _begun(requests, max(change.opened_at, change.at + NOTICE_SECONDS), until):
            seconds = request.began - change.opened_at
            text = f"{request.sender} began {seconds:.3f} s after the circuit opened"
            yield Violation(Rule.WHILE_OPEN, request.began, text, request.key)


def _begun(requests: Sequence[Request], first: float, until: float) -> Sequence[Request]:
    """Those that began in that time; `requests` are in order."""
    begin, end = (bisect_left(requests, at, key=lambda request: request.began) for at in (first, until))
    return requests[begin:end]


def _spans(history: History) -> Iterator[tuple[CircuitChange, float]]:
    """Each state of the circuit and its end; changes without a transition don't end it."""
    transitions: list[CircuitChange] = []
    for change in sorted(history.circuit, key=lambda change: change.at):
        if not transitions or change.generation != transitions[-1].generation:
            transitions.append(change)
    yield from ((one, following.at) for one, following in pairwise(transitions))
    if transitions:
        yield transitions[-1], float("inf")


def time_line(history: History, violation: Violation, before_seconds: float = 12.0) -> list[str]:
    """What happened to the record, and around it, up to the violation and shortly after."""
    first, last = violation.at - before_seconds, violation.at + 1.0
    lines = [Event(event.at, f"        {event.text}") for event in history.events if first <= event.at <= last]
    for circuit in history.circuit:
        if first <= circuit.at <= last:
            probe = ", probe out" if circuit.is_probing else ""
            lines.append(Event(circuit.at, f"        circuit {circuit.state}{probe} (generation {circuit.generation})"))
    lines += [
        Event(change.at, f"commits {change.kind}: state {change.state}")
        for change in history.changes
        if change.key == violation.key
    ]
    for request in history.requests:
        if request.key == violation.key:
            lines.append(Event(request.began, f"{request.sender} sends"))
            lines.append(Event(request.ended, f"{request.sender} has {request.how}"))
    lines += [
        Event(write.at, f"Dynamics stores state {write.state}")
        for write in history.writes
        if write.key == violation.key
    ]
    lines.append(Event(violation.at, f"^^^^^^^ {violation.rule}: {violation.text}"))
    around = sorted((line for line in lines if line.at <= last), key=lambda line: line.at)[-80:]
    return [f"{line.at - violation.at:+9.3f} s  {line.text}" for line in around]
