"""The access audit (R23): who wrote or read across chapters and organisations, by real roles and claims."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from dynamics_sync.postgres.migrate import MACHINERY, migrate
from support.commands import refused, run
from support.people import Connection, Organisation, add_organisation, as_role
from support.postgres import Cluster

AUDIT = """
select a.actor, a.acting_as, a.kind, a.table_name, a.record_id, a.organisation_id
from dynamics_certifications.access_audit a where a.id > %s order by a.id
"""
READ = "select id from public.read_certifications(%s, %s)"
RENEW = "update public.certifications set status = 'active' where id = %s"


@pytest.fixture
def organisation(owner: Connection) -> Organisation:
    return add_organisation(owner)


@pytest.fixture
def owner(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True, application_name="psql") as connection:
        yield connection


class Audit:
    """What is noted from now on."""

    def __init__(self, owner: Connection) -> None:
        self._owner = owner
        ((self._begin,),) = owner.execute("select coalesce(max(id), 0) from dynamics_certifications.access_audit")

    def rows(self) -> list[tuple[object, ...]]:
        return self._owner.execute(AUDIT, [self._begin]).fetchall()


@pytest.fixture
def audit(owner: Connection, organisation: Organisation) -> Audit:
    return Audit(owner)


def test_a_coordinator_leaves_no_row_in_her_own_chapter(
    database: str, organisation: Organisation, audit: Audit
) -> None:
    chapter, _ = organisation.chapters
    with as_role(database, "authenticated", chapter.coordinator) as coordinator:
        assert coordinator.execute(RENEW, [chapter.certification]).rowcount == 1
        values = [chapter.mentor, chapter.id]
        coordinator.execute("insert into public.certifications (peer_mentor_id, chapter_id) values (%s, %s)", values)
    assert audit.rows() == []


def test_an_administrator_leaves_a_row_in_each_chapter_that_she_does_not_coordinate(
    database: str, organisation: Organisation, owner: Connection
) -> None:
    own, other = organisation.chapters
    user = organisation.administrator

    def renewed() -> set[object]:
        """What is noted of a change of all that she sees."""
        audit = Audit(owner)
        with as_role(database, "authenticated", user) as administrator:
            assert administrator.execute("update public.certifications set status = 'active'").rowcount == 2
        rows = audit.rows()
        who = (str(user), "organisation_admin", "update", "public.certifications")
        assert {(*row[:4], row[5]) for row in rows} == {(*who, organisation.id)}
        return {row[4] for row in rows}

    assert renewed() == {own.certification, other.certification}
    owner.execute(
        "insert into public.chapter_memberships (user_id, chapter_id, role) values (%s, %s, 'coordinator')",
        [user, own.id],
    )
    assert renewed() == {other.certification}


def test_moving_a_record_into_another_chapter_leaves_a_row(
    database: str, organisation: Organisation, owner: Connection
) -> None:
    """The old and the new chapter both count. No user may do it, unless the column is granted one day."""
    own, other = organisation.chapters
    user = organisation.administrator
    owner.execute("grant update (chapter_id) on public.certifications to authenticated")
    owner.execute(
        "insert into public.chapter_memberships (user_id, chapter_id, role) values (%s, %s, 'coordinator')",
        [user, own.id],
    )
    owner.execute("update public.peer_mentors set chapter_id = %s where id = %s", [own.id, other.mentor])
    audit = Audit(owner)
    with as_role(database, "authenticated", user) as administrator:
        administrator.execute(
            "update public.certifications set chapter_id = %s where id = %s", [own.id, other.certification]
        )
    assert [row[2:] for row in audit.rows()] == [
        ("update", "public.certifications", other.certification, organisation.id)
    ]


@pytest.mark.parametrize(
    ("role", "application", "actor"),
    [
        ("service_role", "billing", "service_role/billing"),
        ("service_role", "ola@example.invalid", "service_role"),
        ("postgres", "psql", "postgres/psql"),
    ],
)
def test_services_and_direct_sessions_leave_a_row_for_each_record(
    database: str, organisation: Organisation, audit: Audit, role: str, application: str, actor: str
) -> None:
    first, second = organisation.chapters
    with as_role(database, role, application_name=application) as service:
        service.execute("update public.certifications set status = 'expired'")
        service.execute("delete from public.certifications where id = %s", [first.certification])
    rows = audit.rows()
    assert {row[:2] for row in rows} == {(actor, role)}
    assert {row[5] for row in rows} == {organisation.id}
    assert sorted(str(row[4]) for row in rows if row[2] == "update") == sorted(
        [str(first.certification), str(second.certification)]
    )
    assert [row[4] for row in rows if row[2] == "delete"] == [first.certification]


def test_every_table_of_the_domain_is_audited(database: str, owner: Connection) -> None:
    audit = Audit(owner)
    made = add_organisation(owner)
    chapter, _ = made.chapters
    with as_role(database, "service_role") as service:
        service.execute("update public.organisations set name = 'another' where id = %s", [made.id])
        service.execute("update public.chapters set name = 'another' where id = %s", [chapter.id])
        service.execute("update public.peer_mentors set phone = '1' where id = %s", [chapter.mentor])
        service.execute("delete from public.chapter_memberships where chapter_id = %s", [chapter.id])
    rows = audit.rows()
    assert {row[3] for row in rows if row[2] == "insert"} == {
        "public.organisations",
        "public.chapters",
        "public.chapter_memberships",
        "public.peer_mentors",
        "public.certifications",
    }
    assert {row[5] for row in rows} == {made.id}
    assert {(row[2], row[3], row[4]) for row in rows if row[2] == "update"} == {
        ("update", "public.organisations", made.id),
        ("update", "public.chapters", chapter.id),
        ("update", "public.peer_mentors", chapter.mentor),
    }


def test_a_truncation_leaves_one_row(owner: Connection, audit: Audit) -> None:
    owner.execute("truncate public.certifications cascade")
    who = ("postgres/psql", "postgres")
    assert audit.rows() == [(*who, "truncate", "public.certifications", None, None)]


def test_a_write_that_is_undone_leaves_no_row_and_no_write_goes_without(
    database: str, organisation: Organisation, audit: Audit
) -> None:
    with as_role(database, "service_role") as service:
        service.execute("begin")
        service.execute("update public.certifications set status = 'expired'")
        service.execute("rollback")
    assert audit.rows() == []


@pytest.mark.every_postgres
@pytest.mark.parametrize("is_administrator", [True, False], ids=["an administrator", "service_role"])
def test_reading_an_organisation_leaves_a_row_for_each_record(
    database: str, organisation: Organisation, owner: Connection, audit: Audit, is_administrator: bool
) -> None:
    add_organisation(owner)
    audit = Audit(owner)
    role, user = ("authenticated", organisation.administrator) if is_administrator else ("service_role", None)
    with as_role(database, role, user, application_name="") as reader:
        read = reader.execute(READ, [organisation.id, "yearly report"]).fetchall()
        asked_for_one = f"select public.read_certifications('{organisation.id}', 'a look') limit 1"
        assert len(reader.execute(asked_for_one.encode()).fetchall()) == 1
    held = {chapter.certification for chapter in organisation.chapters}
    assert {row[0] for row in read} == held
    who = (str(user), "organisation_admin") if user else ("service_role", "service_role")
    rows = audit.rows()
    assert {row[:4] for row in rows} == {(*who, "read", "public.certifications")}
    assert [row[4] in held for row in rows] == [True] * 4


def test_others_do_not_read_an_organisation(database: str, organisation: Organisation, owner: Connection) -> None:
    another = add_organisation(owner)
    owner.execute(
        "insert into public.chapter_memberships (user_id, chapter_id, role, ends_at) "
        "values (%s, %s, 'organisation_admin', now())",
        [former := uuid4(), organisation.chapters[0].id],
    )
    audit = Audit(owner)
    for user in (organisation.chapters[0].coordinator, another.administrator, former, uuid4()):
        assert is_refused(database, "authenticated", user, organisation.id)
    assert is_refused(database, "anon", None, organisation.id)
    assert is_refused(database, "postgres", None, organisation.id)
    assert audit.rows() == []


def is_refused(database: str, role: str, user: UUID | None, organisation: UUID) -> bool:
    with as_role(database, role, user) as session:
        try:
            session.execute(READ, [organisation, "curious"])
        except psycopg.errors.InsufficientPrivilege:
            return True
    return False


def test_nobody_reads_without_saying_why(database: str, organisation: Organisation) -> None:
    with as_role(database, "service_role") as service:
        for reason in (None, " ", "x" * 501):
            with pytest.raises(psycopg.errors.InvalidParameterValue, match="Say in 1 to 500 characters why"):
                service.execute(READ, [organisation.id, reason])


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
@pytest.mark.parametrize(
    "statement",
    [
        "select from dynamics_certifications.access_audit",
        "insert into dynamics_certifications.access_audit (actor, acting_as, kind, table_name) "
        "values ('x', 'x', 'read', 'x')",
        "update dynamics_certifications.access_audit set actor = 'somebody else'",
        "delete from dynamics_certifications.access_audit",
        "truncate dynamics_certifications.access_audit",
        "alter table public.certifications disable trigger audit_update",
        "set session_replication_role = replica",
    ],
)
def test_no_api_role_changes_the_audit_or_goes_past_it(database: str, role: str, statement: str) -> None:
    with as_role(database, role, uuid4()) as session:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(statement.encode())


def test_row_level_security_keeps_even_an_ordinary_owner_from_changing_the_audit(
    database: str, server: Cluster, owner: Connection, organisation: Organisation
) -> None:
    every_row = "select from dynamics_certifications.access_audit"
    before = len(owner.execute(every_row).fetchall())
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute("create role plain_owner")
    try:
        owner.execute("grant usage on schema dynamics_certifications to plain_owner")
        owner.execute("alter table dynamics_certifications.access_audit owner to plain_owner")
        owner.execute("set role plain_owner")
        assert owner.execute("delete from dynamics_certifications.access_audit").rowcount == 0
        assert owner.execute("update dynamics_certifications.access_audit set actor = ''").rowcount == 0
        assert len(owner.execute(every_row).fetchall()) == before > 0
    finally:
        owner.execute("reset role")
        owner.execute("reassign owned by plain_owner to postgres; drop owned by plain_owner; drop role plain_owner")


def test_the_command_lists_the_newest_first(
    database: str, organisation: Organisation, owner: Connection, tmp_path: Path
) -> None:
    chapter = organisation.chapters[0]
    owner.execute(
        "insert into dynamics_certifications.access_audit (at, actor, acting_as, kind, table_name, reason) "
        "values ('2020-01-01', 'service_role/old', 'service_role', 'read', 'public.certifications', 'long ago')"
    )
    with as_role(database, "service_role", application_name="billing") as service:
        service.execute(RENEW, [chapter.certification])
        service.execute(READ, [organisation.id, "yearly report"])

    def listed(*words: str) -> str:
        return run("access", "audit", *words, cwd=tmp_path, database_url=database).stdout

    newest, _, update = json.loads(listed("--limit", "3", "--json"))
    assert (newest["kind"], newest["reason"]) == ("read", "yearly report")
    assert (update["kind"], update["actor"], update["record_id"]) == (
        "update",
        "service_role/billing",
        str(chapter.certification),
    )
    since = listed("--since", "2021-01-01")
    assert "yearly report" in since
    assert "long ago" not in since


def test_without_the_certifications_that_ship_there_is_no_audit_but_the_switch_works(
    empty_database: str, tmp_path: Path
) -> None:
    (tmp_path / "own.toml").write_text("")
    asyncio.run(migrate(empty_database, [MACHINERY]))
    done = run("access", "audit", cwd=tmp_path, database_url=empty_database, mapping="own.toml")
    refused(done, "the certifications that ship are not used here")
    with psycopg.connect(empty_database, autocommit=True) as owner:
        owner.execute("create table public.certifications (code text); grant select on public.certifications to anon")
        assert owner.execute("select * from dynamics_sync.freeze('public.certifications')").fetchall() == []
