"""Attacks that take a thought: rows that don't belong together, guessed ids, forged claims."""

import json
from contextlib import suppress
from uuid import UUID, uuid4

import pytest
from psycopg.errors import InsufficientPrivilege, InvalidTextRepresentation

from security.actors import FORGED
from security.world import (
    Connection,
    acting,
    certification_id,
    chapter_id,
    claims,
    mentor_id,
    organisation_id,
    user_id,
)

TABLES = ("organisations", "chapters", "chapter_memberships", "peer_mentors", "certifications")
INSERT = "insert into public.certifications (peer_mentor_id, chapter_id) values (%s, %s)"
NOBODY = uuid4()
NOWHERE = uuid4()


# Rows that don't belong together


@pytest.mark.parametrize("chapter", [chapter_id("A2"), chapter_id("B2"), NOWHERE], ids=["A2", "B2", "nowhere"])
@pytest.mark.parametrize("granted", ["status", "chapter_id"], ids=["as it is", "were the column granted"])
def test_nobody_moves_a_certification_to_a_foreign_chapter(owner: Connection, chapter: UUID, granted: str) -> None:
    with owner.transaction(force_rollback=True):
        owner.execute(f"grant update ({granted}) on public.certifications to authenticated".encode())
        with acting(owner, "authenticated", claims("Cora")) as cora:
            with pytest.raises(InsufficientPrivilege):
                cora.execute("update public.certifications set chapter_id = %s", [chapter])


@pytest.mark.parametrize("column", ["id", "peer_mentor_id", "chapter_id", "renewal_history", "updated_at"])
def test_nobody_rewrites_what_a_certification_is(owner: Connection, column: str) -> None:
    with acting(owner, "authenticated", claims("Olga")) as olga, pytest.raises(InsufficientPrivilege):
        olga.execute(f"update public.certifications set {column} = default".encode())


@pytest.mark.parametrize(
    ("who", "mentor", "chapter"),
    [
        ("Cora", mentor_id("Bo"), chapter_id("A1")),
        ("Cora", mentor_id("Astrid"), chapter_id("A1")),
        ("Cora", mentor_id("Anna"), chapter_id("B2")),
        ("Cora", NOBODY, chapter_id("A1")),
        ("Cora", mentor_id("Anna"), NOWHERE),
        ("Siv", mentor_id("Bea"), chapter_id("A2")),
        ("Olga", mentor_id("Anna"), chapter_id("A2")),
        ("Anna", mentor_id("Anna"), chapter_id("A1")),
        ("Eva", mentor_id("Anna"), chapter_id("A1")),
    ],
    ids=[
        "a mentor of another organisation",
        "a mentor of another chapter",
        "a foreign chapter",
        "a mentor that is not there",
        "a chapter that is not there",
        "across two organisations that one coordinates in",
        "across two chapters that one administers",
        "a mentor themselves",
        "a coordinator who was",
    ],
)
def test_a_certification_is_made_by_who_manages_its_mentors_chapter(
    owner: Connection, who: str, mentor: UUID, chapter: UUID
) -> None:
    """Each is refused with the same words: what exists cannot be told from what does not."""
    with acting(owner, "authenticated", claims(who)) as user:
        with pytest.raises(InsufficientPrivilege) as refused:
            user.execute(INSERT, [mentor, chapter])
    assert refused.value.diag.message_primary == (
        'new row violates row-level security policy for table "certifications"'
    )
    assert refused.value.diag.message_detail is None


def test_a_coordinator_makes_a_certification_of_her_own_mentor(owner: Connection) -> None:
    with acting(owner, "authenticated", claims("Cora")) as cora:
        assert cora.execute(INSERT, [mentor_id("Anna"), chapter_id("A1")]).rowcount == 1


def test_a_mentor_who_moved_away_leaves_a_certification_that_its_chapter_can_revoke(owner: Connection) -> None:
    with owner.transaction(force_rollback=True):
        owner.execute(
            "update public.peer_mentors set chapter_id = %s where id = %s", [chapter_id("B2"), mentor_id("Anna")]
        )
        with acting(owner, "authenticated", claims("Cora")) as cora:
            revoke = "update public.certifications set status = 'revoked' where id = %s"
            assert cora.execute(revoke, [certification_id("Anna")]).rowcount == 1


# Guessed ids


@pytest.mark.parametrize(
    "statement",
    [
        "select from public.certifications where id = %(id)s",
        "select from public.certifications where id = %(id)s for update",
        "update public.certifications set status = 'active' where id = %(id)s",
        "update public.certifications c set kind = m.email from public.peer_mentors m where c.id = %(id)s",
        "select from public.peer_mentors where id = %(mentor)s",
        "select from public.chapters where id = %(chapter)s",
        "select from public.organisations where id = %(organisation)s",
        "select from public.chapter_memberships where user_id = %(user)s",
    ],
)
def test_a_guessed_id_finds_nothing(owner: Connection, statement: str) -> None:
    guessed = {
        "id": certification_id("Bo"),
        "mentor": mentor_id("Bo"),
        "chapter": chapter_id("B2"),
        "organisation": organisation_id("B"),
        "user": user_id("Siv"),
    }
    with acting(owner, "authenticated", claims("Olga")) as olga:
        assert olga.execute(statement.encode(), guessed).rowcount == 0


@pytest.mark.parametrize("ending", ["", "on conflict do nothing", "on conflict (id) do update set status = 'active'"])
def test_no_certification_is_made_under_a_guessed_id(owner: Connection, ending: str) -> None:
    """Were it that of a deleted one, Dynamics would take it for that one."""
    statement = f"insert into public.certifications (id, peer_mentor_id, chapter_id) values (%s, %s, %s) {ending}"
    for key in (certification_id("Bo"), uuid4()):
        with acting(owner, "authenticated", claims("Cora")) as cora, pytest.raises(InsufficientPrivilege):
            cora.execute(statement.encode(), [key, mentor_id("Anna"), chapter_id("A1")])


# Claims

LIES: dict[str, str] = {
    "none": "",
    "an empty object": "{}",
    "null": "null",
    "a list": "[]",
    "a text": '"me"',
    "a number": "1",
    "no JSON": "sub=me",
    "a sub that is null": '{"sub": null}',
    "a sub that is empty": '{"sub": ""}',
    "a sub that is a list": json.dumps({"sub": [str(user_id("Cora"))]}),
    "a sub that is an object": json.dumps({"sub": {"id": str(user_id("Cora"))}}),
    "a sub that is SQL": json.dumps({"sub": f"{user_id('Cora')}' or true --"}),
    "a sub that is a chapter": json.dumps({"sub": str(chapter_id("A1"))}),
    "a sub elsewhere": json.dumps({"user": {"sub": str(user_id("Cora"))}, "user_id": str(user_id("Cora"))}),
    "every role": claims("nobody", **FORGED),
    "that it is the service": json.dumps({"role": "service_role", "iss": "supabase"}),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
@pytest.mark.parametrize("table", TABLES)
def test_claims_that_name_nobody_show_nothing(owner: Connection, table: str, lie: str) -> None:
    shown = []
    with suppress(InvalidTextRepresentation), acting(owner, "authenticated", lie) as liar:
        shown = liar.execute(f"table public.{table}".encode()).fetchall()
    assert shown == []


def test_a_membership_counts_until_it_ends(owner: Connection) -> None:
    with owner.transaction(force_rollback=True):
        owner.execute(
            "update public.chapter_memberships set ends_at = now() where user_id = %s and chapter_id = %s",
            [user_id("Siv"), chapter_id("B1")],
        )
        with acting(owner, "authenticated", claims("Siv")) as siv:
            assert siv.execute("select chapter_id from public.certifications").fetchall() == [(chapter_id("A2"),)]
