"""What the answer to a request for many records means for each of them."""

import pytest

from dynamics_sync.core.outcome import (
    Accepted,
    Answer,
    Mismatch,
    Outcome,
    Throttled,
    TooMuch,
    Transient,
    Unauthorized,
    Undecided,
    classify_bulk,
    shared_by_batch,
    shared_by_bulk,
)

THROTTLED, DOWN = Throttled("http_429", 5.0), Transient("http_503")


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(204), Accepted()),
        (Answer(413), TooMuch()),
        (Answer(400, "0x1", is_known_error=True), Undecided()),
        (Answer(412, "0x1", is_known_error=True), Undecided()),
        (Answer(401), Unauthorized("http_401")),
        (Answer(429), THROTTLED),
        (Answer(503), DOWN),
        (Answer(200), Mismatch()),
        (Answer(404), Mismatch()),
    ],
)
def test_all_are_written_or_none_and_a_refusal_names_nobody(answer: Answer, outcome: Outcome) -> None:
    assert classify_bulk(answer) == outcome


@pytest.mark.parametrize("outcome", [Accepted(), Undecided(), TooMuch(), THROTTLED, DOWN])
def test_what_a_bulk_came_to_each_of_its_records_came_to(outcome: Outcome) -> None:
    assert shared_by_bulk(outcome, 3) == [outcome] * 3


def test_a_log_in_page_is_told_by_one_record() -> None:
    assert shared_by_bulk(Mismatch(), 3) == [Mismatch(), Undecided(), Undecided()]
    assert shared_by_batch(Mismatch(), 3) == [Mismatch(), TooMuch(), TooMuch()]


def test_a_batch_that_is_refused_as_a_whole_was_too_much() -> None:
    assert shared_by_batch(Undecided(), 2) == shared_by_batch(TooMuch(), 2) == [TooMuch()] * 2


def test_of_a_batch_that_failed_some_may_be_written() -> None:
    failed = shared_by_batch(DOWN, 2)
    assert [isinstance(outcome, Transient) and outcome.is_answered for outcome in failed] == [False, False]
    assert shared_by_batch(THROTTLED, 2) == [THROTTLED] * 2
