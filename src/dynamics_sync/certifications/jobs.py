"""What the domain's jobs beside the worker have in common: a way to the database, and never giving up."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from psycopg import AsyncConnection

from dynamics_sync.sync.events import emit
from dynamics_sync.sync.ports import Clock

Transaction = Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]
"""Gives a connection in a transaction, which ends with the block."""


async def repeat(job: Callable[[], Awaitable[None]], every_seconds: float, clock: Clock, failed: str) -> None:
    """Do it at once and again and again, until cancelled. Whatever goes wrong is told as the event `failed`, and tried
    again at the next turn."""
    while True:
        try:
            await job()
        except Exception as error:
            emit(failed, "error", exception_type=type(error).__name__)
        await clock.sleep(every_seconds)
