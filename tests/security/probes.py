"""One attack on one relation or function: what it reaches."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import psycopg
from psycopg.errors import (
    FeatureNotSupported,
    InsufficientPrivilege,
    IntegrityError,
    InvalidTextRepresentation,
    ObjectNotInPrerequisiteState,
    RaiseException,
    WrongObjectType,
)

from security.catalogue import Function, Relation
from security.policy import ALL, Rights, Verb
from security.world import LABELS, Connection

REFUSALS = (
    InsufficientPrivilege,
    InvalidTextRepresentation,  # of a `sub` that is no UUID
    ObjectNotInPrerequisiteState,  # writing to a view
    RaiseException,  # by a trigger
    WrongObjectType,  # truncating a view
)

Row = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A relation with what is in it, as the owner sees it: each column of each row as text."""

    relation: Relation
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Reach:
    """What an attack reached."""

    labels: frozenset[str]
    refused: bool
    """Whether every attempt was refused. One that was not may have reached no row."""


def target(owner: Connection, relation: Relation) -> Target:
    """Look at a relation as its owner."""
    if relation.kind == "S" or not relation.columns:
        return Target(relation, ())
    columns = ", ".join(f"{column}::text" for column in relation.columns)
    return Target(relation, tuple(owner.execute(f"select {columns} from {relation.name}".encode())))


SOME = "some row"
"""A row that cannot be told from others."""
CALLED = frozenset({"called"})


def attack(actor: Connection, verb: Verb, aim: Target, rights: Rights) -> Reach:
    """Try everything that these rights make promising; without any, the plainest attempt."""
    labels: set[str] = set()
    refused = True
    blindly = 0
    for statement, label in _attempts(verb, aim, rights):
        try:
            cursor = _try(actor, statement)
        except REFUSALS:
            continue
        except FeatureNotSupported:
            if verb is not Verb.TRUNCATE:  # writing to a view
                continue
            labels.add(label)  # only what is referenced kept it
        except IntegrityError:
            labels.add(label)  # it came as far as a constraint
        else:
            labels |= _reached(cursor, label)
            blindly = max(blindly, cursor.rowcount if label == SOME and verb in _WRITING else 0)
        refused = False
    named = labels - {SOME}
    return Reach(frozenset(named if named and blindly <= len(named) else labels), refused)


_WRITING = (Verb.UPDATE, Verb.DELETE)


def call(actor: Connection, function: Function) -> Reach:
    """Call a function by name."""
    try:
        _try(actor, function.call())
    except InsufficientPrivilege:
        return Reach(frozenset(), refused=True)
    except psycopg.Error:  # it ran, and did not like its arguments
        pass
    return Reach(CALLED, refused=False)


def call_with_ids(actor: Connection, function: Function) -> Reach:
    """Call a function with every id that there is, one's own and foreign ones."""
    labels: set[str] = set()
    for value, label in LABELS.items():
        with suppress(psycopg.Error):
            rows = [row for row in _try(actor, function.call(value)) if any(field is not None for field in row)]
            labels |= {label if label_of(_texts(row)) == SOME else label_of(_texts(row)) for row in rows}
    return Reach(frozenset(labels), refused=not labels)


BEFORE = "before"
"""The savepoint to which each attempt returns first, in the same round trip."""


def _try(actor: Connection, statement: str) -> psycopg.Cursor[Row]:
    cursor = actor.execute(f"rollback to savepoint {BEFORE}; {statement}".encode())
    cursor.nextset()
    return cursor


def _reached(cursor: psycopg.Cursor[Row], label: str) -> set[str]:
    if cursor.description is not None:
        return {label_of(_texts(row)) for row in cursor}
    return {label} if cursor.rowcount else set()


def _texts(row: Iterable[object]) -> Row:
    return tuple(None if value is None else str(value) for value in row)


def label_of(row: Row) -> str:
    """What the row is called."""
    return next((LABELS[value] for value in row if value in LABELS), SOME)


def _attempts(verb: Verb, aim: Target, rights: Rights) -> Iterable[tuple[str, str]]:
    """Statements, with the label of the row that each would reach."""
    name = aim.relation.name
    held = rights.get(verb, frozenset())
    columns = aim.relation.columns if held == ALL else tuple(c for c in aim.relation.columns if c in held)
    match verb:
        case Verb.SELECT:
            return [
                (f"select * from {name}", SOME),
                *((f"select {column} from {name}", SOME) for column in sorted(held - ALL)),
            ]
        case Verb.INSERT:
            return _insertions(aim, columns)
        case Verb.UPDATE:
            return _updates(aim, columns)
        case Verb.DELETE:
            rows = _each_row(aim) if held else ()
            return [(f"delete from {name}", SOME), *((f"delete from {name} where {key}", label) for key, label in rows)]
        case Verb.TRUNCATE:
            return [(f"truncate {name}", "all")]
        case Verb.USE:
            return [
                (f"select nextval('{name}')", "all"),
                (f"select setval('{name}', 1)", "all"),
                (f"table {name}", "all"),
            ]
        case Verb.EXECUTE:
            raise AssertionError("a relation is not executed")


def _insertions(aim: Target, columns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """A copy of each row, as far as the columns may be given."""
    name = aim.relation.name
    yield f"insert into {name} default values", SOME
    if columns:
        places = [aim.relation.columns.index(column) for column in columns]
        for row in aim.rows:
            values = ", ".join(_literal(row[place]) for place in places)
            yield f"insert into {name} ({', '.join(columns)}) values ({values})", label_of(row)


def _updates(aim: Target, columns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each column: of all rows without looking at them, for which no right to read is needed, and of each row."""
    name = aim.relation.name
    for column in columns or aim.relation.columns[:1]:
        yield f"update {name} set {column} = default", SOME
    for column in columns:
        place = aim.relation.columns.index(column)
        for row, (key, label) in zip(aim.rows, _each_row(aim), strict=True):
            yield f"update {name} set {column} = {_literal(row[place])} where {key}", label


def _each_row(aim: Target) -> Iterator[tuple[str, str]]:
    """A condition for each row, and its label."""
    names = aim.relation.key or aim.relation.columns
    places = [aim.relation.columns.index(column) for column in names]
    for row in aim.rows:
        given = (f"{column}::text = {_literal(row[place])}" for column, place in zip(names, places, strict=True))
        yield " and ".join(given), label_of(row)


def _literal(value: str | None) -> str:
    return "null" if value is None else "'" + value.replace("'", "''") + "'"
