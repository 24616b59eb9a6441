"""The errors that a person may see. Each message says what happened, what it means and what to do.

Messages are written by us and never quote an answer, a row or a setting's secret value (R14, R16).
"""


class DynamicsSyncError(Exception):
    """Root of every error that dynamics-sync raises on purpose."""


class ConfigurationError(DynamicsSyncError):
    """A setting is missing, malformed or contradicts another one."""


class MappingError(ConfigurationError):
    """The mapping, or a portal's contract, names something that is not there, or contradicts itself."""


class DatabaseError(DynamicsSyncError):
    """The database cannot be reached, or is not in the state that this version needs."""


class CredentialsError(DynamicsSyncError):
    """No access token could be had: the identity provider refused, or cannot be reached."""


class CircuitOpenError(DynamicsSyncError):
    """A call was not made because the circuit is open, half-open with its probe taken, or paused."""


class QueueInsertError(DynamicsSyncError):
    """A failed operation could not be written to the retry queue, and no outbox holds it either (R13)."""


class ReplayStoppedError(DynamicsSyncError):
    """A replay ended before all its entries were put back; those that were not are still open."""
