"""The ways to the database and to Dynamics, and what happens on them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Protocol, TypeAlias

from dynamics_sync.core.circuit import Circuit, CircuitState
from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.core.outcome import Answer, Transient
from simulation.dynamics_model import DynamicsModel, Fault
from simulation.knobs import Knobs
from simulation.loop import WORLD, Process, SimulationLoop
from simulation.plan import Action, Mood, Point
from simulation.promises import GONE, Flight, Promises
from simulation.stores import Database

INACTIVE = {"statecode": 1, "statuscode": 2}
ACTIVE = {"statecode": 0, "statuscode": 1}
STATUSES = {Mood.DOWN: 503, Mood.REFUSES: 400, Mood.THROTTLES: 429, Mood.UNAUTHORIZED: 401, Mood.TOO_MUCH: 413}
REFUSED = Answer(400, "0x80040203", True)

Writes: TypeAlias = Sequence[tuple[str, int | None]]
"""Keys and the states that they are to have; None for a record that is to go."""
Said: TypeAlias = list[Answer] | Answer | Transient
"""An answer for all records of a request, or one for each."""
Reply: TypeAlias = asyncio.Future[Said]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of Dynamics."""

    writes: Writes
    one_by_one: bool
    refused: frozenset[str] = frozenset()
    """Records that it refuses, where each stands by itself."""


class Surroundings(Protocol):
    """What the networks run through."""

    loop: SimulationLoop
    random: Random
    database: Database
    dynamics: DynamicsModel
    promises: Promises
    knobs: Knobs

    def note(self, who: str, what: str) -> None: ...

    def notify(self) -> None: ...


class Caller(Protocol):
    """A machine that sends something."""

    number: int
    name: str
    process: Process

    def reach(self, point: str) -> None: ...


class DatabaseNetwork:
    """The way to the database, and its temper."""

    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self.moods: list[Action] = []
        """Transactions that wait for a record's lock."""

    def send(self, machine: Caller, name: str, transaction: Callable[[], Any]) -> asyncio.Future[Any]:
        """Send a transaction there. Its result comes back, unless something happens."""
        random, loop = self._world.random, self._world.loop
        answer = loop.create_future()
        mood = self._mood(machine, name)
        there, back = random.random() * 0.008, random.random() * 0.008
        if random.random() < 0.02:
            there *= 40
        match mood:
            case Mood.DOWN | Mood.RESETS | Mood.CUT_OFF:
                seconds = 3.0 if mood is Mood.CUT_OFF else there
                loop.call_later(seconds, self._fail, answer, machine, name, context=WORLD)
                return answer
            case Mood.SLOW:
                there, back = random.random() * 0.8, random.random() * 0.8
            case Mood.SLOW_INSERTS:
                there = 0.3 + random.random()
                if random.random() < 0.5:  # the server's own time-out
                    loop.call_later(min(there, 0.45), self._fail, answer, machine, name, context=WORLD)
                    return answer

        def arrive() -> None:
            if answer.cancelled() and random.random() < 0.5:
                return  # the cancellation was there first
            before = self._world.database.circuit
            result = transaction()
            self._note_circuit(before, machine)
            self._world.note(machine.name, f"database: {name}")
            self._world.promises.check()
            machine.reach(name)
            if mood is Mood.LOSES_ANSWERS:
                loop.call_later(back, self._fail, answer, machine, name, context=WORLD)
            else:
                loop.call_later(back, _give, answer, result, context=WORLD)

        loop.call_later(there, arrive, context=WORLD)
        return answer

    def _fail(self, answer: asyncio.Future[Any], machine: Caller, name: str) -> None:
        if not answer.done():
            self._world.note(machine.name, f"database: {name} FAILED")
            answer.set_exception(DatabaseError("simulated"))

    def _note_circuit(self, before: Circuit, machine: Caller) -> None:
        circuit = self._world.database.circuit
        if circuit is before:
            return
        self._world.promises.check_circuit(before, circuit)
        if circuit.generation != before.generation:
            self._world.note(machine.name, f"circuit: {circuit.state}, {circuit.failure_count} failures")
            self._world.notify()

    def _mood(self, machine: Caller, name: str) -> Mood | None:
        for action in self.moods:
            if action.mood is Mood.CUT_OFF and action.worker != machine.number:
                continue
            if action.mood is Mood.SLOW_INSERTS and name != "queue insert":
                continue
            if self._world.random.random() < action.share:
                return action.mood
        return None


class DynamicsNetwork:
    """The way to Dynamics, and its temper."""

    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self.moods: list[Action] = []
        self.requests = 0
        self.under_way = 0
        """Requests that Dynamics may still carry out, whoever waits for them or not."""

    def send(self, worker: Caller, writes: Writes, *, one_by_one: bool, most: int) -> tuple[Flight, Reply]:
        """A request leaves, for one record or for many, which are written together or one by one. Its answer comes
        back, or one for each of them, unless something happens."""
        world = self._world
        is_probe = world.database.circuit.state is CircuitState.HALF_OPEN
        left_at = world.loop.time()
        given_up_at = left_at + world.knobs.leases.request_seconds
        keys = tuple(key for key, _ in writes)
        flight = Flight(keys, worker.number, worker.process, left_at, given_up_at, is_probe, one_by_one, most)
        self.requests += 1
        world.promises.leave(flight)
        worker.reach(Point.PROBE if is_probe else Point.REQUEST)
        if len(writes) > 1:
            worker.reach(Point.REQUEST_FOR_MANY)
        world.note(worker.name, f"request: {_told(writes)}{' one by one' if one_by_one else ''}")
        answer: Reply = self._world.loop.create_future()
        random = self._world.random
        there = 0.01 + random.random() * (0.1 if random.random() < 0.9 else 1.0)
        self.under_way += 1
        self._world.loop.call_later(
            there, self._arrive, worker, flight, Request(writes, one_by_one), answer, context=WORLD
        )
        return flight, answer

    def _arrive(self, worker: Caller, flight: Flight, request: Request, answer: Reply) -> None:
        self.under_way -= 1
        random = self._world.random
        (mood, key), works_in = self._mood(flight), random.random() * 0.05
        if mood is Mood.TOO_MUCH and len(request.writes) == 1:
            mood = None
        if mood is Mood.REFUSES and request.one_by_one:
            request, mood = replace(request, refused=frozenset({key} if key else flight.keys)), None
        match mood:
            case None:
                self._write(worker, works_in, flight, request, answer)
            case Mood.SLOW:
                self._write(
                    worker, random.uniform(0.3, 2 * self._world.knobs.leases.request_seconds), flight, request, answer
                )
            case Mood.LATE:
                latest = self._world.knobs.late_seconds - (self._world.loop.time() - flight.left_at) - 0.001
                self._write(worker, random.uniform(0.2, 1.0) * latest, flight, request, None)
            case Mood.LOSES_ANSWERS:
                self._write(worker, works_in, flight, request, None)
                self._answer(worker, works_in, flight, answer, Transient("connection_reset"))
            case Mood.SILENT:
                self._world.note("Dynamics", f"says nothing to {_told(request.writes)}")
            case Mood.RESETS:
                self._answer(worker, works_in, flight, answer, Transient("connection_reset"))
            case Mood.CUT_OFF:
                self._answer(worker, works_in, flight, answer, Transient("connection_refused"))
            case Mood.GARBLES:
                self._answer(worker, works_in, flight, answer, Answer(200))
            case _:
                if mood is Mood.DOWN and request.one_by_one:  # it breaks off
                    for write in request.writes[: random.randrange(len(request.writes))]:
                        self._apply(write)
                status, retry_after = STATUSES[mood], None
                if mood is Mood.THROTTLES:
                    retry_after = random.uniform(1.0, 6.0)
                said = Fault("status", status=status, retry_after=retry_after).answer()
                error = Answer(status, said.code or None, True, retry_after)
                self._answer(worker, works_in, flight, answer, error)

    def _write(
        self,
        worker: Caller,
        seconds: float,
        flight: Flight,
        request: Request,
        answer: Reply | None,
    ) -> None:
        self.under_way += 1
        self._world.loop.call_later(seconds, self._take_effect, worker, flight, request, answer, context=WORLD)

    def _take_effect(self, worker: Caller, flight: Flight, request: Request, answer: Reply | None) -> None:
        self.under_way -= 1
        said = [REFUSED if write[0] in request.refused else self._apply(write) for write in request.writes]
        self._world.promises.check()
        if answer is not None:
            whole: Said = said if request.one_by_one else said[0]
            self._answer(worker, self._world.random.random() * 0.1, flight, answer, whole)

    def _apply(self, write: tuple[str, int | None]) -> Answer:
        key, state = write
        if state is None:
            said = self._world.dynamics.apply("PATCH", key, INACTIVE, if_match=True)
        else:
            said = self._world.dynamics.apply("PATCH", key, {"n": state, **ACTIVE})
        self._world.note("Dynamics", f"{key} = {self._world.promises.held(key)}")
        return Answer(said.status or 0, said.code, said.code is not None)

    def _answer(self, worker: Caller, seconds: float, flight: Flight, answer: Reply, said: Said) -> None:
        def arrive() -> None:
            if not answer.done():
                first = said[0] if isinstance(said, list) else said
                self._world.promises.hear(flight, first)
                worker.reach(Point.ANSWER)
                words = [str(each.status) if isinstance(each, Answer) else each.error_code for each in _each(said)]
                self._world.note("Dynamics", f"answers {' '.join(flight.keys)}: {' '.join(words)}")
                answer.set_result(said)

        self._world.loop.call_later(seconds, arrive, context=WORLD)

    def _mood(self, flight: Flight) -> tuple[Mood | None, str]:
        """With the key of the record that it is about, if it is about one."""
        for action in self.moods:
            if action.mood is Mood.CUT_OFF and action.worker != flight.worker:
                continue
            if action.key and action.key not in flight.keys:
                continue
            if self._world.random.random() < action.share:
                return action.mood, action.key
        return None, ""


def _told(writes: Writes) -> str:
    return ", ".join(f"{key} = {GONE if state is None else state}" for key, state in writes)


def _each(said: Said) -> Sequence[Answer | Transient]:
    return said if isinstance(said, list) else [said]


def _give(answer: "asyncio.Future[Any]", result: object) -> None:
    if not answer.done():
        answer.set_result(result)
