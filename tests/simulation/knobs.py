"""The settings of a simulated installation: short, so that much happens in little time."""

from dataclasses import dataclass

from dynamics_sync.core.circuit import CircuitSettings
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.sync.lease import LeaseTimes
from dynamics_sync.sync.replay import ReplaySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What a person would set, and what the product's own constants are."""

    leases: LeaseTimes
    circuit: CircuitSettings
    policy: RetryPolicy
    poll_seconds: float
    late_seconds: float
    """An unanswered request takes effect no later than so long after it left."""
    replay: ReplaySettings
    shutdown_seconds: float = 3.0
    trust_seconds: float = 0.1
    rows_ahead_seconds: float = 0.3
    """How old a row that was read ahead may be."""


QUICK = Knobs(
    leases=LeaseTimes(lease_seconds=6.0, prepare_seconds=1.0, request_seconds=2.0),
    circuit=CircuitSettings(cool_down_seconds=5.0, probe_lease_seconds=6.0, notice_seconds=0.5, max_pause_seconds=30.0),
    policy=RetryPolicy(max_retries=3, base_delay_ms=1000),
    poll_seconds=4.0,
    late_seconds=12.0,
    replay=ReplaySettings(window=2, look_seconds=0.5, patience_seconds=4.0, blocked_patience_seconds=8.0),
)
