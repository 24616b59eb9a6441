"""Reconciliation: all mapped tables beside Dynamics, by hand or on a schedule, never two at once."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from dynamics_sync.core.errors import DynamicsSyncError, MappingError
from dynamics_sync.core.mapping import Mapping, TableMapping
from dynamics_sync.sync.events import emit
from dynamics_sync.sync.ports import Clock
from dynamics_sync.sync.reading import GentleReader, Patience, Reader, RefusedReadingError
from dynamics_sync.sync.reconcile_table import Tools, open_table
from dynamics_sync.sync.reconciliation import Progress, ReconciliationStore, Rows, TableReport, Turns

REPAIRED_AT_ONCE = 500

PAUSE_SECONDS = 3600.0
"""How long the schedule rests after a reconciliation that could not be finished."""

LOOK_SECONDS = 60.0
"""How often the schedule asks whether a reconciliation is due."""


class TurnTakenError(DynamicsSyncError):
    """Somebody else reconciles."""

    def __init__(self) -> None:
        super().__init__(
            "Another reconciliation is under way, perhaps a worker's. Wait for its end: `dynamics-sync status` shows "
            "what it has found."
        )


def _silent(_: object) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who wants to know how it goes."""

    progress: Callable[[Progress], None] = _silent
    silence: Callable[[datetime | None], None] = _silent
    """Until when Dynamics is left alone; None once it is not."""


class Reconciler:
    """Compares what Dynamics holds with what the mapping would send, and marks dirty what differs if it is told to."""

    def __init__(
        self,
        *,
        mapping: Mapping,
        reader: Reader,
        gentle: GentleReader,
        rows: Rows,
        store: ReconciliationStore,
        turns: Turns,
    ) -> None:
        self._mapping = mapping
        self._reader = reader
        self._gentle = gentle
        self._rows = rows
        self._store = store
        self._turns = turns

    async def run(
        self,
        sources: Sequence[str] | None = None,
        *,
        repair: bool = False,
        restart: bool = False,
        if_due_every_seconds: float | None = None,
        watcher: Watcher | None = None,
    ) -> list[TableReport]:
        """Compare some tables, or all; what was begun and not finished is gone on with.

        Args:
            sources: source tables; None for all of the mapping.
            repair: mark what differs dirty, so that the worker brings it to Dynamics.
            restart: forget what was begun, and what was seen before: read all of Dynamics' tables.
            if_due_every_seconds: do it only if that much time has passed since the last one.

        Raises:
            MappingError: a table is not in the mapping.
            TurnTakenError: another one is under way, or none is due.
            ReadingError, CredentialsError, DatabaseError: it cannot go on for now.
        """
        tables = self._chosen(sources)
        if not await self._turns.take(if_due_every_seconds):
            raise TurnTakenError
        try:
            if restart:
                await self._store.forget([table.source for table in tables])
            begun_at = await self._turns.begin(restart=restart) if sources is None else None
            watcher = watcher or Watcher()
            reports = [await self._reconcile(table, begun_at, watcher, repair=repair) for table in tables]
            if sources is None and not any(report.error for report in reports):
                await self._turns.finished()
            return reports
        finally:
            with contextlib.suppress(DynamicsSyncError):
                await self._turns.give_back()

    def _chosen(self, sources: Sequence[str] | None) -> Sequence[TableMapping]:
        if sources is None:
            return self._mapping.tables
        known = {table.source: table for table in self._mapping.tables}
        for source in sources:
            if source not in known:
                raise MappingError(f"Table {source} is not in the mapping; it has {', '.join(known)}.")
        return [known[source] for source in sources]

    async def _reconcile(
        self, table: TableMapping, begun_at: datetime | None, watcher: Watcher, *, repair: bool
    ) -> TableReport:
        """One table. What keeps only this one from being compared is told in its report."""
        patience = Patience(self._turns.keep, watcher.silence)
        tools = Tools(self._reader, self._gentle, self._rows, self._store, patience, watcher.progress)
        progress = await self._store.load(table.source)
        is_done = (
            progress is not None
            and progress.finished_at is not None
            and begun_at is not None
            and progress.finished_at >= begun_at
        )
        if progress is None or not is_done:
            try:
                progress = await (await open_table(tools, table)).run(progress)
            except (RefusedReadingError, MappingError) as error:
                reached = await self._store.load(table.source)
                is_of_this_run = reached is not None and reached.finished_at is None
                report = await self._store.report(reached) if reached and is_of_this_run else TableReport(table.source)
                return replace(report, error=str(error))
        while repair and await self._store.repair(progress, REPAIRED_AT_ONCE):
            await self._turns.keep()
        return await self._store.report(progress)


class ReconciliationSchedule:
    """Reconciles every so many hours, in whichever worker notices first that it is due."""

    def __init__(self, reconciler: Reconciler, turns: Turns, clock: Clock, *, every_hours: float, repair: bool) -> None:
        self._reconciler = reconciler
        self._turns = turns
        self._clock = clock
        self._every_seconds = every_hours * 3600
        self._repair = repair

    async def run(self) -> None:
        """Until cancelled. Whatever goes wrong is told, and tried again later."""
        while True:
            try:
                wait_seconds = await self._look()
            except Exception as error:
                emit("reconcile.failed", "error", exception_type=type(error).__name__)
                wait_seconds = LOOK_SECONDS
            await self._clock.sleep(min(max(wait_seconds, 1.0), LOOK_SECONDS))

    async def _look(self) -> float:
        """Reconcile if it is due; give the seconds until the next one is."""
        wait_seconds = await self._turns.seconds_until_due(self._every_seconds)
        if wait_seconds > 0:
            return wait_seconds
        try:
            reports = await self._reconciler.run(repair=self._repair, if_due_every_seconds=self._every_seconds)
        except TurnTakenError:
            return LOOK_SECONDS
        except DynamicsSyncError:
            await self._turns.failed(PAUSE_SECONDS)
            raise
        for report in reports:
            _tell(report)
        if any(report.error for report in reports):
            await self._turns.failed(PAUSE_SECONDS)
        return await self._turns.seconds_until_due(self._every_seconds)


def _tell(report: TableReport) -> None:
    counts: dict[str, Any] = {
        "source_table": report.source_table,
        "compared": report.compared,
        "missing": report.missing,
        "different": report.different,
        "extra": report.extra,
        "repaired": report.repaired,
    }
    if report.error is not None:
        emit("reconcile.refused", "error", **counts)
    elif report.differences:
        emit("reconcile.found", "warning", **counts)
    else:
        emit("reconcile.agreed", **counts)
