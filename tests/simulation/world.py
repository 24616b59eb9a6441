"""One history: the real engine of several workers, a model of the database and of Dynamics, people, and all that can
happen between them."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TypeAlias
from uuid import UUID

import structlog

from dynamics_sync.core.operation import WAITING_STATUSES
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from simulation.dynamics_model import DynamicsModel
from simulation.knobs import QUICK, Knobs
from simulation.loop import WORLD, Process, SimulationLoop
from simulation.machines import Machine, SimulatedClock, SimulatedWorker
from simulation.networks import DatabaseNetwork, DynamicsNetwork
from simulation.plan import END_OF_TROUBLE, Action, Kind, Plan
from simulation.promises import Promises
from simulation.stores import Database, ModelCircuitStore, direct

END = 200.0
"""By then everything must have arrived."""

Tell: TypeAlias = Callable[[float, str, str], None]
"""Takes the lines of a time line: when, who, what."""


class World:
    """All that there is."""

    def __init__(self, plan: Plan, tell: Tell | None = None, knobs: Knobs = QUICK) -> None:
        self.plan = plan
        self.knobs = knobs
        self.circuit_settings = replace(knobs.circuit, failure_threshold=plan.failure_threshold)
        self.policy = knobs.policy
        if plan.is_patient:
            # Not shorter than a request may take: the probe would not be alone.
            self.circuit_settings = replace(self.circuit_settings, cool_down_seconds=knobs.leases.request_seconds)
            self.policy = replace(knobs.policy, base_delay_ms=3 * knobs.policy.base_delay_ms)
        self.loop = SimulationLoop()
        self.random = Random(-1 - plan.seed)
        self.dynamics = DynamicsModel()
        self.database = Database(self.loop.time, knobs.late_seconds)
        self.promises = Promises(plan, self.database, self.dynamics, self.circuit_settings.cool_down, self.violate)
        self.to_database = DatabaseNetwork(self)
        self.to_dynamics = DynamicsNetwork(self)
        self.workers = [SimulatedWorker(self, number) for number in range(plan.workers)]
        self.operators: list[Process] = []
        """Commands that are running."""
        self.violations: list[str] = []
        self._tell = tell
        self.earlier: dict[str, list[int]] = {}
        """States that each record had: some come again."""
        self._before: dict[str, int | None] = {}
        """What each record was before its last change; None if it was not there."""
        self.held: set[str] = set()
        """Records that a user's open transaction has changed."""
        self._ambushes: list[Action] = []
        """What happens when a worker gets to some point."""
        self._names = 0
        self._state = 0
        self._is_past = False

    def run(self) -> list[str]:
        """Let it happen; what was violated."""
        for worker in self.workers:
            worker.start()
        for action in self.plan.actions:
            self.loop.call_at(action.at, self.act, action, context=WORLD)
        self.loop.call_at(END_OF_TROUBLE, self.repair, context=WORLD)
        arrived = self.loop.run(self._is_over, END)
        for error in self.loop.errors:
            self.violate(f"an exception that nobody took: {error}")
        if not arrived and not self.violations:
            waiting = ", ".join(self.database.waiting) or ", ".join(self.database.unanswered)
            self.violate(f"after {END - END_OF_TROUBLE:.0f} s without trouble records still wait: {waiting}")
        if arrived and not self.violations:
            self.promises.check_arrived()
        self._is_past = True
        return self.violations

    def _is_over(self) -> bool:
        if self.violations:
            return True
        return (
            self.loop.time() > END_OF_TROUBLE
            and not self.database.waiting
            and not self.database.unanswered
            and not self.to_dynamics.under_way
            and not self.operators
        )

    def violate(self, what: str) -> None:
        if self._is_past:
            return
        self.violations.append(f"{self.loop.time():.3f} s: {what}")
        self.note("CHECK", what)

    def note(self, who: str, what: str) -> None:
        if self._tell is not None:
            self._tell(self.loop.time(), who, what)

    def name(self) -> str:
        """A new id each time, the same in each run of a seed."""
        self._names += 1
        return str(UUID(int=self._names))

    def act(self, action: Action) -> None:
        """Let an action of the plan happen, now or at its point."""
        self.note("plan", str(action)[9:])
        if action.point is not None:
            self._ambushes.append(action)
            return
        match action.kind:
            case Kind.CHANGE | Kind.DELETE | Kind.UNDO:
                for key in [action.key] if action.key else [*self.promises.committed]:
                    if key not in self.held:
                        self.commit(replace(action, key=key))
            case Kind.TRANSACTION:
                if action.key not in self.held:
                    self.held.add(action.key)
                    self.loop.call_later(action.seconds, self.end_transaction, action, context=WORLD)
            case Kind.DYNAMICS:
                self.to_dynamics.moods.append(action)
                self.loop.call_later(action.seconds, self.to_dynamics.moods.remove, action, context=WORLD)
            case Kind.DATABASE:
                self.to_database.moods.append(action)
                self.loop.call_later(action.seconds, self.to_database.moods.remove, action, context=WORLD)
            case Kind.REPLAY:
                self._replay()
            case Kind.DISCARD:
                self._discard(action.key)
            case Kind.FORCE_OPEN | Kind.FORCE_CLOSED:
                circuits = ModelCircuitStore(self.database, direct)
                breaker = DynamicsCircuitBreaker(self.circuit_settings, circuits, SimulatedClock(self.loop))
                forced = breaker.force_open() if action.kind is Kind.FORCE_OPEN else breaker.force_closed()
                self.loop.start(Process("operator"), forced)
                self.promises.begin_anew()
            case _:
                self.workers[action.worker].suffer(action)

    def reach(self, worker: int, point: str) -> None:
        """A worker gets there, or what it sent does."""
        for action in [each for each in self._ambushes if each.point == point]:
            self._ambushes.remove(action)
            if action.passes:
                self._ambushes.append(replace(action, passes=action.passes - 1))
            else:
                self.loop.call_later(action.delay, self.act, replace(action, point=None, worker=worker), context=WORLD)

    def commit(self, action: Action) -> None:
        """A user's transaction commits, and with it what the trigger noted."""
        self._state += 1
        earlier = self.earlier.setdefault(action.key, [])
        state = None if action.kind is Kind.DELETE else self._state
        current = self.promises.committed.get(action.key)
        if action.kind is Kind.UNDO:
            state = self._before.get(action.key)
        elif state is not None and earlier and self.random.random() < 0.4:
            state = self.random.choice(earlier)
        elif state is not None:
            earlier.append(state)
        if state is None and current is None and action.key in self.promises.committed:
            return  # there is no such row
        self._before[action.key] = current
        self.promises.commit(action.key, state)
        self.database.note(action.key)
        self.note("user", f"{action.key} is {state}")
        self.notify()
        self.promises.check()

    def end_transaction(self, action: Action) -> None:
        self.held.discard(action.key)
        if action.commits:
            self.commit(action)

    def _replay(self) -> None:
        """`queue replay --all`, a process of its own."""
        ids = [UUID(entry.id) for entry in self.database.open_entries.values() if entry.status in WAITING_STATUSES]
        if ids:
            operator = Machine(self, "operator")
            self.operators.append(operator.process)
            self.loop.start(operator.process, operator.replay(ids))

    def _discard(self, key: str) -> None:
        entry = self.database.open_entries.get(key)
        if entry is not None and self.database.discard(entry.id):
            self.note("operator", f"discards {key}")
            self.promises.settled_by_person.add(key)
        self.promises.check()

    def notify(self) -> None:
        if self.plan.notifies:
            for worker in self.workers:
                worker.wake()

    def repair(self) -> None:
        """All trouble is over; in every other history a person replays the queue."""
        self.note("plan", "everything is repaired")
        self._ambushes.clear()
        for worker in self.workers:
            worker.repair()
        if self.plan.seed % 2:
            self._replay()


def simulate(plan: Plan, tell: Tell | None = None) -> World:
    """Let one history happen. The engine's own log goes into the time line, too."""

    def log(logger: object, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        words = " ".join(f"{name}={value}" for name, value in event.items() if name not in ("event", "level"))
        world.note("log", f"{event['event']} {words}")
        raise structlog.DropEvent

    world = World(plan, tell)
    if tell is None:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    else:
        structlog.configure(processors=[log])
    try:
        world.run()
        world.loop.close()
    finally:
        structlog.reset_defaults()
    return world
