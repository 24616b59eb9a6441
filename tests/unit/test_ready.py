"""Claimed records that wait to be sent: their order, who waits for whom, and how it ends."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.sync.ready import Ready

A, B = "public.a", "public.b"


def records(table: str, *keys: int) -> list[SyncOperation]:
    return [SyncOperation(table, str(key)) for key in keys]


def keys(operations: Sequence[SyncOperation]) -> list[int]:
    return [int(operation.record_key) for operation in operations]


def filled(most: int, *operations: SyncOperation) -> Ready:
    ready = Ready(lambda table: most)
    ready.put(operations)
    return ready


def taken(ready: Ready) -> list[Sequence[SyncOperation]]:
    """All of them, request by request."""
    return [*iter(ready.take, ())]


def test_a_request_takes_as_many_of_one_table_as_fit_in_their_order() -> None:
    ready = filled(2, *records(A, 1, 2, 3))
    assert len(ready) == 3
    assert [keys(request) for request in taken(ready)] == [[1, 2], [3]]
    assert len(ready) == 0
    assert ready.take() == ()


def test_tables_take_turns() -> None:
    ready = filled(2, *records(A, 1, 2, 3, 4, 5), *records(B, 6, 7, 8))
    assert [keys(request) for request in taken(ready)] == [[1, 2], [6, 7], [3, 4], [8], [5]]


def test_a_table_that_comes_back_is_behind_the_others() -> None:
    ready = filled(1, *records(A, 1, 2), *records(B, 3))
    assert keys(ready.take()) == [1]
    ready.put(records(A, 4))
    assert [keys(request) for request in taken(ready)] == [[3], [2], [4]]


def test_while_more_may_come_only_full_requests_leave() -> None:
    ready = filled(2, *records(A, 1), *records(B, 2, 3, 4))
    ready.expect()
    assert [keys(request) for request in taken(ready)] == [[2, 3]]
    ready.put(records(A, 5))
    assert [keys(request) for request in taken(ready)] == [[1, 5], [4]]


def test_what_is_no_longer_ours_is_not_sent() -> None:
    gone, kept, alone = records(A, 1), records(A, 2), records(B, 3)
    ready = filled(9, *gone, *kept, *alone)
    assert keys(ready.waiting()) == [1, 2, 3]
    ready.remove([*gone, *alone, *records(A, 2)])  # one that is merely like another is not it
    assert len(ready) == 1
    assert [keys(request) for request in taken(ready)] == [[2]]


async def test_somebody_who_waits_is_told() -> None:
    ready = Ready(lambda table: 2)
    waiting = asyncio.create_task(ready.filled())
    await asyncio.sleep(0)
    ready.expect()
    await asyncio.sleep(0)
    assert not waiting.done()
    ready.put(records(A, 1))
    assert await waiting
    assert await ready.filled()


async def test_nothing_that_comes_is_nothing_to_take() -> None:
    ready = Ready(lambda table: 2)
    waiting = asyncio.create_task(ready.filled())
    await asyncio.sleep(0)
    ready.put([])
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


async def test_what_is_left_when_it_is_closed_is_given_back() -> None:
    ready = filled(2, *records(A, 1), *records(B, 2))
    assert keys(ready.close()) == [1, 2]
    assert len(ready) == 0
    assert not await ready.filled()
    empty = Ready(lambda table: 2)
    waiting = asyncio.create_task(empty.filled())
    await asyncio.sleep(0)
    assert empty.close() == []
    assert not await waiting


steps = st.lists(
    st.tuples(st.just("put"), st.lists(st.sampled_from("abc"), max_size=7))
    | st.tuples(st.sampled_from(["take", "expect", "remove"]), st.just([])),
    max_size=30,
)


@settings(max_examples=500, deadline=None)
@given(steps, st.integers(1, 4))
def test_whatever_comes_each_leaves_once_and_in_its_tables_order(
    history: list[tuple[str, list[str]]], most: int
) -> None:
    ready, put, left = Ready(lambda table: most), list[SyncOperation](), list[SyncOperation]()
    for what, tables in history:
        match what:
            case "put":
                new = [SyncOperation(table, str(len(put) + number)) for number, table in enumerate(tables)]
                ready.put(new)
                put += new
            case "take":
                request = ready.take()
                assert len(request) <= most
                assert len({operation.source_table for operation in request}) <= 1
                left += request
            case "expect":
                ready.expect()
            case "remove":
                gone = ready.waiting()[::3]
                ready.remove(gone)
                left += gone
        assert len(ready) == len(ready.waiting()) == len(put) - len(left)
    assert Counter(put) == Counter([*left, *ready.close()])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 20), min_size=1), st.integers(1, 5))
def test_no_table_waits_for_more_than_one_request_of_each_other_one(counts: dict[str, int], most: int) -> None:
    ready = filled(most, *(operation for table, count in counts.items() for operation in records(table, *range(count))))
    turns = [request[0].source_table for request in taken(ready)]
    for place, table in enumerate(turns):
        if table in turns[place + 1 :]:
            between = turns[place + 1 : turns.index(table, place + 1)]
            assert len(between) == len(set(between))
