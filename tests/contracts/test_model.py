"""The stores of the simulation are those of PostgreSQL: whatever is done with both, both give the same and look the
same. What several do at the same time in PostgreSQL ends as it can end in the model, one after the other."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pprint import pformat
from random import Random
from typing import Any

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from dynamics_sync.postgres import outbox as postgres_outbox
from simulation.stores import Database
from support.acts.cast import Act, Cast, Choice
from support.acts.drawn import Draw
from support.acts.people import End
from support.model_stores import picture_of
from support.orders import Thread, orders
from support.outbox import LEASE_SECONDS
from support.postgres import SERVERS, Cluster
from support.postgres_stores import PostgresStores
from support.search import LONGER, search
from support.seen import Names, seen
from support.stores import MOMENT

PATIENCE_SECONDS = 30
"""After which what was awaited does not come."""


class Comparison:
    """Does the same with both, and compares."""

    def __init__(self, real: PostgresStores) -> None:
        self.cast = Cast(real)
        self._before: dict[str, Any] = {}
        self._real_names = Names()
        self._model_names = Names()

    async def end(self) -> None:
        for pending in self.cast.users.values():
            await pending.real.end(commits=False)

    async def do(self, choice: Choice) -> None:
        """While nobody else does anything: nobody lets go of a lock, so none is waited for."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(postgres_outbox, "LOCKED_WAITS_SECONDS", ())
            await self._perform([choice], alone=True)

    async def do_at_once(self, choices: Sequence[Choice]) -> None:
        """All at the same time. Open transactions end meanwhile."""
        ends = [End(user) for user in self.cast.users]
        await self._perform([*choices, *ends], alone=False)

    async def _perform(self, choices: Sequence[Choice], alone: bool) -> None:
        self.cast.taken.clear()
        acts = [act for choice in choices if (act := choice.act(self.cast, alone))]
        async with asyncio.timeout(PATIENCE_SECONDS):
            real = list(await asyncio.gather(*(act.real() for act in acts)))
        picture = await self.cast.real.look()
        wanted = seen(self._real_names, real, picture)
        threads, where = _threads(acts, self.cast.model)
        differences = []
        for database, every in orders(self.cast.model, threads):
            results = [None if first is None else every[first] for first in where]
            found = seen(self._model_names, results, picture_of(database))
            if found == wanted:
                break
            differences.append({part: what for part, what in found.items() if what != wanted[part]})
        else:
            pytest.fail(_unexplained(choices, self._before, wanted, differences))
        self._before = wanted
        self._real_names.learn(real, picture)
        self._model_names.learn(results, picture_of(database))
        self.cast.model = database
        for act, of_real, of_model in zip(acts, real, results, strict=True):
            act.conclude(of_real, of_model)
        await self.cast.advance(MOMENT)


def _threads(acts: list[Act], model: Database) -> tuple[list[Thread], list[int | None]]:
    """All threads, and the first one of each act. A record can be locked only by somebody who has to do with it, or
    with one that is taken together with it."""
    threads: list[Thread] = []
    where: list[int | None] = []
    for act in acts:
        where.append(len(threads) if act.threads else None)
        keys = frozenset().union(*(other.keys for other in acts if other is not act))
        others = keys.union(*(model.together(key) for key in keys))
        threads += [[replace(step, contended=others) for step in thread] for thread in act.threads]
    return threads, where


def _unexplained(choices: object, before: object, wanted: object, differences: list[dict[str, Any]]) -> str:
    ends = "\n".join(pformat(each, width=150) for each in sorted(differences, key=len))
    return (
        f"{choices}\nPostgreSQL had\n{pformat(before, width=150)}\nand came to\n{pformat(wanted, width=150)}\n"
        f"The model can end in {len(differences)} ways; in these they differ from it:\n{ends}"
    )


async def something(comparison: Comparison, random: Random) -> str:
    """Something happens while nothing else does."""
    cast, draw = comparison.cast, Draw(random)
    match random.randrange(12):
        case 0:
            seconds = random.choice([1, 30, LEASE_SECONDS + 1, LEASE_SECONDS + 1, 200, 200, -19, -300])
            await cast.advance(seconds)
            return f"{seconds} s go by"
        case 1 if cast.held:
            dead = random.randrange(2)
            cast.let_go(*(held for held in cast.held if held.worker == dead))
            return f"worker {dead} dies"
        case 2:
            choices = [draw.lock()]
        case 3 | 4 | 5 | 6:
            choices = draw.rush(cast)
        case _:
            choices = [draw.anything(cast)]
    for choice in choices:
        await comparison.do(choice)
    return str(choices)


async def several_things(comparison: Comparison, random: Random) -> str:
    """Several things happen at once, mostly when some records have just changed, or are taken."""
    draw = Draw(random)
    for choice in draw.rush(comparison.cast)[: random.randrange(3)]:
        await comparison.do(choice)
    choices = [draw.anything(comparison.cast) for _ in range(random.randrange(2, 5))]
    await comparison.do_at_once(choices)
    return f"at once: {choices}"


@dataclass(frozen=True)
class Place:
    """Stores for all examples, and the loop that their connections live in."""

    runner: asyncio.Runner
    stores: PostgresStores


@pytest.fixture(scope="module", params=SERVERS)
def place(request: pytest.FixtureRequest, clusters: dict[str, Cluster]) -> Iterator[Place]:
    open_ones = AsyncExitStack()
    with asyncio.Runner() as runner, clusters[request.param].database() as url:
        yield Place(runner, runner.run(open_ones.enter_async_context(PostgresStores.at(url))))
        runner.run(open_ones.aclose())


class History(RuleBasedStateMachine):
    """One thing after the other."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._runner = place.runner
        self._runner.run(place.stores.forget())
        self._comparison = Comparison(place.stores)

    @rule(random=st.randoms(use_true_random=False))
    def next(self, random: Random) -> None:
        note(self._runner.run(something(self._comparison, random)))

    def teardown(self) -> None:
        self._runner.run(self._comparison.end())


def test_one_thing_after_the_other(place: Place) -> None:
    run_state_machine_as_test(lambda: History(place), settings=settings(search(45), stateful_step_count=16))


def test_several_things_at_once(place: Place) -> None:
    """A race cannot be repeated, but the seed repeats what is tried."""

    async def happen(seed: int) -> None:
        random = Random(seed)
        await place.stores.forget()
        comparison = Comparison(place.stores)
        happened = []
        try:
            for _ in range(random.choice([2, 2, 2, 10])):
                for _ in range(random.randrange(4)):
                    happened.append(await something(comparison, random))
                happened.append(await several_things(comparison, random))
        except BaseException as error:
            error.add_note(f"seed {seed}, after\n" + "\n".join(happened))
            raise
        finally:
            await comparison.end()

    for seed in range(40 * LONGER):
        place.runner.run(happen(seed))
