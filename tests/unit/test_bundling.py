"""Which kind of request a table's records go in, and what is learnt of how they went."""

from collections.abc import Sequence

import pytest

from dynamics_sync.core.mapping import Mapping, parse_mapping
from dynamics_sync.core.outcome import Accepted, Mismatch, Outcome, Rejected, Throttled, TooMuch, Transient, Undecided
from dynamics_sync.dynamics.bundling import START, Bundling, Form

ONE, OTHER = "public.one", "public.other"


def mapping(**bulk: bool) -> Mapping:
    """Tables by name, and whether many of their records may go into one request."""
    tables = [
        {
            "source": f"public.{name}",
            "key": "id",
            "entity_set": f"{name}s",
            "logical_name": name,
            "alternate_key": "number",
            "columns": {"a": "a"},
            "bulk": wanted,
        }
        for name, wanted in bulk.items()
    ]
    return parse_mapping({"tables": tables}, "of the test")


def decided(*, has_bulk: bool = True, most: int = 1000) -> Bundling:
    bundling = Bundling(mapping(one=True), most)
    for table in bundling.undecided:
        bundling.decide(table, has_bulk=has_bulk)
    return bundling


def names(bundling: Bundling) -> Sequence[str]:
    return [table.source for table in bundling.undecided]


def test_records_go_one_at_a_time_until_it_is_known_what_dynamics_offers() -> None:
    bundling = Bundling(mapping(one=True, other=True))
    assert names(bundling) == [ONE, OTHER]
    assert (bundling.form(ONE), bundling.most_together(ONE)) == (None, 1)
    bundling.decide(bundling.undecided[0], has_bulk=True)
    bundling.decide(bundling.undecided[0], has_bulk=False)
    assert names(bundling) == []
    assert (bundling.form(ONE), bundling.most_together(ONE)) == (Form.BULK, START[Form.BULK].size)
    assert (bundling.form(OTHER), bundling.most_together(OTHER)) == (Form.BATCH, START[Form.BATCH].size)


@pytest.mark.parametrize(("wanted", "most"), [(False, 1000), (True, 1)])
def test_where_one_at_a_time_is_wanted_nobody_is_asked(wanted: bool, most: int) -> None:
    bundling = Bundling(mapping(one=wanted), most)
    assert names(bundling) == []
    assert (bundling.form(ONE), bundling.most_together(ONE)) == (None, 1)


def test_no_form_takes_more_than_the_most() -> None:
    bundling = decided(most=7)
    for form in Form:
        bundling.learn(ONE, form, 7, 0.01, Accepted())
        assert bundling.size(ONE, form) == 7


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("outcome", [TooMuch(), Transient("timeout"), Transient("http_504")])
def test_what_was_too_much_or_took_too_long_is_halved(form: Form, outcome: Outcome) -> None:
    bundling = decided()
    bundling.learn(ONE, form, 8, 0.0, outcome)
    assert bundling.size(ONE, form) == 4


@pytest.mark.parametrize("outcome", [Transient("http_503"), Transient("connection_reset"), Mismatch()])
def test_a_failure_says_nothing_of_the_size(outcome: Outcome) -> None:
    bundling = decided()
    bundling.learn(ONE, Form.BULK, 8, 0.0, outcome)
    assert bundling.size(ONE, Form.BULK) == START[Form.BULK].size


@pytest.mark.parametrize("outcome", [Accepted(), Undecided(), Rejected("0x1"), Throttled("http_429", 1.0)])
def test_after_an_answer_in_time_twice_as_many_may_go(outcome: Outcome) -> None:
    bundling = decided()
    bundling.learn(ONE, Form.BULK, 100, 0.1, outcome)
    assert bundling.most_together(ONE) == 200
    assert bundling.size(ONE, Form.APART) == START[Form.APART].size, "each form has its own"


def test_a_bulk_message_has_no_more_records_than_one_batch_takes_apart() -> None:
    bundling = decided()
    bundling.learn(ONE, Form.BULK, 500, 0.1, Accepted())
    assert bundling.most_together(ONE) == 1000
    bundling.learn(ONE, Form.APART, 1000, 50.0, Accepted())
    assert bundling.most_together(ONE) == bundling.size(ONE, Form.APART) == 400
    bundling.learn(ONE, Form.APART, 8, 0.1, TooMuch())
    assert bundling.most_together(ONE) == START[Form.BULK].size, "whatever becomes of batches"


def test_where_something_in_between_does_not_know_the_bulk_message_batches_go() -> None:
    bundling = decided()
    bundling.learn(ONE, Form.APART, 8, 0.1, Mismatch())
    assert bundling.form(ONE) is Form.BULK
    bundling.learn(ONE, Form.BULK, 8, 0.1, Mismatch())
    assert bundling.form(ONE) is Form.BATCH
