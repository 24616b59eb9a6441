"""How reconciliation is wired: for the command, and for the schedule in the worker."""

from dataclasses import dataclass
from uuid import uuid4

from dynamics_sync.core.mapping import Mapping
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.dynamics.reading import DataverseReader
from dynamics_sync.postgres.connections import Pool
from dynamics_sync.postgres.reconciliation import PostgresReconciliation
from dynamics_sync.postgres.reconciliation_turns import PostgresTurns, Turn
from dynamics_sync.postgres.records import PostgresRecords
from dynamics_sync.settings import Settings
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.ports import Clock
from dynamics_sync.sync.reading import GentleReader
from dynamics_sync.sync.reconcile import Reconciler, ReconciliationSchedule

TURN_MARGIN_SECONDS = 60.0
"""What may come between two requests: a token, a few queries, the wait before another try."""


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What compares the mapped tables with Dynamics."""

    store: PostgresReconciliation
    turns: PostgresTurns
    reconciler: Reconciler
    schedule: ReconciliationSchedule | None
    """None where the settings want none."""


def make_reconciliation(
    settings: Settings,
    *,
    mapping: Mapping,
    reader: DataverseReader,
    breaker: DynamicsCircuitBreaker,
    pool: Pool,
    records: PostgresRecords,
    clock: Clock,
) -> Reconciliation:
    """Wire it, with a turn of its own."""
    turn = Turn(settings.target, uuid4().hex, settings.request_timeout_seconds + TURN_MARGIN_SECONDS)
    store, turns = PostgresReconciliation(pool, turn), PostgresTurns(pool, turn)
    gentle = GentleReader(reader, breaker, RetryPolicy(settings.max_retries, settings.base_delay_ms), clock)
    reconciler = Reconciler(mapping=mapping, reader=reader, gentle=gentle, rows=records, store=store, turns=turns)
    schedule = None
    if settings.reconcile_hours > 0:
        schedule = ReconciliationSchedule(
            reconciler, turns, clock, every_hours=settings.reconcile_hours, repair=settings.reconcile_repair
        )
    return Reconciliation(store, turns, reconciler, schedule)
