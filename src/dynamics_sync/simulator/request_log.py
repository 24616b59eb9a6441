"""The log of Web API requests: what, when, which records, how it ended. No header and no body is ever kept."""

from collections import deque
from dataclasses import dataclass, field

LoggedRequests = deque["LoggedRequest"]


@dataclass(slots=True)
class LoggedRequest:
    """One Web API request. Times are seconds since the epoch."""

    at: float
    method: str
    path: str
    entity_set: str = ""
    keys: list[str] = field(default_factory=list)
    """Alternate keys or ids that it writes; a bulk request and a batch list all."""
    done_at: float | None = None
    status: int | None = None
    """None while it is under way, and where the connection was cut."""

    def document(self) -> dict[str, object]:
        """As `/_simulator/requests` shows it."""
        return {
            "at": self.at,
            "done_at": self.done_at,
            "method": self.method,
            "path": self.path,
            "entity_set": self.entity_set,
            "keys": self.keys,
            "status": self.status,
        }
