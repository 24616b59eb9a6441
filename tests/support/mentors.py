"""Organisations, mentors and certifications, with as little said as a test needs."""

from datetime import date
from typing import Any
from uuid import UUID, uuid4

import psycopg

Connection = psycopg.Connection[Any]

NOW = "2026-11-25 12:00+00"
TODAY = date(2026, 11, 25)


def add_chapter(owner: Connection, name: str = "Oslo", zone: str = "Europe/Oslo", expiring_days: int = 30) -> UUID:
    """A chapter, the only one of its organisation."""
    organisation, chapter = uuid4(), uuid4()
    owner.execute("insert into public.organisations values (%s, 'HLF', %s, %s)", [organisation, zone, expiring_days])
    owner.execute("insert into public.chapters values (%s, %s, %s)", [chapter, organisation, name])
    return chapter


def add_mentor(owner: Connection, chapter: UUID, name: str = "Kari Nordmann") -> UUID:
    mentor = uuid4()
    owner.execute(
        "insert into public.peer_mentors (id, chapter_id, display_name, email, phone) "
        "values (%s, %s, %s, 'kari@example.org', '91234567')",
        [mentor, chapter, name],
    )
    return mentor


def certify(
    owner: Connection,
    mentor: UUID,
    expires_on: date | None,
    status: str = "active",
    *,
    issued_on: date | None = None,
    chapter: UUID | None = None,
) -> UUID:
    """A certification, issued where the mentor is unless another chapter is named."""
    certification = uuid4()
    owner.execute(
        "insert into public.certifications (id, peer_mentor_id, chapter_id, status, issued_on, expires_on) "
        "select %s, m.id, coalesce(%s, m.chapter_id), %s, %s, %s from public.peer_mentors m where m.id = %s",
        [certification, chapter, status, issued_on, expires_on, mentor],
    )
    return certification
