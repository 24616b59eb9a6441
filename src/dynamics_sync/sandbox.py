"""The simulator in the place of Dynamics: the tables of a mapping, and the settings that lead to it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr
from rich.console import Console

from dynamics_sync.app import read_mapping
from dynamics_sync.core.mapping import Column as MappedColumn
from dynamics_sync.core.mapping import ColumnKind as MappedKind
from dynamics_sync.core.mapping import Mapping, TableMapping
from dynamics_sync.settings import Settings
from dynamics_sync.simulator import AlternateKey, Column, ColumnKind, Simulator, SimulatorConfig, Table


@asynccontextmanager
async def dynamics_or_simulator(settings: Settings) -> AsyncIterator[Settings]:
    """The settings, completed with a simulator where no Dynamics is named."""
    if settings.dynamics_url is not None:
        yield settings
        return
    tables = simulator_tables(read_mapping(settings.mapping))
    async with Simulator(SimulatorConfig(tables)) as simulator:
        Console(stderr=True).print(
            f"[bold yellow]No DYNAMICS_SYNC_DYNAMICS_URL is set: changes go to a SIMULATOR at {simulator.url}, "
            "not to Dynamics 365.[/]"
        )
        yield with_simulator(settings, simulator.url)


def simulator_tables(mapping: Mapping) -> tuple[Table, ...]:
    """The Dataverse tables that a mapping writes to, for the simulator."""
    return tuple(_simulated(table) for table in mapping.tables)


def _simulated(table: TableMapping) -> Table:
    columns = [_simulated_column(column) for column in table.columns.values()]
    key = Column(table.alternate_key, ColumnKind.TEXT, max_length=100)
    keys = (AlternateKey(f"{table.alternate_key}_key", (table.alternate_key,)),)
    return Table(table.logical_name, table.entity_set, f"{table.logical_name}id", (key, *columns), keys)


def _simulated_column(column: MappedColumn) -> Column:
    if column.choices is not None:
        return Column(column.to, ColumnKind.CHOICE, options=tuple(column.choices.values()))
    if column.lookup is not None:
        name = column.to.lower()
        target = column.lookup.entity_set
        return Column(name, ColumnKind.LOOKUP, navigation_property=column.to, lookup_target=target)
    kinds = {MappedKind.DATE: ColumnKind.DATE, MappedKind.DATETIME: ColumnKind.DATETIME}
    return Column(column.to, kinds.get(column.kind, ColumnKind.TEXT))


def with_simulator(settings: Settings, url: str) -> Settings:
    """The settings for a simulator at that address."""
    return settings.model_copy(
        update={
            "dynamics_url": url,
            "authority_url": url,
            "tenant_id": "demo",
            "client_id": "demo",
            "client_secret": SecretStr("demo"),
        }
    )
