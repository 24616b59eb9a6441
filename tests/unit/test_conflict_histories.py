"""Where people on both sides have changed a record and all has come to rest, both sides say the same, and what is not
the latest change stands in the conflicts."""

import pytest

from dynamics_sync.core.conflicts import Order, Sides, _Case
from dynamics_sync.core.mapping import Owner
from support.both_sides import History
from support.search import LONGER

HISTORIES = 3_000 * LONGER


def test_both_sides_end_alike_and_what_is_not_the_latest_change_stands_in_the_conflicts() -> None:
    for seed in range(HISTORIES):
        done = History.of(seed).happen()
        assert done.wrong is None, "\n".join((f"seed {seed}", *done.lines))


def test_where_nobody_changes_it_here_the_latest_change_made_there_is_taken_whoever_owns_it() -> None:
    for seed in range(HISTORIES):
        done = History.of(seed, edits_here=False, in_order=True, images=True, loses=False).happen()
        assert done.row["name"] == done.there["fullname"] == done.latest, "\n".join((f"seed {seed}", *done.lines))
        assert all(winner is Owner.DYNAMICS for _, winner in done.conflicts), "\n".join((f"seed {seed}", *done.lines))


@pytest.mark.parametrize(
    ("place", "name", "mistake"),
    [
        (_Case, "_is_theirs", lambda self, is_as_here: True),
        (_Case, "_is_theirs", lambda self, is_as_here: not self.sides.waiting),
        (_Case, "_changed_here", lambda self, name, column: False),
        (_Case, "_restore", lambda self, name, column, told, is_certain: None),
        (_Case, "_is_next", lambda self, name, column, attribute: True),
        (_Case, "_make_certain", lambda self, attribute: None),
        (_Case, "_order", lambda self, attribute: Order.NEWER),
        (Sides, "under_way", property(lambda self: bool(self.waiting))),
        (Sides, "may_have_written_since", lambda self, change: False),
    ],
)
def test_a_deliberate_mistake_is_found(
    monkeypatch: pytest.MonkeyPatch, place: type, name: str, mistake: object
) -> None:
    monkeypatch.setattr(place, name, mistake)
    assert any(History.of(seed).happen().wrong for seed in range(HISTORIES))
