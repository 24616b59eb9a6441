"""Many single calls become few statements, without anybody waiting for a batch to fill."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


class Coalescer(Generic[Request, Result]):
    """Collects calls while a batch is under way; they form the next one.

    An idle coalescer sends a call at once, a busy one sends hundreds together: group commit, without a timer.

    Args:
        run_batch: answers many requests at once, in their order. An exception of it reaches every caller.
        largest: the most requests in one batch.
    """

    def __init__(
        self, run_batch: Callable[[Sequence[Request]], Awaitable[Sequence[Result]]], largest: int = 500
    ) -> None:
        self._run_batch = run_batch
        self._largest = largest
        self._waiting: list[tuple[Request, asyncio.Future[Result]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def __call__(self, request: Request) -> Result:
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._largest], self._waiting[self._largest :]
                await self._answer([call for call in batch if not call[1].done()])
        finally:
            self._runner = None

    async def _answer(self, batch: Sequence[tuple[Request, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._run_batch([request for request, _ in batch]) if batch else []
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), result in zip(batch, results, strict=True):
            if not answer.done():
                answer.set_result(result)
