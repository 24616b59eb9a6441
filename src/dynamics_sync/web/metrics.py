"""`/metrics` for Prometheus: asked of the database at each scrape, so that every process tells the same.

No label comes from data, and nothing is counted by person or record. What the database cannot tell is left out, and
`dynamics_sync_up` is 0.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from dynamics_sync.core.circuit import CircuitState
from dynamics_sync.core.errors import DynamicsSyncError
from dynamics_sync.core.incoming import InboxStatus
from dynamics_sync.core.operation import QueueStatus
from dynamics_sync.sync.breaker import CircuitStatus

if TYPE_CHECKING:
    from fastapi import FastAPI
    from prometheus_client.core import GaugeMetricFamily, Metric

ANSWER_SECONDS = 2.0
"""Prometheus waits ten seconds by default; a database that is slow must not make the rest unknown."""

Source = Callable[[], Awaitable["Metric"]]
"""Asks for one metric. Raises DynamicsSyncError where it cannot be had."""

Counts = Callable[[], Awaitable[Mapping[str, int]]]
"""How many there are, by status."""


def add_metrics(app: "FastAPI", sources: Sequence[Source]) -> None:
    """Serve the page."""
    # Slow to import: commands that serve no pages do without.
    from fastapi import Request, Response
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        answers = await asyncio.gather(*(_answer(source) for source in sources))
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Answered([answer for answer in answers if answer is not None], up=None not in answers))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=content_type)


def metric_sources(
    waiting: Callable[[], Awaitable[int]],
    queue: Counts,
    inbox: Counts,
    circuits: Mapping[str, Callable[[], Awaitable[CircuitStatus]]],
    oversized: Callable[[], Awaitable[int]] | None,
) -> list[Source]:
    """What is told of the outbox, of the queue and the inbox (by status), of the circuits (by target) and of histories,
    if any."""
    sources = [
        _number("dynamics_sync_outbox_waiting", "Records in the outbox.", waiting),
        _by_status("dynamics_sync_queue_entries", "Entries of the retry queue.", QueueStatus, queue),
        _by_status("dynamics_sync_inbox_deliveries", "Webhooks that Dynamics sent.", InboxStatus, inbox),
        _circuit_states(circuits),
    ]
    if oversized is not None:
        what = "Certifications with more than 500 entries in their renewal history."
        sources.append(_number("dynamics_sync_oversized_histories", what, oversized))
    return sources


class _Answered:
    """What was had at one scrape, as a collector."""

    def __init__(self, metrics: Iterable["Metric"], *, up: bool) -> None:
        self._metrics = metrics
        self._up = up

    def collect(self) -> Iterable["Metric"]:
        yield _gauge("dynamics_sync_up", "Whether the database told everything that is asked here.", int(self._up))
        yield from self._metrics


def _gauge(name: str, documentation: str, value: float) -> "Metric":
    """One number."""
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, documentation, value=value)


def _number(name: str, documentation: str, count: Callable[[], Awaitable[int]]) -> Source:
    """A source of one number."""

    async def ask() -> "Metric":
        return _gauge(name, documentation, await count())

    return ask


def _by_status(name: str, documentation: str, statuses: type[StrEnum], counts: Counts) -> Source:
    """Each status is told, also one that nothing has."""

    async def ask() -> "Metric":
        found = await counts()
        metric = _labelled(name, documentation, ("status",))
        for status in statuses:
            metric.add_metric([status.value], found.get(status.value, 0))
        return metric

    return ask


def _circuit_states(statuses: Mapping[str, Callable[[], Awaitable[CircuitStatus]]]) -> Source:
    """By target: 1 for the state that its circuit is in, 0 for the others."""

    async def ask() -> "Metric":
        found = await asyncio.gather(*(status() for status in statuses.values()))
        metric = _labelled("dynamics_sync_circuit_state", "1 for the circuit's present state.", ("target", "state"))
        for target, status in zip(statuses, found, strict=True):
            for state in CircuitState:
                metric.add_metric([target, state.value], int(state is status.state))
        return metric

    return ask


def _labelled(name: str, documentation: str, labels: Sequence[str]) -> "GaugeMetricFamily":
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, documentation, labels=labels)


async def _answer(source: Source) -> "Metric | None":
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await source()
    except (DynamicsSyncError, TimeoutError):
        return None
