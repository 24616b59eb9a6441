"""Every actor against everything, compared with what is meant."""

from collections.abc import Iterator
from dataclasses import dataclass

from security.actors import ACTORS, ANON, AUTHENTICATED, SERVICE, Actor
from security.catalogue import Function, functions, holds_execute, relations, rights_on
from security.policy import FUNCTIONS, NOTHING, OPEN_SCHEMAS, RIGHTS, ROWS, Rights, Verb
from security.probes import BEFORE, CALLED, Reach, Target, attack, call, call_with_ids, target
from security.world import Connection, acting


@dataclass(frozen=True, slots=True)
class Cell:
    """What one actor reached with one verb."""

    actor: Actor
    thing: str
    verb: Verb
    reach: Reach


@dataclass(frozen=True, slots=True)
class Result:
    """The matrix, and in words what in it is not as it is meant."""

    things: tuple[str, ...]
    cells: tuple[Cell, ...]
    deviations: tuple[str, ...]


def run(owner: Connection, only: str = "") -> Result:
    """Attack a populated database, or only things with such a name. The owner is a superuser; everything is undone.

    One transaction: what the owner has changed in it before is attacked, too.
    """
    with owner.transaction(force_rollback=True):
        owner.execute("set local search_path = ''")
        targets = [target(owner, relation) for relation in relations(owner) if only in relation.name]
        callables = [function for function in functions(owner) if only in function.name]
        held = {(role, aim.relation.name): rights_on(owner, role, aim.relation) for role in _ROLES for aim in targets}
        cells = [cell for actor in ACTORS for cell in _attacks(owner, actor, targets, callables, held)]
        deviations = [
            *_without_rows(targets),
            *_rights_not_meant(held),
            *_executes_not_meant(owner, callables),
            *(words for cell in cells for words in _deviation(cell)),
        ]
    things = (*(aim.relation.name for aim in targets), *(function.name for function in callables))
    return Result(things, tuple(cells), tuple(deviations))


_ROLES = tuple(dict.fromkeys(actor.role for actor in ACTORS))
_Held = dict[tuple[str, str], Rights]


def _attacks(
    owner: Connection, actor: Actor, targets: list[Target], callables: list[Function], held: _Held
) -> Iterator[Cell]:
    with acting(owner, actor.role, actor.claims) as attacker:
        attacker.execute(f"savepoint {BEFORE}".encode())
        for aim in targets:
            for verb in aim.relation.verbs:
                reach = attack(attacker, verb, aim, held[actor.role, aim.relation.name])
                yield Cell(actor, aim.relation.name, verb, reach)
        for function in callables:
            tried = call_with_ids if function.takes_ids and _may_call(actor, function.name) else call
            yield Cell(actor, function.name, Verb.EXECUTE, tried(attacker, function))


def _without_rows(targets: list[Target]) -> Iterator[str]:
    """An attack on an empty relation shows nothing."""
    for aim in targets:
        if aim.relation.name in RIGHTS and not aim.rows:
            yield f"{aim.relation.name} is empty: give it rows in tests/security/world.py"


def _rights_not_meant(held: _Held) -> Iterator[str]:
    for (role, name), rights in held.items():
        if role == SERVICE and name not in RIGHTS:
            continue  # closed to users, whatever the service may do
        meant = RIGHTS.get(name, {}).get(role, {})
        for verb, columns in rights.items():
            if columns != meant.get(verb, NOTHING):
                yield f"{role} holds {verb} on {name}: {listed(columns)}; meant: {listed(meant.get(verb, NOTHING))}"


def _executes_not_meant(owner: Connection, callables: list[Function]) -> Iterator[str]:
    for function in callables:
        for role in (ANON, AUTHENTICATED):
            meant = role in FUNCTIONS.get(function.name, NOTHING)
            if holds_execute(owner, role, function) != meant:
                yield f"{role} {'lacks' if meant else 'holds'} execute on {function.name}"


def _may_call(actor: Actor, function: str) -> bool:
    return function.startswith(OPEN_SCHEMAS) and actor.role in FUNCTIONS.get(function, NOTHING)


def _deviation(cell: Cell) -> Iterator[str]:
    if cell.actor.role == SERVICE and cell.thing not in RIGHTS:
        return  # closed to users, whatever the service may do
    name = cell.actor.name
    meant = ROWS[name].get(cell.thing, {}).get(cell.verb, NOTHING)
    if _may_call(cell.actor, cell.thing) and cell.reach.labels == CALLED:
        return
    if cell.reach.labels != meant:
        yield f"{name}: {cell.verb} {cell.thing} reaches {listed(cell.reach.labels)}; meant: {listed(meant)}"
    elif not cell.reach.refused and not meant and cell.thing not in RIGHTS:
        yield f"{name}: {cell.verb} {cell.thing} is not refused"


def listed(labels: frozenset[str]) -> str:
    return ", ".join(sorted(labels)) or "nothing"
