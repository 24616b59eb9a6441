"""`EntityDefinitions` and `sdkmessagefilters`, as far as clients ask for them."""

from typing import Any
from uuid import NAMESPACE_URL, uuid5

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import Segment
from dynamics_sync.simulator.bulk import PREFIX
from dynamics_sync.simulator.messages import ROOT, Reply, Request
from dynamics_sync.simulator.queries import read_rows
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import ColumnKind, JsonObject, Table

_TYPES = {
    ColumnKind.TEXT: "String",
    ColumnKind.INTEGER: "Integer",
    ColumnKind.DECIMAL: "Decimal",
    ColumnKind.BOOLEAN: "Boolean",
    ColumnKind.DATE: "DateTime",
    ColumnKind.DATETIME: "DateTime",
    ColumnKind.CHOICE: "Picklist",
    ColumnKind.GUID: "Uniqueidentifier",
    ColumnKind.LOOKUP: "Lookup",
}


def entity_definitions(store: Store, request: Request, segments: list[Segment]) -> Reply:
    """All tables, one of them, or a part of one."""
    definitions = [_definition(table) for table in store.tables.values()]
    if segments[0].key is None:
        known = set(definitions[0]) if definitions else set()
        select = [name for name in request.query.get("$select", "").split(",") if name]
        options = {name: value for name, value in request.query.items() if name != "$expand"}
        wanted = [*select, "Keys"] if "Keys" in request.query.get("$expand", "") else select
        plain = Request(request.method, request.path, options, request.headers, b"", request.base)
        return read_rows(plain, "EntityDefinitions", definitions, known, wanted)
    definition = _one(definitions, segments[0].key)
    if len(segments) == 1:
        return Reply(200, definition)
    part: list[JsonObject] | None = definition.get(segments[1].name)
    if segments[1].name not in ("Keys", "Attributes") or part is None:
        raise errors.no_such_segment(segments[1].name)
    if len(segments) > 2:
        wanted_type = f"#{PREFIX}{segments[2].name.removeprefix(PREFIX)}"
        part = [attribute for attribute in part if attribute["@odata.type"] == wanted_type]
    return Reply(200, {"@odata.context": f"{request.base}{ROOT}/$metadata#EntityDefinitions", "value": part})


def message_filters(store: Store, request: Request) -> Reply:
    """Which bulk messages a table has. UpsertMultiple has no row of its own."""
    rows: list[JsonObject] = []
    for table in store.tables.values():
        for message in ("CreateMultiple", "UpdateMultiple") if table.bulk else ():
            rows.append(
                {
                    "sdkmessagefilterid": _stable_id(f"{table.logical_name}/{message}"),
                    "sdkmessageid/name": message,
                    "primaryobjecttypecode": table.logical_name,
                }
            )
    known = {"sdkmessagefilterid", "sdkmessageid/name", "primaryobjecttypecode"}
    return read_rows(request, "sdkmessagefilters", rows, known, ["sdkmessagefilterid"])


def _one(definitions: list[JsonObject], key: str) -> JsonObject:
    name = key.removeprefix("LogicalName=").strip("'")
    for definition in definitions:
        if definition["LogicalName"] == name:
            return definition
    raise errors.DataverseError(404, "0x80060888", f"Could not find an entity with the name '{name}'.")


def _definition(table: Table) -> JsonObject:
    return {
        "LogicalName": table.logical_name,
        "SchemaName": table.logical_name,
        "EntitySetName": table.entity_set,
        "PrimaryIdAttribute": table.primary_id,
        "MetadataId": _stable_id(table.logical_name),
        "IsOptimisticConcurrencyEnabled": True,
        "Keys": [
            {"SchemaName": key.name, "KeyAttributes": list(key.columns), "EntityKeyIndexStatus": "Active"}
            for key in table.alternate_keys
        ],
        "Attributes": [_attribute(column.name, column.kind, column.options) for column in table.columns],
    }


def _attribute(name: str, kind: ColumnKind, options: tuple[int, ...]) -> JsonObject:
    attribute: dict[str, Any] = {
        "@odata.type": f"#{PREFIX}{_TYPES[kind]}AttributeMetadata",
        "LogicalName": name,
        "AttributeType": _TYPES[kind],
        "MetadataId": _stable_id(name),
    }
    if kind is ColumnKind.CHOICE:
        attribute["OptionSet"] = {
            "Options": [
                {"Value": number, "Label": {"LocalizedLabels": [], "UserLocalizedLabel": None}} for number in options
            ]
        }
    return attribute


def _stable_id(name: str) -> str:
    return str(uuid5(NAMESPACE_URL, name))
