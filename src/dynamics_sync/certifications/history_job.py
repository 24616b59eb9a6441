"""`dynamics-sync history`: all certifications, step by step. Nothing is kept but counts and the ids to be told.

Both jobs may be killed at any time and started again: what is done is seen in the table. Any number may run at once,
beside anybody who appends.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from dynamics_sync.certifications.history_store import HistoryStore
from dynamics_sync.sync.ports import Clock

MOST_NAMED = 10_000
"""Certifications that a report names; it counts all."""
PATIENCE_SECONDS = 30.0
"""How long is waited, in all, for certifications that somebody has locked."""
PAUSE_SECONDS = 0.5

Tell = Callable[[int], None]
"""Told how many certifications were looked at, in this pass."""


@dataclass(slots=True)
class MigrationReport:
    """What a migration did."""

    migrated: int = 0
    entries: int = 0
    left: int = 0
    """Histories with an entry that cannot be upgraded: they stay as they are."""
    busy: int = 0
    """Certifications that somebody had locked until the end."""
    problems: dict[UUID, str] = field(default_factory=dict)
    """The first problem of each that is left."""

    @property
    def is_complete(self) -> bool:
        return self.left == 0 and self.busy == 0


@dataclass(slots=True)
class CheckReport:
    """How the copies compare with the table."""

    checked: int = 0
    not_migrated: int = 0
    differing: int = 0
    repaired: int = 0
    named: list[UUID] = field(default_factory=list)
    """Those that differ; once repaired, too."""
    obstacles: dict[UUID, str] = field(default_factory=dict)
    """Why some of them could not be repaired."""


async def migrate_histories(store: HistoryStore, clock: Clock, at_once: int, tell: Tell) -> MigrationReport:
    """Enter all histories into the table that are not there yet.

    Raises:
        DatabaseError: it cannot go on; what was done is done.
    """
    report = MigrationReport()
    waited = 0.0
    while True:
        entered = report.migrated
        await _migration_pass(store, at_once, tell, report)
        if report.busy == 0 or waited >= PATIENCE_SECONDS:
            return report
        if report.migrated == entered:
            waited += PAUSE_SECONDS
        await clock.sleep(PAUSE_SECONDS)


async def _migration_pass(store: HistoryStore, at_once: int, tell: Tell, report: MigrationReport) -> None:
    report.left = report.busy = 0
    report.problems.clear()
    looked_at, after = 0, None
    while True:
        step = await store.migrate(after, at_once)
        looked_at, after = looked_at + step.looked_at, step.last_id
        report.migrated += step.migrated
        report.entries += step.entries
        report.busy += step.busy
        report.left += len(step.left_ids)
        named = dict(zip(step.left_ids, step.left_problems, strict=True))
        report.problems |= dict(list(named.items())[: MOST_NAMED - len(report.problems)])
        tell(looked_at)
        if step.looked_at < at_once:
            return


async def check_histories(store: HistoryStore, at_once: int, tell: Tell, *, repair: bool) -> CheckReport:
    """Compare all copies with the table; make them what it says if wanted.

    Raises:
        DatabaseError: it cannot go on.
    """
    report = CheckReport()
    after = None
    while True:
        step = await store.compare(after, at_once)
        after = step.last_id
        report.checked += step.looked_at
        report.not_migrated += step.not_migrated
        report.differing += len(step.differing)
        report.named += step.differing[: MOST_NAMED - len(report.named)]
        if repair:
            for certification_id in step.differing:
                await _repair(store, certification_id, report)
        tell(report.checked)
        if step.looked_at < at_once:
            return report


async def _repair(store: HistoryStore, certification_id: UUID, report: CheckReport) -> None:
    obstacle = await store.repair(certification_id)
    if obstacle is None:
        report.repaired += 1
    elif len(report.obstacles) < MOST_NAMED:
        report.obstacles[certification_id] = obstacle
