"""The matrix as text."""

import re
from collections.abc import Iterator

from security.actors import ACTORS, Actor
from security.matrix import Cell, Result
from security.policy import Verb

LETTERS = {
    Verb.SELECT: "s",
    Verb.INSERT: "i",
    Verb.UPDATE: "u",
    Verb.DELETE: "d",
    Verb.TRUNCATE: "t",
    Verb.USE: "n",
    Verb.EXECUTE: "x",
}
CLOSED = "·"


def lines(result: Result) -> Iterator[str]:
    """A table of things and actors, what it means, and what is not as it is meant."""
    width = max(len(_short(thing)) for thing in result.things)
    yield _line(width, "", [actor.name for actor in ACTORS])
    cells = {(cell.thing, cell.actor, cell.verb): cell for cell in result.cells}
    for thing in result.things:
        yield _line(width, _short(thing), [_shown(cells, thing, actor) for actor in ACTORS])
    yield ""
    yield "s select, i insert, u update, d delete, each with the rows it reached; t truncate, n use, x execute"
    yield from (f"{actor.name:<8} {actor.who}" for actor in ACTORS)
    yield ""
    yield f"{len(result.cells)} attacks; {len(result.deviations)} not as meant"
    yield from (f"! {deviation}" for deviation in result.deviations)


def _line(width: int, first: str, others: list[str]) -> str:
    return f"{first:<{width}}" + "".join(f" {other:<8}" for other in others).rstrip()


def _short(thing: str) -> str:
    return re.sub(r"\(.+\)", "(…)", thing)


def _shown(cells: dict[tuple[str, Actor, Verb], Cell], thing: str, actor: Actor) -> str:
    found = [(letter, cells.get((thing, actor, verb))) for verb, letter in LETTERS.items()]
    return "".join(_part(letter, cell) for letter, cell in found if cell is not None and cell.reach.labels) or CLOSED


def _part(letter: str, cell: Cell) -> str:
    return f"{letter}{len(cell.reach.labels)}" if cell.verb in _COUNTED else letter


_COUNTED = (Verb.SELECT, Verb.INSERT, Verb.UPDATE, Verb.DELETE)
