"""People of the domain that ships, as Supabase's API lets them in: by role and claims."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import LiteralString
from uuid import UUID, uuid4

import psycopg

Connection = psycopg.Connection[tuple[object, ...]]

STAGE: LiteralString = """
with new_organisation as (insert into public.organisations (name) values ('an organisation') returning id)
insert into public.chapters (organisation_id, name)
select id, name from new_organisation, unnest(array['first', 'second']) as name
returning organisation_id, id
"""

MENTOR: LiteralString = """
with mentor as (insert into public.peer_mentors (chapter_id, display_name) values (%(chapter)s, 'M') returning id)
insert into public.certifications (peer_mentor_id, chapter_id) select id, %(chapter)s from mentor
returning peer_mentor_id, id
"""


@dataclass(frozen=True)
class Chapter:
    """A chapter with one mentor who has one certification."""

    id: UUID
    mentor: UUID
    certification: UUID
    coordinator: UUID = field(default_factory=uuid4)


@dataclass(frozen=True)
class Organisation:
    """Two chapters, each with a coordinator, and an administrator."""

    id: UUID
    chapters: tuple[Chapter, Chapter]
    administrator: UUID = field(default_factory=uuid4)


def add_organisation(owner: Connection) -> Organisation:
    """As the database's owner."""
    rows = owner.execute(STAGE).fetchall()
    first, second = (_add_mentor(owner, UUID(str(chapter))) for _, chapter in rows)
    made = Organisation(UUID(str(rows[0][0])), (first, second))
    members = [(chapter.coordinator, chapter.id, "coordinator") for chapter in made.chapters]
    for member in (*members, (made.administrator, first.id, "organisation_admin")):
        owner.execute("insert into public.chapter_memberships (user_id, chapter_id, role) values (%s, %s, %s)", member)
    return made


def _add_mentor(owner: Connection, chapter: UUID) -> Chapter:
    row = owner.execute(MENTOR, {"chapter": chapter}).fetchone()
    assert row is not None
    return Chapter(chapter, UUID(str(row[0])), UUID(str(row[1])))


@contextmanager
def as_role(database: str, role: str, user: UUID | None = None, **settings: str) -> Iterator[Connection]:
    """A session of the API with that role and, for a person, their claims."""
    with psycopg.connect(database, autocommit=True, **settings) as connection:  # type: ignore[arg-type]
        claims = {"role": role} | ({"sub": str(user)} if user else {})
        connection.execute("select set_config('request.jwt.claims', %s, false)", [json.dumps(claims)])
        connection.execute(f"set role {role}".encode())
        yield connection
