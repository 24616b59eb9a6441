"""Columns as the event pipeline writes them: wrapped objects where the Web API has plain values.

Slashes are escaped only when the whole is written. Source: the samples on "Use webhooks to create external handlers for
server events" and "Synchronize agent presence status across multiple systems".
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from dynamics_sync.simulator.tables import Column, ColumnKind, JsonObject, Table

_CONTRACTS = "http://schemas.microsoft.com/xrm/2011/Contracts"
ENTITY = f"Entity:{_CONTRACTS}"
_LABELS = {"statecode": {0: "Active", 1: "Inactive"}, "statuscode": {1: "Active", 2: "Inactive"}}


def pair(key: str, value: Any) -> JsonObject:
    """An entry of what would be a dictionary."""
    return {"key": key, "value": value}


def reference(logical_name: str | None, record_id: str, name: str | None = None) -> JsonObject:
    """A reference to a record, in a place where its type is known."""
    return {"Id": record_id, "KeyAttributes": [], "LogicalName": logical_name, "Name": name, "RowVersion": None}


def typed_reference(logical_name: str | None, record_id: str) -> JsonObject:
    """A reference in a place where anything may stand."""
    return {"__type": f"EntityReference:{_CONTRACTS}", **reference(logical_name, record_id)}


def entity(table: Table, record_id: str, attributes: list[JsonObject]) -> JsonObject:
    """A record as an image shows it. As a parameter it has its type in front of that."""
    labels = (pair(one["key"], _label(one)) for one in attributes if _label(one) is not None)
    return {
        "Attributes": attributes,
        "EntityState": None,
        "FormattedValues": list(labels),
        "Id": record_id,
        "KeyAttributes": [],
        "LogicalName": table.logical_name,
        "RelatedEntities": [],
        "RowVersion": None,
    }


def attributes_of(
    tables: Mapping[str, Table], table: Table, values: Mapping[str, Any], names: Iterable[str] | None = None
) -> list[JsonObject]:
    """Values, which are named as in answers, as attributes; only those columns, if `names` are given."""
    wanted = None if names is None else set(names)
    columns = ((table.columns_by_read_name[name], value) for name, value in values.items())
    return [
        pair(column.name, _attribute(tables, column, value))
        for column, value in columns
        if wanted is None or column.name in wanted
    ]


def date_text(seconds: float, offset: str = "") -> str:
    """A moment as `/Date(…)/`: milliseconds since the epoch, and perhaps an offset, which is for display only."""
    return f"/Date({round(seconds * 1000)}{offset})/"


def _attribute(tables: Mapping[str, Table], column: Column, value: Any) -> Any:
    if value is None:
        return None
    if column.name in _LABELS:
        return {"__type": f"OptionSetValue:{_CONTRACTS}", "Value": value}
    match column.kind:
        case ColumnKind.CHOICE:
            return {"__type": f"OptionSetValue:{_CONTRACTS}", "Value": value}
        case ColumnKind.MONEY:
            return {"__type": f"Money:{_CONTRACTS}", "Value": value}
        case ColumnKind.LOOKUP:
            target = tables.get(column.lookup_target or "")
            return typed_reference(None if target is None else target.logical_name, value)
        case ColumnKind.DATE | ColumnKind.DATETIME:
            moment = datetime.fromisoformat(value)
            return date_text((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    return value


def _label(attribute: JsonObject) -> str | None:
    labels = _LABELS.get(attribute["key"])
    return None if labels is None or attribute["value"] is None else labels.get(attribute["value"]["Value"])
