"""The contract of a pace store, in the simulation's model and in PostgreSQL."""

from dataclasses import replace

from dynamics_sync.core.pace import Pace
from dynamics_sync.postgres.pace_store import PRESENT_SECONDS
from support.stores import Stores


async def test_it_begins_slowly(stores: Stores) -> None:
    reading = await stores.paces.share("a")
    assert (reading.pace, reading.workers, reading.rank, reading.is_first) == (Pace(), 1, 0, True)


async def test_it_gives_back_every_field(stores: Stores) -> None:
    now = (await stores.paces.share("a")).now
    stored = Pace(concurrency=7, threshold=9, changed_at=now, reduced_at=now, revision=1)
    assert await stores.paces.compare_and_set(Pace(), stored)
    assert (await stores.paces.share("a")).pace == stored


async def test_of_two_changes_with_one_expectation_one_counts(stores: Stores) -> None:
    first = replace(Pace(), concurrency=3, revision=1)
    assert await stores.paces.compare_and_set(Pace(), first)
    assert not await stores.paces.compare_and_set(Pace(), replace(first, concurrency=4))
    assert await stores.paces.compare_and_set(first, replace(first, concurrency=4, revision=2))
    assert (await stores.paces.share("a")).pace.concurrency == 4


async def test_workers_that_send_have_a_place_each(stores: Stores) -> None:
    await stores.paces.share("b")
    assert (await stores.paces.share("a")).workers == 2
    assert [(await stores.paces.share(name)).rank for name in "ab"] == [0, 1]


async def test_one_that_sends_no_more_is_not_counted_a_few_seconds_later(stores: Stores) -> None:
    await stores.paces.share("a")
    for _ in range(3):
        await stores.advance(PRESENT_SECONDS / 2 + 0.1)
        reading = await stores.paces.share("b")
    assert (reading.workers, reading.rank, reading.is_first) == (1, 0, False)


async def test_after_a_while_in_which_nobody_sends_somebody_is_the_first_again(stores: Stores) -> None:
    assert (await stores.paces.share("a")).is_first
    assert not (await stores.paces.share("a")).is_first
    await stores.advance(PRESENT_SECONDS + 0.1)
    assert (await stores.paces.share("a")).is_first
