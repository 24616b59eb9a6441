"""The history checker, on histories that were doctored: whatever is wrong is reported, and nothing else."""

from dataclasses import replace

import pytest

from chaos.checker import NOTICE_SECONDS, Rule, check, late_writes, overwritten, time_line
from chaos.history import Change, CircuitChange, Event, History, Look, Owed, Request, Write

OPENED, PROBED, CLOSED = 20.0, 21.0, 21.5

GOOD = History(
    changes=(
        Change(1, 1, "a", 1, "insert", 1.0),
        Change(2, 2, "a", 2, "update", 2.0),
        Change(3, 3, "b", 3, "insert", 3.0),
        Change(4, 4, "b", None, "delete", 4.0),
    ),
    acknowledged=frozenset({1, 2, 4}),
    writes=(Write("a", 1.2, 1), Write("a", 2.2, 2), Write("b", 3.2, 3), Write("b", 4.2, None)),
    requests=(
        Request("a", "worker 1", 1.1, 1.3, "204"),
        Request("a", "worker 2", 2.1, 2.3, "204"),
        Request("b", "worker 1", 3.1, 3.3, "204"),
        Request("b", "worker 2", 4.1, 4.3, "204"),
        Request("c", "worker 1", OPENED - 0.1, OPENED + 0.5, "503"),
        Request("c", "worker 1", PROBED + 0.1, PROBED + 0.2, "204"),
        Request("d", "worker 2", CLOSED + 0.1, CLOSED + 0.2, "204"),
    ),
    circuit=(
        CircuitChange(OPENED, "open", 1, OPENED),
        CircuitChange(PROBED, "half_open", 2, OPENED, is_probing=True),
        CircuitChange(CLOSED, "closed", 3),
    ),
    looks=(Look(2.5, 2.6, {"a": Owed(2, 2.0)}),),
    ends=(Look(30.0, 30.1, {"a": Owed(2, 2.0), "b": Owed(None, 4.0)}),),
    events=(Event(3.5, "kill -9"),),
)


def rules(history: History) -> list[Rule]:
    return [violation.rule for violation in check(history)]


def with_requests(*more: Request) -> History:
    return replace(GOOD, requests=(*GOOD.requests, *more))


def test_a_good_history_is_good() -> None:
    assert check(GOOD) == []
    assert check(History()) == []


def test_a_record_that_never_arrived_is_lost() -> None:
    """Though an older state of it arrived."""
    assert rules(replace(GOOD, writes=[write for write in GOOD.writes if write.state != 2])) == [Rule.LOST]


def test_a_deletion_that_never_arrived_is_lost() -> None:
    assert rules(replace(GOOD, writes=[write for write in GOOD.writes if write.state is not None])) == [Rule.LOST]


def test_a_record_that_was_nowhere_for_a_moment_is_lost_though_it_arrived_later() -> None:
    late = [replace(write, at=2.9) if write.state == 2 else write for write in GOOD.writes]
    assert rules(replace(GOOD, writes=late)) == [Rule.LOST]


def test_what_a_killed_dynamics_had_does_not_count() -> None:
    """The same writes, before it lost its records."""
    ends = [replace(look, life=1) for look in GOOD.ends]
    (violation,) = check(replace(GOOD, ends=ends))
    assert (violation.rule, violation.key) == (Rule.LOST, "a")


def test_an_older_state_that_was_written_last_is_stale() -> None:
    writes = (*GOOD.writes, Write("a", 9.0, 1))
    (violation,) = check(replace(GOOD, writes=writes))
    assert (violation.rule, violation.key) == (Rule.STALE, "a")


def test_a_deleted_record_that_came_back_is_stale() -> None:
    assert rules(replace(GOOD, writes=(*GOOD.writes, Write("b", 9.0, 3)))) == [Rule.STALE]


def test_a_record_that_came_after_it_had_gone_is_stale_unless_it_went_again() -> None:
    """It went before it had ever arrived, so that nothing was to be written; a request from before was late."""
    changes = (*GOOD.changes, Change(5, 5, "e", 5, "insert", 5.0), Change(6, 6, "e", None, "delete", 6.0))
    gone = {"e": Owed(None, 6.0)}
    history = replace(GOOD, changes=changes, looks=[Look(8.0, 8.1, gone)], ends=[Look(30.0, 30.1, gone)])
    late = (*GOOD.writes, Write("e", 7.0, 5))
    assert rules(replace(history, writes=late)) == [Rule.STALE]
    assert rules(replace(history, writes=(*late, Write("e", 9.0, None)))) == []


def test_a_record_that_went_though_it_is_there_is_stale() -> None:
    assert rules(replace(GOOD, writes=(*GOOD.writes, Write("a", 9.0, None)))) == [Rule.STALE]


def test_an_older_state_that_was_overwritten_again_is_counted_and_no_violation() -> None:
    writes = (*GOOD.writes, Write("a", 2.4, 1), Write("a", 9.0, 2))
    assert check(replace(GOOD, writes=writes)) == []
    assert overwritten(replace(GOOD, writes=writes)) == 1
    assert (late_writes(GOOD), late_writes(replace(GOOD, writes=writes))) == (0, 2)


@pytest.mark.parametrize("state", [77, -1])
def test_a_state_that_was_never_committed_is_a_phantom(state: int) -> None:
    assert rules(replace(GOOD, writes=(*GOOD.writes, Write("a", 1.5, state)))) == [Rule.PHANTOM]


def test_a_confirmed_commit_that_is_gone_is_told() -> None:
    assert rules(replace(GOOD, acknowledged=frozenset({1, 9}))) == [Rule.FORGOTTEN]


def test_two_requests_for_one_record_overlap() -> None:
    assert rules(with_requests(Request("a", "worker 3", 2.2, 2.25, "204"))) == [Rule.OVERLAP]


def test_an_overlap_with_an_earlier_long_request_is_seen_past_a_short_one() -> None:
    long = Request("e", "worker 1", 5.0, 9.0, "gave up")
    inside = [Request("e", "worker 2", 6.0, 6.1, "204"), Request("e", "worker 3", 8.0, 8.1, "204")]
    assert rules(with_requests(long, *inside)) == [Rule.OVERLAP, Rule.OVERLAP]


def test_one_request_after_the_other_is_no_overlap() -> None:
    assert check(with_requests(Request("a", "worker 3", 2.3, 2.4, "204"))) == []


def test_a_second_probe_is_seen() -> None:
    assert rules(with_requests(Request("e", "worker 3", PROBED + 0.2, PROBED + 0.3, "503"))) == [Rule.SECOND_PROBE]


def probed_again(ended: float) -> History:
    """A second probe was let out at PROBED + 0.3; the first one ended then or later."""
    again = CircuitChange(PROBED + 0.3, "half_open", 9, OPENED, is_probing=True)
    first = Request("e", "worker 3", PROBED + 0.1, ended, "TimeoutError")
    second = Request("f", "worker 2", PROBED + 0.35, PROBED + 0.4, "204")
    closed = replace(GOOD.circuit[-1], generation=10)
    requests = [request for request in GOOD.requests if not PROBED <= request.began < CLOSED]
    return replace(GOOD, requests=[*requests, first, second], circuit=[*GOOD.circuit[:2], again, closed])


def test_a_probe_that_begins_while_the_one_before_is_in_flight_is_seen() -> None:
    assert check(probed_again(ended=PROBED + 0.2)) == []
    assert rules(probed_again(ended=PROBED + 0.5)) == [Rule.SECOND_PROBE]


def test_a_request_while_the_probes_place_is_free_is_seen() -> None:
    released = CircuitChange(PROBED + 0.3, "half_open", 9, OPENED)
    closed = replace(GOOD.circuit[-1], generation=10)
    history = with_requests(Request("e", "worker 3", PROBED + 0.4, PROBED + 0.45, "204"))
    assert rules(replace(history, circuit=(*GOOD.circuit[:2], released, closed))) == [Rule.SECOND_PROBE]


def test_a_request_while_the_circuit_is_open_is_seen() -> None:
    began = OPENED + NOTICE_SECONDS + 0.01
    assert rules(with_requests(Request("e", "worker 3", began, began + 0.1, "503"))) == [Rule.WHILE_OPEN]


def test_what_was_decided_before_its_sender_was_stopped_is_nobodys_fault() -> None:
    began = OPENED + NOTICE_SECONDS + 0.01
    frozen = Request("a", "worker 3", began, began + 0.1, "TimeoutError", frozen=True)
    assert check(with_requests(frozen, replace(frozen, key="b", began=2.2))) == []


def test_the_others_have_a_moment_to_notice_that_it_opened() -> None:
    began = OPENED + NOTICE_SECONDS - 0.01
    assert check(with_requests(Request("e", "worker 3", began, began + 0.1, "503"))) == []


def test_an_opening_that_was_announced_holds_from_then_on() -> None:
    announced = replace(GOOD.circuit[0], opened_at=OPENED + 0.5)
    circuit = (announced, *GOOD.circuit[1:])
    early, late = (Request("e", "worker 3", OPENED + seconds, OPENED + 0.7, "503") for seconds in (0.49, 0.51))
    assert check(replace(with_requests(early), circuit=circuit)) == []
    assert rules(replace(with_requests(late), circuit=circuit)) == [Rule.WHILE_OPEN]


def test_the_time_line_tells_what_happened_to_the_record_and_around_it() -> None:
    history = replace(GOOD, writes=(*GOOD.writes, Write("a", 9.0, 1)), ends=[replace(GOOD.ends[0], after=10.0)])
    (violation,) = check(history)
    lines = time_line(history, violation)
    told = ["commits update: state 2", "worker 2 sends", "worker 2 has 204", "kill -9", "Dynamics stores state 1"]
    assert [any(words in line for line in lines) for words in told] == [True] * len(told)
    assert not any("worker 1 has 503" in line for line in lines)
    assert "stale" in lines[-1]
