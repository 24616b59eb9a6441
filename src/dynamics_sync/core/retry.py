"""How often one operation is tried, and how long it waits in between (R1)."""

from dataclasses import dataclass

MAX_DELAY_MS = 15 * 60 * 1000
"""No single wait is longer than this, however many retries a policy allows."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Up to `max_retries` further requests after the first, each wait twice the one before.

    The default waits 2 s, 4 s and 8 s. There is no jitter: the circuit, shared by all workers, keeps a crowd away
    from Dynamics, and a person who reads a log can check the waits by hand.

    Raises:
        ValueError: a negative number was given.
    """

    max_retries: int = 3
    base_delay_ms: int = 2000

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ValueError(f"max_retries must be 0 or more, not {self.max_retries}")
        if self.base_delay_ms < 0:
            raise ValueError(f"base_delay_ms must be 0 or more, not {self.base_delay_ms}")

    @property
    def max_requests(self) -> int:
        """The first request and all its retries."""
        return self.max_retries + 1

    def delay_ms(self, failed_requests: int) -> int:
        """Milliseconds to wait after the given number of failed requests (1 or more); 0 when none is left."""
        if failed_requests < 1:
            raise ValueError(f"failed_requests counts from 1, not {failed_requests}")
        if failed_requests > self.max_retries:
            return 0
        doublings = min(failed_requests - 1, MAX_DELAY_MS.bit_length())
        return min(self.base_delay_ms << doublings, MAX_DELAY_MS)
