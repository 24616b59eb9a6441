"""What is meant: the only place where somebody is allowed something. What is not named here is closed.

A relation or function that is not named at all must be closed to `anon` and `authenticated`: no right, no row, no call.
Whoever makes one that is open names it here, and gives it rows in `world.py`.
"""

from collections.abc import Mapping
from enum import StrEnum

from security.actors import ANON, AUTHENTICATED, SERVICE
from security.world import CHAPTERS, MEMBERSHIPS, MENTORS


class Verb(StrEnum):
    """What is tried with a relation or a function."""

    SELECT = "select"
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"
    USE = "use"
    """A sequence: nextval, setval, reading it."""
    EXECUTE = "execute"


Rights = Mapping[Verb, frozenset[str]]
Rows = Mapping[Verb, frozenset[str]]

ALL = frozenset({"*"})
"""A right on the whole relation."""
NOTHING: frozenset[str] = frozenset()

READING: Rights = {Verb.SELECT: ALL}
READING_AND_WRITING: Rights = {Verb.SELECT: ALL, Verb.INSERT: ALL, Verb.UPDATE: ALL, Verb.DELETE: ALL}
MANAGED = frozenset({"kind", "status", "issued_on", "expires_on"})

RIGHTS: Mapping[str, Mapping[str, Rights]] = {
    "public.organisations": {AUTHENTICATED: READING, SERVICE: READING_AND_WRITING},
    "public.chapters": {AUTHENTICATED: READING, SERVICE: READING_AND_WRITING},
    "public.chapter_memberships": {AUTHENTICATED: READING, SERVICE: READING_AND_WRITING},
    "public.peer_mentors": {AUTHENTICATED: READING, SERVICE: READING_AND_WRITING},
    "public.certifications": {
        AUTHENTICATED: {
            Verb.SELECT: ALL,
            Verb.INSERT: MANAGED | {"peer_mentor_id", "chapter_id"},
            Verb.UPDATE: MANAGED,
        },
        SERVICE: READING_AND_WRITING,
    },
    "public.certification_renewal_events": {
        AUTHENTICATED: READING,
        SERVICE: {Verb.SELECT: ALL, Verb.INSERT: ALL},
    },
    "public.public_peer_mentors": {ANON: READING, AUTHENTICATED: READING, SERVICE: READING},
    "public.dynamics_sync_retry_queue": {SERVICE: READING_AND_WRITING},
}
"""By relation and role, the columns on which they hold a right."""

READ = "public.read_certifications(uuid,text)"
READ_HISTORY = "public.read_renewals(uuid)"
APPEND = "public.append_renewal(uuid,text,date,date,uuid)"

_USERS = frozenset({AUTHENTICATED})
_EVERYBODY = frozenset({ANON, AUTHENTICATED})

FUNCTIONS: Mapping[str, frozenset[str]] = {
    "auth.uid()": _EVERYBODY,
    "auth.jwt()": _EVERYBODY,
    "auth.role()": _EVERYBODY,
    "dynamics_certifications.managed_chapters()": _USERS,
    "dynamics_certifications.known_chapters()": _USERS,
    "dynamics_certifications.known_organisations()": _USERS,
    "dynamics_certifications.own_mentors()": _USERS,
    "dynamics_certifications.listed_mentors()": _EVERYBODY,
    "dynamics_certifications.read_certifications(uuid,text)": _USERS,
    "dynamics_certifications.upgraded(uuid,jsonb)": _USERS,
    "dynamics_certifications.append_renewal(uuid,text,date,date,uuid)": _USERS,
    READ: _USERS,
    READ_HISTORY: _USERS,
    APPEND: _USERS,
}
"""Which users hold execute. `ROWS` says which rows they reach with functions that take ids."""

OPEN_SCHEMAS = ("public.", "auth.")
"""Only here can those who hold execute call a function by name. Elsewhere it is for policies, views and triggers."""


def _seen(organisations: str = "", chapters: str = "", memberships: str = "", mentors: str = "") -> dict[str, Rows]:
    return {
        "public.organisations": {Verb.SELECT: _names(organisations)},
        "public.chapters": {Verb.SELECT: _names(chapters)},
        "public.chapter_memberships": {Verb.SELECT: _names(memberships, ", ")},
        "public.peer_mentors": {Verb.SELECT: _names(mentors)},
        "public.certifications": {Verb.SELECT: _names(mentors)},
        "public.certification_renewal_events": {Verb.SELECT: _names(mentors)},
        READ_HISTORY: {Verb.EXECUTE: _names(mentors)},
    }


def _managed(mentors: str) -> dict[str, Rows]:
    verbs = (Verb.SELECT, Verb.INSERT, Verb.UPDATE)
    return {
        "public.certifications": {verb: _names(mentors) for verb in verbs},
        APPEND: {Verb.EXECUTE: _names(mentors)},
    }


def _read(mentors: str) -> dict[str, Rows]:
    return {READ: {Verb.EXECUTE: _names(mentors)}}


def _names(text: str, separator: str = " ") -> frozenset[str]:
    return frozenset(text.split(separator)) if text else NOTHING


def _everything(rows: str, separator: str = " ") -> Rows:
    verbs = (Verb.SELECT, Verb.INSERT, Verb.UPDATE, Verb.DELETE)
    return {verb: _names(rows, separator) for verb in verbs}


_LISTED: dict[str, Rows] = {"public.public_peer_mentors": {Verb.SELECT: frozenset(MENTORS)}}
_CORA = _seen("A", "A1", "Cora in A1", "Anna Arne") | _managed("Anna Arne")

ROWS: Mapping[str, Mapping[str, Rows]] = {
    "anon": _LISTED,
    "anon+": _LISTED,
    "none": _LISTED,
    "no-id": _LISTED,
    "nobody": _LISTED,
    "forged": _LISTED,
    "Cora": _LISTED | _CORA,
    "Cora+": _LISTED | _CORA,
    "Siv": _LISTED | _seen("A B", "A2 B1", "Siv in A2, Siv in B1", "Astrid Bea") | _managed("Astrid Bea"),
    "Olga": _LISTED
    | _seen("A", "A1 A2", "Olga in A1", "Anna Arne Astrid")
    | _managed("Anna Arne Astrid")
    | _read("Anna Arne Astrid"),
    "Eva": _LISTED | {"public.chapter_memberships": {Verb.SELECT: frozenset({"Eva in A1", "Eva in B1"})}},
    "Anna": _LISTED | _seen("A", "A1", "Anna in A1", "Anna"),
    "Bea": _LISTED | _seen("B", "B1", "Bea in B1", "Bea"),
    "service": _LISTED
    | {
        "public.organisations": _everything("A B"),
        "public.chapters": _everything(" ".join(CHAPTERS)),
        "public.chapter_memberships": _everything(
            ", ".join(f"{who} in {where}" for who, where, _, _ in MEMBERSHIPS), ", "
        ),
        "public.peer_mentors": _everything(" ".join(MENTORS)),
        "public.certifications": _everything(" ".join(MENTORS)),
        "public.certification_renewal_events": {verb: frozenset(MENTORS) for verb in (Verb.SELECT, Verb.INSERT)},
        "public.dynamics_sync_retry_queue": _everything("an entry", ", "),
    },
}
"""By actor and relation, the rows (labels of `world.py`) that they reach; for insert, those of which they may make a
second one."""
