"""Names, addresses, numbers and tokens are planted everywhere; nothing of them comes out (I7, R14, R16)."""

import asyncio
import io
import json

import psycopg
import pytest
import structlog

from dynamics_sync.logs import configure_logging
from support.engine import stage

NAME, EMAIL, PHONE = "Kari Nordmann", "kari.nordmann@example.org", "+47 912 34 567"
CANARIES = (NAME, EMAIL, PHONE, "912 34 567", "eyJ0eXAi", "Bearer", "client_secret")

MAPPED = f"""
[[tables]]
source = "public.people"
key = "id"
entity_set = "hlf_certifications"
logical_name = "hlf_certification"
alternate_key = "hlf_externalid"
[tables.columns]
name = "hlf_name"
grade = {{ to = "hlf_grade", choices = {{ "{NAME}" = 1 }} }}
"""


@pytest.fixture
def log() -> io.StringIO:
    stream = io.StringIO()
    configure_logging(stream)
    yield stream
    structlog.reset_defaults()


async def test_nothing_personal_and_no_secret_comes_out(database: str, log: io.StringIO, tmp_path) -> None:  # type: ignore[no-untyped-def]
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(MAPPED)
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(
            "create table public.people (id uuid primary key default gen_random_uuid(), name text, grade text)"
        )
        owner.execute("select dynamics_sync.watch('public.people')")
    async with stage(database, mapping=mapping, cool_down_seconds=0.3) as on:
        insert = "insert into public.people (name, grade) values (%s, %s)"
        await on.user.execute(insert, [f"{NAME} {EMAIL} {PHONE}", NAME])
        await on.settled()
        await on.user.execute(insert, [NAME, EMAIL])  # no such choice: unsendable
        await on.settled()
        await on.fault(kind="status", status=400, count=1, message=f"Value '{NAME} {EMAIL}' is wrong", code=EMAIL)
        await on.user.execute(insert, [PHONE, NAME])
        await on.settled()
        await on.fault(kind="status", status=401, count=2, message=NAME)
        await on.user.execute(insert, [EMAIL, NAME])
        await on.settled()
        await on.fault(kind="status", status=503, count=3, message=NAME)
        await on.user.execute(insert, [EMAIL, NAME])
        await on.settled()
        await asyncio.sleep(0.4)
        queue = on.engine.stores.queue
        await queue.replay([entry.id for entry in await queue.entries()], "tester")
        await on.settled()
        tables = (
            "public.dynamics_sync_retry_queue",
            "dynamics_sync.attempts",
            "dynamics_sync.outbox",
            "dynamics_sync.audit",
        )
        stored = [str(await on.rows(f"select to_jsonb(t) from {table} t")) for table in tables]
    written = log.getvalue() + "".join(stored)
    events = {json.loads(line)["event"] for line in log.getvalue().splitlines()}
    assert {"sync.attempt_failed", "sync.queued", "circuit.opened"} <= events
    for canary in CANARIES:
        assert canary not in written
