"""`/health/…` beside the worker: is the process alive, can it work, how is the circuit (R9)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynamics_sync.core.errors import DynamicsSyncError
from dynamics_sync.sync.breaker import CircuitStatus

if TYPE_CHECKING:
    from fastapi import FastAPI

Check = Callable[[], Awaitable[None]]

ANSWER_SECONDS = 2.0
"""Whoever asks for health waits no longer than this for a part of it."""


@dataclass(frozen=True, slots=True)
class Health:
    """What the pages ask. A check raises DynamicsSyncError, in words for people, where something is wrong."""

    checks: Mapping[str, Check]
    circuits: Mapping[str, Callable[[], Awaitable[CircuitStatus]]]
    """By target, Dynamics first."""


def health_app(health: Health) -> "FastAPI":
    """An application with the three health pages."""
    # Slow to import: commands that serve no pages do without.
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse

    app = FastAPI(title="dynamics-sync", docs_url=None, redoc_url=None)

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "pass"}

    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        outcomes = await asyncio.gather(*(_outcome(check) for check in health.checks.values()))
        results = dict(zip(health.checks, outcomes, strict=True))
        passed = all(result["status"] == "pass" for result in results.values())
        document = {"status": "pass" if passed else "fail", "checks": results}
        return JSONResponse(document, status_code=200 if passed else 503)

    @app.get("/health/circuit")
    async def circuit() -> JSONResponse:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                statuses = await asyncio.gather(*(status() for status in health.circuits.values()))
                return JSONResponse(circuits_document(dict(zip(health.circuits, statuses, strict=True))))
        except (DynamicsSyncError, TimeoutError) as error:
            return JSONResponse(_failed(error), status_code=503)

    return app


def circuit_document(status: CircuitStatus) -> dict[str, str | int | None]:
    """A circuit as JSON."""
    return {
        "state": status.state.value,
        "failure_count": status.failure_count,
        "opened_at": status.opened_at.isoformat() if status.opened_at else None,
        "last_error_code": status.last_error_code,
        "retry_at": status.retry_at.isoformat() if status.retry_at else None,
    }


def circuits_document(statuses: Mapping[str, CircuitStatus]) -> dict[str, Any]:
    """The first target's circuit; where there are more, all of them besides."""
    documents = {name: circuit_document(status) for name, status in statuses.items()}
    first: dict[str, Any] = next(iter(documents.values()))
    return first if len(documents) == 1 else {**first, "targets": documents}


async def _outcome(check: Check) -> dict[str, str]:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await check()
    except (DynamicsSyncError, TimeoutError) as error:
        return _failed(error)
    return {"status": "pass"}


def _failed(error: Exception) -> dict[str, str]:
    return {"status": "fail", "detail": str(error) or f"There was no answer within {ANSWER_SECONDS:g} s."}
