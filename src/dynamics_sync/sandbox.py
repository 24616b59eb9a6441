"""The simulator in the place of Dynamics: the tables of a mapping, and the settings that lead to it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from pydantic import SecretStr
from rich.console import Console

from dynamics_sync.app import read_mapping
from dynamics_sync.core.mapping import Column as MappedColumn
from dynamics_sync.core.mapping import ColumnKind as MappedKind
from dynamics_sync.core.mapping import Mapping, TableMapping
from dynamics_sync.settings import Settings
from dynamics_sync.simulator import AlternateKey, Column, ColumnKind, Simulator, SimulatorConfig, Table

STATES = {"statecode": (0, 1), "statuscode": (1, 2)}
"""Active and inactive, in the columns that every Dataverse table has."""


@asynccontextmanager
async def dynamics_or_simulator(settings: Settings) -> AsyncIterator[Settings]:
    """The settings, completed with a simulator where no Dynamics is named.

    Who has credentials means Dynamics and forgot the address: what a simulator took would be lost. They are told of it
    by whatever needs the address.
    """
    if any((settings.dynamics_url, settings.tenant_id, settings.client_id, settings.client_secret)):
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
    """The Dataverse tables that a mapping writes to, and those that its lookups refer to, for the simulator.

    A record that is referred to must be there, as in Dynamics: put one in by a POST of your own.
    """
    written = tuple(_simulated(table) for table in mapping.tables)
    known = {table.entity_set for table in written}
    keys: dict[str, set[str]] = {}
    for column in (column for table in mapping.tables for column in table.columns.values()):
        if column.lookup is not None and column.lookup.entity_set not in known:
            names = keys.setdefault(column.lookup.entity_set, set())
            if column.lookup.alternate_key is not None:
                names.add(column.lookup.alternate_key)
    return (*written, *(_referred_to(entity_set, sorted(names)) for entity_set, names in keys.items()))


def _referred_to(entity_set: str, alternate_keys: Sequence[str]) -> Table:
    columns = tuple(Column(name, ColumnKind.TEXT, max_length=100) for name in alternate_keys)
    keys = tuple(AlternateKey(f"{name}_key", (name,)) for name in alternate_keys)
    logical_name = entity_set.removesuffix("s")
    return Table(logical_name, entity_set, f"{logical_name}id", columns, keys)


def _simulated(table: TableMapping) -> Table:
    columns = [_simulated_column(column) for column in table.columns.values()]
    states = {name: (value, table.inactive[name]) for name, value in table.states.items()}
    columns += [Column(name, ColumnKind.ANY) for name, values in states.items() if values != STATES.get(name)]
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
    return Column(column.to, kinds.get(column.kind, ColumnKind.ANY))


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
