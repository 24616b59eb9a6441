"""What one HTTP request writes, on its way to the webhooks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar
from uuid import uuid4

from dynamics_sync.simulator.messages import Request
from dynamics_sync.simulator.webhooks.context import Origin
from dynamics_sync.simulator.webhooks.pipeline import Webhooks

Result = TypeVar("Result")


@dataclass
class RequestCommit:
    """Commits what a request, or a part of a batch, asks for. All that a batch does has one correlation."""

    webhooks: Webhooks
    root: Request

    async def __call__(self, request: Request, work: Callable[[], Result]) -> Result:
        """Do the work, and tell of its changes if anybody is to be told.

        Raises:
            DataverseError: as the work does; or a synchronous receiver did not answer 2xx, and nothing was changed.
        """
        if request.method == "GET" or self.webhooks.is_idle:
            return work()
        return await self.webhooks.commit(self._origin(request), work)

    @cached_property
    def _correlation_id(self) -> str:
        return str(uuid4())

    def _origin(self, request: Request) -> Origin:
        agent = self.root.headers.get("user-agent", "")
        return Origin(self.root.user_id, agent, self._correlation_id, str(uuid4()), request.query.get("tag"))
