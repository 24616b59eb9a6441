"""Tables of one's own, and the file that maps them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import LiteralString

import psycopg

from dynamics_sync import app
from support.engine import Stage, engine_settings, stage

HEAD = """
[[tables]]
source = "public.{table}"
key = "{key}"
entity_set = "new_{table}"
logical_name = "new_{table}row"
alternate_key = "new_key"
{rest}
[tables.columns]
{columns}
"""


class Own:
    """A database with tables of one's own, and the file that maps them."""

    def __init__(self, database: str, mapping: Path) -> None:
        self.database = database
        self.mapping = mapping
        self.owner = psycopg.connect(database, autocommit=True)

    def table(self, name: str, definition: LiteralString, columns: str, *, key: str = "id", rest: str = "") -> None:
        """Make a table, capture it and map it."""
        self.owner.execute(f"create table public.{name} ({definition})".encode())
        self.owner.execute("select dynamics_sync.watch(%s::regclass, %s)", [f"public.{name}", key])
        with self.mapping.open("a") as file:
            file.write(HEAD.format(table=name, key=key, columns=columns, rest=rest))

    @asynccontextmanager
    async def synchronised(self) -> AsyncIterator[Stage]:
        async with stage(self.database, mapping=self.mapping) as on:
            yield on

    @asynccontextmanager
    async def engine_for(self, on: Stage) -> AsyncIterator[app.Engine]:
        """Another engine between the same database and simulator, with the mapping as it is now."""
        address = on.engine.database_url
        settings = engine_settings(address, on.simulator.url, mapping=self.mapping)
        async with app.open_engine(settings, address) as engine:
            yield engine
