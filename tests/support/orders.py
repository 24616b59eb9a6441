"""What is done at once, as if it were done one after the other: every order in which the model allows it."""

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain, combinations
from operator import attrgetter
from typing import Any

from simulation.stores import Database, Row

_values = attrgetter(*(each.name for each in fields(Row)))


def _never(database: Database, before: object) -> bool:
    return False


def _none(database: Database) -> frozenset[str]:
    return frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happens in one moment.

    Args:
        run: takes the database, and the result of the step before.
        waits: whether it cannot happen yet, because somebody holds a lock.
        skips: records that it leaves out if somebody has them locked in that moment.
        all_or_none: whether one of them that is locked is as good as all.
        contended: records that others have to do with at the same time: each may be locked in that moment, or not.
    """

    run: Callable[[Database, Any], object]
    waits: Callable[[Database, Any], bool] = _never
    skips: Callable[[Database], frozenset[str]] = _none
    all_or_none: bool = False
    contended: frozenset[str] = frozenset()


Thread = Sequence[Step]
"""One step after the other."""


def orders(database: Database, threads: Sequence[Thread]) -> Iterator[tuple[Database, list[object]]]:
    """Each way in which it can end: the database, and the last result of each thread."""
    known: set[Hashable] = set()
    still: list[tuple[Database, tuple[int, ...], list[object]]] = [
        (database, (0,) * len(threads), [None] * len(threads))
    ]
    while still:
        database, done, results = still.pop()
        state = (done, _state(database), tuple(tuple(each) if isinstance(each, list) else each for each in results))
        if state in known:
            continue
        known.add(state)
        left = [number for number, thread in enumerate(threads) if done[number] < len(thread)]
        if not left:
            yield database, results
        for number in left:
            step = threads[number][done[number]]
            if step.waits(database, results[number]):
                continue
            done_then = (*done[:number], done[number] + 1, *done[number + 1 :])
            keys = (step.contended & step.skips(database)) - database.locked
            for locked in {frozenset(), keys} if step.all_or_none else _subsets(keys):
                then = fork(database)
                then.locked |= locked
                result = step.run(then, results[number])
                then.locked -= locked
                still.append((then, done_then, [*results[:number], result, *results[number + 1 :]]))


def _state(database: Database) -> Hashable:
    """What tells one state from another."""
    return (
        tuple(database.changes),
        tuple((key, _values(row)) for key, row in sorted(database.outbox.items())),
        tuple((entry.id, entry.status, entry.failure) for entry in database.queue.values()),
        tuple(sorted(database.unanswered.items())),
        tuple(sorted(database.record_state.items())),
        tuple(sorted(database.attempts, key=str)),
        database.circuit,
        frozenset(database.locked),
    )


def fork(database: Database) -> Database:
    """A copy that can be changed."""
    forked = copy.copy(database)
    for each in fields(database):
        value = getattr(database, each.name)
        if isinstance(value, dict | list | set):
            setattr(forked, each.name, value.copy())
    forked.outbox = {key: copy.copy(row) for key, row in database.outbox.items()}
    forked.queue = {id: copy.copy(entry) for id, entry in database.queue.items()}
    forked.open_entries = {key: forked.queue[entry.id] for key, entry in database.open_entries.items()}
    return forked


def _subsets(keys: frozenset[str]) -> Iterator[frozenset[str]]:
    return map(frozenset, chain.from_iterable(combinations(sorted(keys), size) for size in range(len(keys) + 1)))
