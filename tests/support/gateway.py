"""A Dynamics that answers as a script says."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import Accepted, NoRequest, NothingToSend, NotReady, Outcome, Unsendable
from dynamics_sync.sync.ports import Prepared, Request


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


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that left."""

    keys: Sequence[str]
    one_by_one: bool = False


@dataclass
class ScriptedBulkGateway:
    """Takes many records at once: answers one request after the other, and then accepts everything.

    An answer is one outcome for all records, one for each (those left over are for nobody), or an error that sending
    raises.
    """

    answers: list[Outcome | Sequence[Outcome] | BaseException] = field(default_factory=list)
    most: int = 1000
    instead: dict[str, NoRequest] = field(default_factory=dict)
    """Why records, by their key, go into no request."""
    unready: list[BaseException | None] = field(default_factory=list)
    """What getting ready raises, the first time and then."""
    sent: list[Sent] = field(default_factory=list)
    renewals: int = 0

    def most_together(self, source_table: str) -> int:
        return self.most

    async def prepare(self, operations: Sequence[SyncOperation], *, one_by_one: bool = False) -> Prepared:
        if self.unready and (error := self.unready.pop(0)) is not None:
            raise error
        keys = [operation.record_key for operation in operations]
        instead = {place: self.instead[key] for place, key in enumerate(keys) if key in self.instead}
        places = [place for place in range(len(keys)) if place not in instead][: self.most]
        if not places:
            return Prepared(instead=instead)
        sent = Sent([keys[place] for place in places], one_by_one)
        return Prepared(ScriptedBulkRequest(self, sent), places, instead)

    async def renew_token(self) -> None:
        self.renewals += 1


@dataclass(frozen=True, slots=True)
class ScriptedBulkRequest:
    """Ready to leave."""

    gateway: ScriptedBulkGateway
    sent: Sent

    async def send(self) -> Sequence[Outcome]:
        self.gateway.sent.append(self.sent)
        answer = self.gateway.answers.pop(0) if self.gateway.answers else Accepted()
        if isinstance(answer, BaseException):
            raise answer
        count = len(self.sent.keys)
        return answer[:count] if isinstance(answer, Sequence) else [answer] * count

    def alone(self) -> "ScriptedBulkRequest":
        return ScriptedBulkRequest(self.gateway, Sent(self.sent.keys[:1], self.sent.one_by_one))
