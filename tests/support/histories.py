"""Certifications with histories, and the people who append to them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.types.json import Jsonb

Connection = psycopg.Connection[tuple[Any, ...]]

SERVICE = None
"""In the place of a user."""


def first_form(number: int, **more: object) -> dict[str, object]:
    """A renewal as the first form has it."""
    renewed_on = date(2001, 3, 1) + timedelta(days=number)
    return {"renewed_on": renewed_on.isoformat(), "expires_on": str(renewed_on + timedelta(days=365)), **more}


def second_form(number: int, **more: object) -> dict[str, object]:
    """A renewal as the current form has it."""
    return {
        "schema_version": 2,
        "id": str(uuid4()),
        "event": "renewed",
        "on": str(date(2011, 3, 1) + timedelta(days=number)),
        "expires_on": None,
        "recorded_at": "2011-03-01T10:00:00.000001Z",
        "recorded_by": str(uuid4()),
        **more,
    }


@dataclass
class Histories:
    """A chapter with one mentor, seen by the database's owner."""

    url: str
    owner: Connection
    chapter: UUID
    mentor: UUID

    def certification(self, history: object = ()) -> UUID:
        """One whose history was written before anything was checked."""
        with self.unchecked():
            return self.value(
                "insert into public.certifications (peer_mentor_id, chapter_id, renewal_history) "
                "values (%s, %s, %s) returning id",
                self.mentor,
                self.chapter,
                Jsonb(list(history) if isinstance(history, tuple) else history),
            )

    def certifications(self, count: int, history: Sequence[object]) -> None:
        """Many with the same history."""
        with self.unchecked():
            self.owner.execute(
                "insert into public.certifications (peer_mentor_id, chapter_id, renewal_history) "
                "select %s, %s, %s from generate_series(1, %s)",
                [self.mentor, self.chapter, Jsonb(history), count],
            )

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """What is written past the triggers."""
        self.owner.execute("set session_replication_role = replica")
        try:
            yield
        finally:
            self.owner.execute("reset session_replication_role")

    def overwrite(self, certification: UUID, history: object) -> None:
        """By somebody who goes past the triggers."""
        with self.unchecked():
            self.owner.execute(
                "update public.certifications set renewal_history = %s where id = %s", [Jsonb(history), certification]
            )

    def user(self, role: str | None = None) -> UUID:
        """Somebody with that role in the chapter."""
        user = uuid4()
        if role is not None:
            self.owner.execute(
                "insert into public.chapter_memberships (user_id, chapter_id, role) values (%s, %s, %s)",
                [user, self.chapter, role],
            )
        return user

    @contextmanager
    def session(self, user: UUID | None, role: str = "authenticated") -> Iterator[Connection]:
        """A connection of a user, or of service_role."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            if user is None:
                connection.execute(f"set role {role if role == 'anon' else 'service_role'}".encode())
            else:
                claims = json.dumps({"sub": str(user), "role": "authenticated"})
                connection.execute("select set_config('request.jwt.claims', %s, false)", [claims])
                connection.execute("set role authenticated")
            yield connection

    def append(self, certification: UUID, user: UUID | None = SERVICE, **given: object) -> Any:
        """What `append_renewal` gives."""
        with self.session(user) as connection:
            return append(connection, certification, **given)

    def copy(self, certification: UUID) -> list[Any]:
        """What renewal_history has."""
        history = self.value("select renewal_history from public.certifications where id = %s", certification)
        assert isinstance(history, list)
        return history

    def upgraded(self, certification: UUID) -> list[Any]:
        """What renewal_history has, in the current form."""
        (read,) = self.owner.execute("select public.read_renewals(%s)", [certification]).fetchone() or (None,)
        assert isinstance(read, list)
        return read

    def table(self, certification: UUID) -> list[Any]:
        """What the table has, as renewal_history would write it."""
        return self.value("select dynamics_certifications.history_from_table(%s)", certification)  # type: ignore[no-any-return]

    def value(self, query: str, *parameters: object) -> Any:
        row = self.owner.execute(query.encode(), parameters).fetchone()
        assert row is not None
        return row[0]


def append(connection: Connection, certification: UUID, **given: object) -> Any:
    """Call `append_renewal`; a renewal of one day unless something else is given."""
    named = {"event": "renewed", "on_day": date(2026, 11, 25)} | given
    arguments = ", ".join(f"{name} => %({name})s" for name in named)
    row = connection.execute(
        f"select public.append_renewal(%(certification)s, {arguments})".encode(),
        named | {"certification": certification},
    ).fetchone()
    assert row is not None
    return row[0]


@contextmanager
def histories(url: str) -> Iterator[Histories]:
    """In a migrated database."""
    with psycopg.connect(url, autocommit=True) as owner:
        row = owner.execute(
            "with o as (insert into public.organisations (name) values ('HLF') returning id), "
            "c as (insert into public.chapters (organisation_id, name) select id, 'Oslo' from o returning id), "
            "m as (insert into public.peer_mentors (chapter_id, display_name) select id, 'Kari' from c returning id) "
            "select c.id, m.id from c, m"
        ).fetchone()
        assert row is not None
        yield Histories(url, owner, *row)
