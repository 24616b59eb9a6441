"""A Dynamics that answers as a script says."""

from dataclasses import dataclass

from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import Accepted, NothingToSend, NotReady, Outcome, Unsendable
from dynamics_sync.sync.ports import Request


class ScriptedGateway:
    """Gives one outcome after the other, then accepts everything."""

    def __init__(self, *outcomes: Outcome | BaseException) -> None:
        self._outcomes = list(outcomes)
        self.sent: list[SyncOperation] = []
        self.renewals = 0

    async def prepare(self, operation: SyncOperation) -> Request | NothingToSend | Unsendable | NotReady:
        if self._outcomes and isinstance(self._outcomes[0], NothingToSend | Unsendable | NotReady):
            return self._outcomes.pop(0)  # type: ignore[return-value]
        return ScriptedRequest(self, operation)

    async def send(self, operation: SyncOperation) -> Outcome:
        self.sent.append(operation)
        outcome = self._outcomes.pop(0) if self._outcomes else Accepted()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def renew_token(self) -> None:
        self.renewals += 1


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """Ready to leave."""

    gateway: ScriptedGateway
    operation: SyncOperation

    async def send(self) -> Outcome:
        return await self.gateway.send(self.operation)
