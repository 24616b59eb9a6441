"""A gateway that takes one record at a time, as one that takes many."""

from collections.abc import Sequence
from dataclasses import dataclass

from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import NothingToSend, NotReady, Outcome, Unsendable
from dynamics_sync.sync.ports import BulkGateway, Gateway, Prepared, Request


def as_bulk(gateway: Gateway | BulkGateway) -> BulkGateway:
    """The gateway itself, or around it what lets it take them one after the other."""
    return gateway if isinstance(gateway, BulkGateway) else OneByOne(gateway)


class OneByOne:
    """Prepares the first of what it is given."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def most_together(self, source_table: str) -> int:
        """One."""
        return 1

    async def prepare(self, operations: Sequence[SyncOperation], *, one_by_one: bool = False) -> Prepared:
        """As the gateway's, for the first record."""
        prepared = await self._gateway.prepare(operations[0])
        if isinstance(prepared, NothingToSend | Unsendable | NotReady):
            return Prepared(instead={0: prepared})
        return Prepared(_Single(prepared), (0,))

    async def renew_token(self) -> None:
        """As the gateway's."""
        await self._gateway.renew_token()


@dataclass(frozen=True, slots=True)
class _Single:
    request: Request

    async def send(self) -> Sequence[Outcome]:
        return (await self.request.send(),)

    def alone(self) -> "_Single":
        return self
