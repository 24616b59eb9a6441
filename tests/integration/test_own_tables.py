"""Somebody's own tables, some of them named like those that ship: only what they need is put into their database."""

import asyncio
import json
from pathlib import Path

import psycopg
import pytest

from dynamics_sync.core.errors import DatabaseError
from dynamics_sync.postgres.connections import connect
from dynamics_sync.postgres.migrate import MACHINERY, check_schema, migrate
from dynamics_sync.stores import CERTIFICATIONS
from support.commands import refused, start, worker_process
from support.engine import stage
from support.postgres import EVERYTHING

OWN_TABLES = """
create table public.organisations (number int primary key, title text);
create table public.certifications (code text primary key, state text)
"""

MAPPING = """
[[tables]]
source = "public.certifications"
key = "code"
entity_set = "new_certs"
logical_name = "new_cert"
alternate_key = "new_code"
[tables.columns]
state = "new_state"
"""

WATCH = "select dynamics_sync.watch('public.certifications', 'code', columns => '{state}')"

OURS = "select count(*) from pg_class where relname = 'peer_mentors'"


@pytest.mark.every_postgres
async def test_the_machinery_comes_alone_and_the_certifications_later(empty_database: str) -> None:
    async with await connect(empty_database) as connection:
        assert len(await migrate(empty_database, [MACHINERY])) == len(MACHINERY.migrations())
        await check_schema(connection, [MACHINERY])
        ours = [f"{each.version}_{each.name}" for each in CERTIFICATIONS.migrations()]
        with pytest.raises(DatabaseError, match=rf"lacks {len(ours)} migration\(s\)"):
            await check_schema(connection, EVERYTHING)
        assert await (await connection.execute(OURS)).fetchone() == (0,)
        assert await migrate(empty_database, EVERYTHING) == ours
        await check_schema(connection, EVERYTHING)
        assert await migrate(empty_database, [MACHINERY]) == []
        await check_schema(connection, [MACHINERY])


@pytest.mark.every_postgres
async def test_tables_that_are_there_are_not_touched_and_named(empty_database: str) -> None:
    async with await connect(empty_database) as connection:
        await connection.execute(OWN_TABLES)
        with pytest.raises(DatabaseError, match=r"Table public.organisations exists already.*DYNAMICS_SYNC_MAPPING"):
            await migrate(empty_database, EVERYTHING)
        schemas = await connection.execute("select to_regnamespace('dynamics_sync') is null")
        assert await schemas.fetchone() == (True,)


async def test_a_newer_domain_is_the_concern_of_those_who_use_it(empty_database: str) -> None:
    async with await connect(empty_database) as connection:
        await migrate(empty_database, EVERYTHING)
        await connection.execute(
            "insert into supabase_migrations.schema_migrations (version, name) values ('29990101000000', %s)",
            [CERTIFICATIONS.name_prefix + "more"],
        )
        await check_schema(connection, [MACHINERY])
        with pytest.raises(DatabaseError, match="newer dynamics-sync"):
            await check_schema(connection, EVERYTHING)


async def test_own_tables_from_the_first_command_to_dynamics(empty_database: str, tmp_path: Path) -> None:
    """As the README says it."""
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(MAPPING)
    settings = {"database_url": empty_database, "mapping": str(mapping)}
    with psycopg.connect(empty_database, autocommit=True) as owner:
        owner.execute(OWN_TABLES)
        owner.execute("insert into public.certifications values ('old', 'active')")
        refused(await start("migrate", cwd=tmp_path, database_url=empty_database), "public.organisations")
        done = await start("migrate", "--json", cwd=tmp_path, **settings)
        assert len(json.loads(done.stdout)["applied"]) == len(MACHINERY.migrations())
        refused(await start("run", cwd=tmp_path, **settings), WATCH)
        owner.execute(WATCH)
        owner.execute("select dynamics_sync.resync('public.certifications')")
        async with (
            stage(empty_database, working=False, mapping=mapping) as on,
            worker_process(on, empty_database, tmp_path, mapping=str(mapping)) as worker,
        ):
            owner.execute("insert into public.certifications values ('new', 'expired')")
            async with asyncio.timeout(15):
                await on.settled()
            held = await on.records("new_certs")
            assert {key: record["new_state"] for key, record in held.items()} == {"old": "active", "new": "expired"}
            assert (await worker.health("ready"))[0] == 200
