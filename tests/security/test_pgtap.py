"""The tests that users may put into `supabase/tests` pass, run as Supabase's tool runs them; and they can fail."""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from dynamics_sync.postgres.migrate import migrate
from support.postgres import DEBIAN_15, EVERYTHING
from support.supabase import ROLES, SCHEMAS, bare_server, database_of, roles

PGTAP = Path("/usr/share/postgresql/15/extension/pgtap.control")
TESTS = Path(str(files("dynamics_sync.certifications").joinpath("supabase_tests")))
MEMBERSHIP = "grant anon, authenticated, service_role to postgres"


@pytest.fixture(scope="module")
def project() -> Iterator[str]:
    """The address of Supabase's `postgres`, in a migrated database that has pgTAP."""
    if not PGTAP.exists() or shutil.which("pg_prove") is None:
        pytest.skip(
            "pgTAP is not installed: apt-get install postgresql-15-pgtap libtap-parser-sourcehandler-pgtap-perl"
        )
    inside = f"{SCHEMAS}; create extension pgtap schema extensions"
    with (
        bare_server("pg15") as superuser,
        roles(superuser, f"{ROLES}; {MEMBERSHIP}"),
        database_of("postgres", superuser, inside) as address,
    ):
        asyncio.run(migrate(address, EVERYTHING))
        yield address


def pg_prove(address: str, test: Path) -> subprocess.CompletedProcess[str]:
    parts = conninfo_to_dict(address)
    where = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGPASSWORD": "password", "PGDATABASE": "dbname"}
    environment = {variable: str(parts[part]) for variable, part in where.items()}
    words = ["pg_prove", "--verbose", "--psql-bin", str(DEBIAN_15 / "psql"), str(test)]
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("test", sorted(TESTS.glob("*.test.sql")), ids=lambda test: test.name)
def test_they_pass(project: str, test: Path) -> None:
    done = pg_prove(project, test)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Result: PASS" in done.stdout


def test_a_hole_makes_them_fail(project: str) -> None:
    policy = "managers_and_mentors_see_certification"
    with psycopg.connect(project, autocommit=True) as owner:
        (condition,) = owner.execute("select qual from pg_policies where policyname = %s", [policy]).fetchone() or ("",)
        owner.execute(f"alter policy {policy} on public.certifications using (true)".encode())
        done = pg_prove(project, TESTS / "dynamics_certifications_access.test.sql")
        owner.execute(f"alter policy {policy} on public.certifications using ({condition})".encode())
    assert done.returncode != 0
    assert re.search(r"^not ok \d+ - a mentor sees their own$", done.stdout, re.MULTILINE)
