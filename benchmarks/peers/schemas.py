"""Prints the SQL that makes a peer's tables: `python -m benchmarks.peers.schemas NAME`."""

import subprocess
import sys
from collections.abc import Callable


def pgqueuer() -> str:
    """With its own autovacuum settings, as its page on tuning recommends."""
    commands = [[sys.executable, "-m", "pgqueuer", "sql", part] for part in ("install", "autovac")]
    return "".join(subprocess.run(each, check=True, capture_output=True, text=True).stdout for each in commands)


def procrastinate() -> str:
    from procrastinate.schema import SchemaManager

    return str(SchemaManager.get_schema())


def faststream_outbox() -> str:
    from faststream_outbox import make_outbox_table
    from sqlalchemy import MetaData
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateIndex, CreateTable

    table = make_outbox_table(MetaData(), table_name="outbox")
    parts = [CreateTable(table), *(CreateIndex(index) for index in table.indexes)]
    return ";\n".join(str(part.compile(dialect=postgresql.dialect())) for part in parts)


SCHEMAS: dict[str, Callable[[], str]] = {
    "pgqueuer": pgqueuer,
    "procrastinate": procrastinate,
    "faststream-outbox": faststream_outbox,
}

if __name__ == "__main__":
    print(SCHEMAS[sys.argv[1]]())
