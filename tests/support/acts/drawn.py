"""What is done is drawn: what is likely to have an effect, as things stand."""

from collections.abc import Callable, Sequence
from random import Random

from dynamics_sync.core.circuit import CircuitState
from dynamics_sync.core.operation import FailureReason, OperationType
from dynamics_sync.postgres.outbox import TAKEN_FROM
from support.acts.cast import Cast, Choice
from support.acts.people import Change, Discard, End, Ending, Lock, Mark, Queue, Replay, SetCircuit
from support.acts.workers import Claim, GiveUp, Release, Renew, Resend, Settle

KEYS = "abcd"


class Draw:
    """Draws from one source of chance."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def anything(self, cast: Cast) -> Choice:
        """Something that can be done whatever others do."""
        choices: list[Callable[[], Choice]] = [
            *2 * [lambda: self._changes(KEYS)],
            lambda: Mark(*self._change()),
            lambda: Queue(self._random.choice(KEYS), self._reason()),
            lambda: SetCircuit(self._random.choice(list(CircuitState)), self._below(4), self._maybe()),
        ]
        if cast.model.waiting:
            choices += 3 * [lambda: self._claim()]
        if cast.held:
            choices += 4 * [lambda: Settle(self._below(4), self._below(3), self._maybe(), self._maybe())]
            choices.append(lambda: Release(self._below(4), self._below(4), self._maybe()))
            choices.append(lambda: GiveUp(self._below(4), self._reason(), self._maybe()))
            choices.append(lambda: Renew(self._below(4)))
        if cast.entries:
            choices.append(lambda: Replay(self._below(4)))
            choices.append(lambda: Discard(self._below(4)))
        if cast.model.unanswered:
            choices.append(Resend)
        if cast.users:
            choices += 3 * [lambda: End(self._random.choice(list(cast.users)), self._random.choice(list(Ending)))]
        return self._random.choice(choices)()

    def rush(self, cast: Cast) -> list[Choice]:
        """Some records change that nobody is at work on, and somebody claims: they are taken if nothing hinders it."""
        at_rest = sorted(set(KEYS) - cast.model.waiting)
        claim = Claim(self._below(2), 1 + self._below(4), 1 + self._below(2))
        return [self._changes(at_rest), claim] if at_rest else [claim]

    def lock(self) -> Choice:
        return Lock(self._below(2), *self._change())

    def _changes(self, keys: Sequence[str]) -> Choice:
        some = self._random.sample(keys, 1 + self._below(min(len(keys), 3)))
        _, operation_type, columns = self._change()
        return Change(tuple(some), operation_type, columns)

    def _claim(self) -> Choice:
        return Claim(self._below(2), 1 + self._below(4), self._random.choice([1, 1, 2, 2, 3, TAKEN_FROM]))

    def _change(self) -> tuple[str, OperationType, tuple[str, ...]]:
        columns = self._random.choice([(), ("kind",), ("status",)])
        return self._random.choice(KEYS), self._random.choice(list(OperationType)), columns

    def _reason(self) -> FailureReason:
        return self._random.choice([FailureReason.RETRIES_EXHAUSTED, FailureReason.REJECTED])

    def _below(self, limit: int) -> int:
        return self._random.randrange(limit)

    def _maybe(self) -> bool:
        return self._random.randrange(2) == 1
