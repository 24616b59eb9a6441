"""What is done is drawn: what is likely to have an effect, as things stand."""

from collections.abc import Callable
from random import Random

from dynamics_sync.core.circuit import CircuitState
from dynamics_sync.core.operation import FailureReason, OperationType
from support.acts.cast import Cast, Choice
from support.acts.people import Change, Discard, End, Ending, Lock, Mark, Queue, Replay, SetCircuit
from support.acts.workers import Claim, GiveUp, Release, Renew, Resend, Settle

KEYS = "abc"


class Draw:
    """Draws from one source of chance."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def anything(self, cast: Cast) -> Choice:
        """Something that can be done whatever others do."""
        choices: list[Callable[[], Choice]] = [
            lambda: Change(*self._change()),
            lambda: Mark(*self._change()),
            lambda: Queue(self._random.choice(KEYS), self._reason()),
            lambda: SetCircuit(self._random.choice(list(CircuitState)), self._below(4), self._maybe()),
        ]
        if cast.model.waiting:
            choices += 3 * [lambda: Claim(self._below(2), 1 + self._below(3))]
        if cast.held:
            choices += 2 * [lambda: Settle(self._below(4), self._below(3), self._maybe(), self._maybe())]
            choices.append(lambda: Release(self._below(4), self._below(4), self._maybe()))
            choices.append(lambda: GiveUp(self._below(4), self._reason(), self._maybe()))
            choices.append(lambda: Renew(self._below(4)))
        if cast.entries:
            choices.append(lambda: Replay(self._below(4)))
            choices.append(lambda: Discard(self._below(4)))
        if cast.model.unanswered:
            choices.append(Resend)
        if cast.users:
            choices.append(lambda: End(self._random.choice(list(cast.users)), self._random.choice(list(Ending))))
        return self._random.choice(choices)()

    def lock(self) -> Choice:
        return Lock(self._below(2), *self._change())

    def _change(self) -> tuple[str, OperationType, tuple[str, ...]]:
        columns = self._random.choice([(), ("kind",), ("status",)])
        return self._random.choice(KEYS), self._random.choice(list(OperationType)), columns

    def _reason(self) -> FailureReason:
        return self._random.choice([FailureReason.RETRIES_EXHAUSTED, FailureReason.REJECTED])

    def _below(self, limit: int) -> int:
        return self._random.randrange(limit)

    def _maybe(self) -> bool:
        return self._random.randrange(2) == 1
