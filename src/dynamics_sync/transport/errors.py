"""What went wrong on the way."""

from dynamics_sync.core.errors import DynamicsSyncError


class NoAnswerError(DynamicsSyncError):
    """A request got no answer.

    Args:
        code: our code for it: "dns", "tls" or "connection_refused" where it did not leave; "connection_reset" or
            "timeout" where it may have arrived.
    """

    def __init__(self, code: str) -> None:
        super().__init__(f"There was no answer ({code}).")
        self.code = code
