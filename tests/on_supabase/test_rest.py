"""What apps reach through the real PostgREST, with Supabase's own client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from postgrest import APIError, CountMethod

from dynamics_sync.postgres.connections import Connection
from on_supabase.conftest import Project
from support.chapters import Chapter, make_chapter
from support.engine import stage
from support.jwt import token, unsigned, user_token, with_claims
from support.outbox import GATHER
from support.supabase_gateway import LEGACY_ANON, LEGACY_SERVICE, PUBLISHABLE, SECRET, Gateway

QUEUE = "dynamics_sync_retry_queue"
LISTING = "public_peer_mentors"
TABLES = {
    "organisations",
    "chapters",
    "chapter_memberships",
    "peer_mentors",
    "certifications",
    "certification_renewal_events",
}
FUNCTIONS = {"rpc/read_certifications", "rpc/read_renewals", "rpc/append_renewal"}
EXPIRED = 100000003

INSUFFICIENT_PRIVILEGE = "42501"
UNKNOWN_SCHEMA, BAD_TOKEN = "PGRST106", "PGRST301"


def entry(key: str) -> dict[str, object]:
    return {
        "source_table": "public.things",
        "record_key": key,
        "operation_type": "upsert",
        "payload_json": {},
        "failure_reason": "rejected",
        "error_code": "http_400",
        "attempt_count": 1,
        "status": "requires_investigation",
    }


@asynccontextmanager
async def refused(code: str) -> AsyncIterator[None]:
    with pytest.raises(APIError) as refusal:
        yield
    assert refusal.value.code == code


@pytest.fixture
async def hers(owner: Connection) -> Chapter:
    """A coordinator's own."""
    return await make_chapter(owner)


@pytest.fixture
async def foreign(owner: Connection) -> Chapter:
    """Somebody else's."""
    return await make_chapter(owner)


@pytest.mark.parametrize("key", [SECRET, LEGACY_SERVICE], ids=["sb_secret", "legacy"])
async def test_a_service_key_adds_to_the_queue_and_reads_and_counts_it(supabase: Gateway, key: str) -> None:
    async with supabase.client(key) as app:
        added = str(uuid4())
        await app.table(QUEUE).insert(entry(added)).execute()
        found = await app.table(QUEUE).select("*", count=CountMethod.exact).eq("record_key", added).execute()
    assert found.count == 1
    assert [row["status"] for row in found.data] == ["requires_investigation"]


@pytest.mark.parametrize(
    ("key", "user"),
    [(PUBLISHABLE, None), (LEGACY_ANON, None), (PUBLISHABLE, user_token(uuid4()))],
    ids=["publishable", "legacy", "signed in"],
)
async def test_nobody_else_reads_the_queue_or_adds_to_it(supabase: Gateway, key: str, user: str | None) -> None:
    async with supabase.client(key, user) as app:
        async with refused(INSUFFICIENT_PRIVILEGE):
            await app.table(QUEUE).select("id").execute()
        async with refused(INSUFFICIENT_PRIVILEGE):
            await app.table(QUEUE).insert(entry("x")).execute()


@pytest.mark.parametrize("schema", ["dynamics_sync", "dynamics_certifications", "supabase_migrations", "auth"])
async def test_not_even_a_service_key_reaches_the_schemas_behind(supabase: Gateway, schema: str) -> None:
    async with supabase.client(SECRET) as app:
        async with refused(UNKNOWN_SCHEMA):
            await app.schema(schema).table("outbox").select("*").execute()
        async with refused(UNKNOWN_SCHEMA):
            await app.schema(schema).rpc("managed_chapters", {}).execute()


@pytest.mark.parametrize(
    ("user", "offered"),
    [(None, {LISTING}), (user_token(uuid4()), {LISTING, *TABLES, *FUNCTIONS})],
    ids=["anon", "signed in"],
)
async def test_nothing_else_is_offered(supabase: Gateway, user: str | None, offered: set[str]) -> None:
    """By PostgREST's own description of what it serves to that role: tables, views and functions."""
    assert await supabase.offers(user) == offered


async def test_anon_reads_none_of_the_tables(supabase: Gateway) -> None:
    async with supabase.client(PUBLISHABLE) as app:
        for table in TABLES:
            async with refused(INSUFFICIENT_PRIVILEGE):
                await app.table(table).select("*").execute()


@pytest.mark.parametrize("key", [PUBLISHABLE, LEGACY_ANON], ids=["publishable", "legacy"])
async def test_anybody_reads_the_listing_until_a_certification_is_revoked(
    supabase: Gateway, owner: Connection, hers: Chapter, key: str
) -> None:
    async with supabase.client(key) as app:
        listed = app.table(LISTING).select("*").eq("id", str(hers.mentor))
        (mentor,) = (await listed.execute()).data
        assert mentor.keys() == {"id", "display_name", "chapter_id", "chapter_name", "organisation_name"}
        await owner.execute("update public.certifications set status = 'revoked' where id = %s", [hers.certification])
        assert (await listed.execute()).data == []


async def test_a_coordinator_sees_the_certifications_of_her_chapter_and_no_others(
    supabase: Gateway, hers: Chapter, foreign: Chapter
) -> None:
    async with supabase.client(PUBLISHABLE, user_token(hers.coordinator)) as app:
        seen = await app.table("certifications").select("id, peer_mentors(display_name)").execute()
        guessed = await app.table("certifications").select("id").eq("id", str(foreign.certification)).execute()
    assert seen.data == [{"id": str(hers.certification), "peer_mentors": {"display_name": "Kari Nordmann"}}]
    assert guessed.data == []


async def test_what_she_changes_reaches_dynamics(
    project: Project, supabase: Gateway, owner: Connection, hers: Chapter
) -> None:
    async def captured() -> int:
        await owner.execute(GATHER)
        query = "select version from dynamics_sync.outbox where record_key = %s"
        (version,) = await (await owner.execute(query, [str(hers.certification)])).fetchone() or ()
        return int(version)

    before = await captured()
    async with supabase.client(PUBLISHABLE, user_token(hers.coordinator)) as app:
        change = app.table("certifications").update({"status": "expired"}).eq("id", str(hers.certification))
        assert [row["status"] for row in (await change.execute()).data] == ["expired"]
    assert await captured() > before
    async with stage(project.owner) as on:
        await on.settled()
        assert (await on.record(str(hers.certification)) or {})["hlf_status"] == EXPIRED


async def test_she_moves_none_to_a_foreign_chapter_and_changes_and_adds_none_there(
    supabase: Gateway, owner: Connection, hers: Chapter, foreign: Chapter
) -> None:
    async with supabase.client(PUBLISHABLE, user_token(hers.coordinator)) as app:
        certifications = app.table("certifications")
        async with refused(INSUFFICIENT_PRIVILEGE):
            await certifications.update({"chapter_id": str(foreign.id)}).eq("id", str(hers.certification)).execute()
        changed = certifications.update({"status": "revoked"}).eq("id", str(foreign.certification))
        assert (await changed.execute()).data == []
        for chapter in (hers, foreign):
            added = {"peer_mentor_id": str(foreign.mentor), "chapter_id": str(chapter.id)}
            async with refused(INSUFFICIENT_PRIVILEGE):
                await certifications.insert(added).execute()
    query = "select id, chapter_id, status from public.certifications where chapter_id = any(%s)"
    found = await (await owner.execute(query, [[hers.id, foreign.id]])).fetchall()
    assert sorted(found) == sorted((each.certification, each.id, "active") for each in (hers, foreign))


async def test_she_appends_to_the_history_of_hers_and_to_no_other(
    supabase: Gateway, hers: Chapter, foreign: Chapter
) -> None:
    renewal = {"event": "renewed", "on_day": "2026-11-25", "expires_on": "2028-11-24"}
    async with supabase.client(PUBLISHABLE, user_token(hers.coordinator)) as app:
        await app.rpc("append_renewal", {"certification_id": str(hers.certification), **renewal}).execute()
        async with refused(INSUFFICIENT_PRIVILEGE):
            await app.rpc("append_renewal", {"certification_id": str(foreign.certification), **renewal}).execute()
        mine = await app.rpc("read_renewals", {"certification_id": str(hers.certification)}).execute()
        other = await app.rpc("read_renewals", {"certification_id": str(foreign.certification)}).execute()
    assert [entry["event"] for entry in mine.data] == ["renewed"]
    assert other.data is None


async def test_what_a_user_says_of_themselves_makes_them_nothing(supabase: Gateway, hers: Chapter) -> None:
    """Of the token only `sub` and `role` count."""
    mine = {"chapter_id": str(hers.id), "role": "coordinator"}
    stranger = user_token(uuid4(), user_metadata=mine, app_metadata=mine, user_role="coordinator")
    async with supabase.client(PUBLISHABLE, stranger) as app:
        assert (await app.table("certifications").select("id").execute()).data == []


@pytest.mark.parametrize(
    "forged",
    [
        token("service_role", secret="another secret, at least 32 bytes long"),
        with_claims(token("anon"), role="service_role"),
        with_claims(user_token(uuid4()), sub="00000000-0000-0000-0000-000000000000"),
        unsigned("service_role"),
        token("service_role", lives_seconds=-60),
    ],
    ids=["foreign secret", "escalated role", "another user", "unsigned", "expired"],
)
async def test_a_token_that_supabase_did_not_sign_or_that_is_over_opens_nothing(supabase: Gateway, forged: str) -> None:
    async with supabase.client(PUBLISHABLE, forged) as app:
        for table in (QUEUE, "certifications"):
            async with refused(BAD_TOKEN):
                await app.table(table).select("*").execute()
