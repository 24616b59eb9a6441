"""The lines in docs/security.md that log who reads: as they stand there, on a server with pgaudit."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from dynamics_sync.postgres.embedded import EmbeddedPostgres
from dynamics_sync.postgres.migrate import migrate
from support.people import add_organisation, as_role
from support.postgres import EVERYTHING, binaries, in_memory
from support.supabase import AUTHENTICATOR, PASSWORD

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"
LIBRARY = Path("/usr/lib/postgresql/15/lib/pgaudit.so")


def documented() -> str:
    """The SQL that the document gives."""
    _, told = SECURITY.read_text().split("with pgaudit, without values:\n\n")
    return dedent(told.split("\n\n")[0])


@pytest.fixture
def audited() -> Iterator[tuple[str, Path]]:
    """The address of a database on a server that has pgaudit, and the server's log."""
    if not LIBRARY.exists():
        pytest.skip("pgaudit is not installed: apt-get install postgresql-15-pgaudit")
    with TemporaryDirectory(prefix="dynamics-sync-test-", dir=in_memory()) as directory:
        with EmbeddedPostgres(Path(directory), binaries("pg15"), durable=False) as first:
            with psycopg.connect(first.url, autocommit=True) as connection:
                connection.execute("alter system set shared_preload_libraries = 'pgaudit'")
        with EmbeddedPostgres(Path(directory), binaries("pg15"), durable=False) as second:
            yield second.url, Path(directory, "postgres.log")


async def test_a_select_with_a_secret_key_leaves_a_line_with_the_tables_name_and_no_value(
    audited: tuple[str, Path],
) -> None:
    url, log = audited
    await migrate(url, EVERYTHING)
    with psycopg.connect(url, autocommit=True) as owner:
        chapter, _ = add_organisation(owner).chapters
        owner.execute(AUTHENTICATOR)
        owner.execute(documented())
    before = len(log.read_text())
    query = "select status from public.certifications where id = %s"
    with as_role(make_conninfo(url, user="authenticator", password=PASSWORD), "service_role") as service:
        assert service.execute(query, [chapter.certification]).rowcount == 1
    told = log.read_text()[before:]
    (line,) = [line for line in told.splitlines() if "public.certifications" in line]
    assert "AUDIT: OBJECT" in line
    assert str(chapter.certification) not in told
