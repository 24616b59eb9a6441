"""Two organisations with two chapters each, and the people in them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]

CHAPTERS = {"A1": "A", "A2": "A", "B1": "B", "B2": "B"}
"""By name, with the organisation."""
MENTORS = {"Anna": "A1", "Arne": "A1", "Astrid": "A2", "Bea": "B1", "Bo": "B2"}
"""By name, with the chapter. Each has a certification that is valid today."""
MEMBERSHIPS = (
    ("Cora", "A1", "coordinator", "null"),
    ("Siv", "A2", "coordinator", "null"),
    ("Siv", "B1", "coordinator", "null"),
    ("Olga", "A1", "organisation_admin", "null"),
    ("Eva", "A1", "coordinator", "now() - interval '1 second'"),
    ("Eva", "B1", "organisation_admin", "now() - interval '1 second'"),
    ("Anna", "A1", "peer_mentor", "null"),
    ("Bea", "B1", "peer_mentor", "now() + interval '1 day'"),
)


def organisation_id(name: str) -> UUID:
    return _id("organisation", name)


def chapter_id(name: str) -> UUID:
    return _id("chapter", name)


def mentor_id(name: str) -> UUID:
    return _id("mentor", name)


def certification_id(mentor: str) -> UUID:
    return _id("certification", mentor)


def user_id(name: str) -> UUID:
    return _id("user", name)


def _id(kind: str, name: str) -> UUID:
    return uuid5(NAMESPACE_URL, f"{kind} {name}")


QUEUE_ENTRY = _id("entry", "the only one")

LABELS = {
    **{str(organisation_id(name)): name for name in CHAPTERS.values()},
    **{str(chapter_id(name)): name for name in CHAPTERS},
    **{str(_id("membership", f"{name} {chapter}")): f"{name} in {chapter}" for name, chapter, _, _ in MEMBERSHIPS},
    **{str(id_of(name)): name for name in MENTORS for id_of in (mentor_id, certification_id)},
    **{name: name for name in MENTORS},
    str(QUEUE_ENTRY): "an entry",
}
"""What tells the rows apart, in the order of a row's columns: the first of these values says which row it is."""


def populate(owner: Connection) -> None:
    """Fill a migrated database, as a superuser."""
    for name in dict.fromkeys(CHAPTERS.values()):
        owner.execute("insert into public.organisations (id, name) values (%s, %s)", [organisation_id(name), name])
    for name, organisation in CHAPTERS.items():
        owner.execute(
            "insert into public.chapters (id, organisation_id, name) values (%s, %s, %s)",
            [chapter_id(name), organisation_id(organisation), name],
        )
    for name, chapter, role, ends_at in MEMBERSHIPS:
        owner.execute(
            "insert into public.chapter_memberships (id, user_id, chapter_id, role, ends_at) "
            f"values (%s, %s, %s, %s, {ends_at})".encode(),
            [_id("membership", f"{name} {chapter}"), user_id(name), chapter_id(chapter), role],
        )
    for name, chapter in MENTORS.items():
        owner.execute(
            "insert into public.peer_mentors (id, chapter_id, user_id, display_name, email, phone) "
            "values (%s, %s, %s, %s, 'somebody@example.org', '+47 22 00 00 00')",
            [mentor_id(name), chapter_id(chapter), user_id(name), name],
        )
        owner.execute(
            "insert into public.certifications (id, peer_mentor_id, chapter_id, status, issued_on, expires_on) "
            "values (%s, %s, %s, 'active', current_date - 100, current_date + 100)",
            [certification_id(name), mentor_id(name), chapter_id(chapter)],
        )
        owner.execute(
            "insert into public.certification_renewal_events (certification_id, position, event, on_day) "
            "values (%s, 1, 'issued', current_date - 100)",
            [certification_id(name)],
        )
    owner.execute(
        "insert into public.dynamics_sync_retry_queue (id, source_table, record_key, operation_type, payload_json, "
        "failure_reason, error_code, attempt_count, status) "
        "values (%s, 'public.certifications', 'x', 'upsert', '{}', 'x', 'x', 1, 'requires_investigation')",
        [QUEUE_ENTRY],
    )


def claims(user: str, **more: object) -> str:
    """What the user's token says."""
    return json.dumps({"sub": str(user_id(user)), "role": "authenticated", **more})


@contextmanager
def acting(connection: Connection, role: str, its_claims: str | None = None) -> Iterator[Connection]:
    """The connection as this role, with these claims, as PostgREST sets them. All that it does is undone."""
    with connection.transaction(force_rollback=True):
        connection.execute("select set_config('request.jwt.claims', %s, true)", [its_claims or ""])
        connection.execute(f"set local role {role}".encode())
        yield connection
