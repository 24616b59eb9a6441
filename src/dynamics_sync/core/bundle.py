"""How many records go into one request: as many as are answered in a reasonable time.

Microsoft recommends 100 to 1,000 for a bulk message, fewer where requests time out ("Use bulk operation messages").
"""

from dataclasses import replace

from dynamics_sync.core.values import value

MOST = 1000
"""The most that Dataverse takes in a batch, and the most that makes sense in a bulk message."""


@value
class BundleSize:
    """The size for one kind of request.

    Raises:
        ValueError: there is no such size.
    """

    most: int = MOST
    size: int = 100
    wanted_seconds: float = 5.0
    """What an answer may take: long enough that a request more or less does not matter, far from every time-out."""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.most:
            raise ValueError(f"a size of {self.size} is not between 1 and {self.most}")

    def answered(self, count: int, seconds: float) -> "BundleSize":
        """After an answer to `count` records: towards the size that takes the time wanted, to twice as many at most.
        A small request says nothing of a large one's time, unless it was too slow itself."""
        fitting = int(count * self.wanted_seconds / max(seconds, 0.001))
        if seconds > self.wanted_seconds:
            return self._at(min(self.size, fitting))
        return self._at(max(self.size, min(fitting, 2 * count)))

    def too_much(self, count: int) -> "BundleSize":
        """After `count` records were too many: half of them."""
        return self._at(min(self.size, count // 2))

    def _at(self, size: int) -> "BundleSize":
        return replace(self, size=min(max(size, 1), self.most))
