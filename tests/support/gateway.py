"""A Dynamics that answers as a script says."""

from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import Accepted, Outcome


class ScriptedGateway:
    """Gives one outcome after the other, then accepts everything."""

    def __init__(self, *outcomes: Outcome | BaseException) -> None:
        self._outcomes = list(outcomes)
        self.sent: list[SyncOperation] = []
        self.renewals = 0

    async def send(self, operation: SyncOperation) -> Outcome:
        self.sent.append(operation)
        outcome = self._outcomes.pop(0) if self._outcomes else Accepted()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def renew_token(self) -> None:
        self.renewals += 1
