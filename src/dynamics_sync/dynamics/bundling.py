"""How many records go into one request, and of which kind: what Dynamics offers for a table, and has taken so far."""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from dynamics_sync.core.bundle import MOST, BundleSize
from dynamics_sync.core.mapping import Mapping, TableMapping
from dynamics_sync.core.outcome import Mismatch, Outcome, TooMuch, Transient


class Form(StrEnum):
    """A request for many records."""

    BULK = "bulk"
    """`UpsertMultiple`: all of them or none."""
    BATCH = "batch"
    """`$batch`: each by itself, where a table has no bulk message."""
    APART = "apart"
    """The same for a bulk message that was refused: slow, but it is what all its records wait for."""


START = {
    Form.BULK: BundleSize(),
    Form.BATCH: BundleSize(size=10),
    Form.APART: BundleSize(size=MOST, wanted_seconds=20.0),
}
"""Where to begin (Microsoft: "Optimize performance for bulk operations"): a batch saves Dynamics nothing."""


class Bundling:
    """What is known of the tables of one mapping.

    Args:
        most: the most records in one request; 1 for one at a time.
    """

    def __init__(self, mapping: Mapping, most: int = MOST) -> None:
        self._most = most
        self._forms: dict[str, Form | None] = {}
        self._tables = {table.source: table for table in mapping.tables if table.bulk and most > 1}
        self._sizes = {
            (source, form): replace(start, most=most, size=min(start.size, most))
            for source in self._tables
            for form, start in START.items()
        }

    @property
    def undecided(self) -> Sequence[TableMapping]:
        """Tables of which it is not yet known what Dynamics offers for them."""
        return [table for source, table in self._tables.items() if source not in self._forms]

    def decide(self, table: TableMapping, *, has_bulk: bool) -> None:
        """Dynamics said whether it has the bulk message for a table."""
        self._forms[table.source] = Form.BULK if has_bulk else Form.BATCH

    def form(self, source: str) -> Form | None:
        """What upserts of a table go in; None while it is not known, and where they go one at a time."""
        return self._forms.get(source)

    def size(self, source: str, form: Form) -> int:
        """How many go into one request at present. A bulk message has no more than the batch that would take it apart,
        unless that batch is small even for a start."""
        size = self._sizes[source, form].size
        if form is not Form.BULK:
            return size
        return min(size, max(self._sizes[source, Form.APART].size, START[Form.BULK].size))

    def most_together(self, source: str) -> int:
        """How many are worth to be collected for one request."""
        form = self._forms.get(source)
        return 1 if form is None else self.size(source, form)

    def learn(self, source: str, form: Form, count: int, seconds: float, outcome: Outcome) -> None:
        """Take note of how a request of `count` records went."""
        size = self._sizes[source, form]
        match outcome:
            case TooMuch() | Transient("timeout" | "http_504"):
                self._sizes[source, form] = size.too_much(count)
            case Mismatch() if form is Form.BULK:
                self._forms[source] = Form.BATCH  # something between us and Dynamics does not know the bulk message
            case Transient():
                pass
            case _:
                self._sizes[source, form] = size.answered(count, seconds)
