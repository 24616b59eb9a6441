"""A request's body as stored attributes."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import below_root, check_key_characters, locator, split_path
from dynamics_sync.simulator.messages import request_target
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import READ_ONLY, Column, ColumnKind, JsonObject, Table
from dynamics_sync.simulator.values import check_value

_BIND = "@odata.bind"
_STATE_OF_STATUS = {1: 0, 2: 1}
"""The state that each status reason of a new table belongs to: 1 Active, 2 Inactive."""


def attributes(store: Store, table: Table, body: Mapping[str, Any]) -> JsonObject:
    """What a body changes.

    Raises:
        DataverseError: a property is unknown, or its value does not fit.
    """
    values: JsonObject = {}
    for name, value in body.items():
        if name.endswith(_BIND):
            column = table.columns_by_navigation.get(name.removesuffix(_BIND))
            if column is None:
                raise errors.undeclared_navigation(table.entity_set, name.removesuffix(_BIND))
            values[column.read_name] = None if value is None else _referred(store, table, column, value)
            continue
        if "@" in name:
            continue
        column = table.columns_by_name.get(name)
        if column is None and name in table.columns_by_read_name:
            raise errors.direct_lookup(name)
        if column is None:
            raise errors.undeclared_property(table.entity_set, name, table.logical_name)
        if column.kind is ColumnKind.LOOKUP:
            raise errors.direct_lookup(name)
        if name in READ_ONLY:
            continue
        values[name] = check_value(table, column, value)
        if name in table.key_columns:
            check_key_characters(name, value)
    return values


def check_required(table: Table, values: Mapping[str, Any]) -> None:
    """DataverseError 400 if a column without which there is no record has no value."""
    for column in table.required_columns:
        if values.get(column.read_name) is None:
            raise errors.required_missing(column.name, table.logical_name)


def check_state(table: Table, values: JsonObject, before: Mapping[str, Any]) -> JsonObject:
    """State and status reason go together: a new state without a status reason takes the state's own first one.

    Tables with status reasons of their own are not checked.
    """
    if "statecode" not in values and "statuscode" not in values:
        return values
    if any(column.name in ("statecode", "statuscode") for column in table.columns):
        return values
    state = values.get("statecode", before.get("statecode", 0))
    default = next((status for status, of in _STATE_OF_STATUS.items() if of == state), None)
    status = values.get("statuscode", default)
    if state is None or _STATE_OF_STATUS.get(status or 0) != state:
        raise errors.state_and_status(state, status, table.logical_name)
    return values | {"statecode": state, "statuscode": status}


def _referred(store: Store, table: Table, column: Column, value: object) -> str:
    """The id behind a reference: an encoded address by id or key, with or without a leading slash, or absolute."""
    if not isinstance(value, str):
        raise errors.wrong_type(table.entity_set, value, "Edm.String")
    target = unquote(request_target(value))
    path = below_root(target)
    segments = split_path(target.strip("/") if path is None else path)
    if len(segments) != 1 or segments[0].key is None:
        raise errors.malformed(f"Invalid entity reference: '{value}'.")
    other = store.table(segments[0].name)
    if column.lookup_target not in (None, other.entity_set):
        raise errors.bad_payload(
            table.entity_set, f"A record of '{other.entity_set}' cannot be bound to the property '{column.name}'."
        )
    return store.must_find(other, locator(other, segments[0].key)).id
