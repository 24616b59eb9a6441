"""What a simulator is made of."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dynamics_sync.simulator.limits import Limits
from dynamics_sync.simulator.tables import Table


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """Every knob of a simulator.

    Raises:
        ValueError: there is no table, or two of one name; or TLS has no file for its authority.
    """

    tables: tuple[Table, ...]
    clients: Mapping[str, str] = field(default_factory=lambda: {"demo": "demo"})
    """Secrets by client id."""
    token_lifetime_seconds: int = 3599
    limits: Limits = field(default_factory=Limits)
    host: str = "127.0.0.1"
    port: int = 0
    """0 for any free one."""
    tls: bool = False
    """Serve https instead of http, which azure-identity and msal insist on."""
    ca_file: Path | None = None
    """With TLS: where to write the certificate (PEM) of the authority to trust."""
    seed: int = 0
    """For faults that meet a share of the requests."""
    logged_requests: int = 200_000
    """How many requests `/_simulator/requests` remembers; older ones are forgotten."""
    webhook_timeout_seconds: float = 60.0
    """How long a webhook's receiver may take to answer."""
    logged_deliveries: int = 10_000
    """How many deliveries of webhooks are remembered; older ones are forgotten."""
    now: Callable[[], float] = time.time
    """Seconds since the epoch, for tokens, limits, records and the request log."""

    def __post_init__(self) -> None:
        if not self.tables:
            raise ValueError("a simulator needs a table")
        for names in ([table.entity_set for table in self.tables], [table.logical_name for table in self.tables]):
            if len(set(names)) < len(names):
                raise ValueError(f"two tables have one name: {', '.join(names)}")
        if self.tls and self.ca_file is None:
            raise ValueError("tls needs ca_file, the file to write the certificate of the authority to")
