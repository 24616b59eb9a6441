"""`EntityDefinitions` and `sdkmessagefilters`, as far as clients ask (Microsoft: "Query table definitions")."""

from typing import Any
from uuid import NAMESPACE_URL, uuid5

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import ROOT, Segment
from dynamics_sync.simulator.bulk import PREFIX
from dynamics_sync.simulator.messages import Reply, Request
from dynamics_sync.simulator.queries import read_rows, select
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import Column, ColumnKind, JsonObject, SystemTable, Table

_TYPES = {
    ColumnKind.TEXT: "String",
    ColumnKind.INTEGER: "Integer",
    ColumnKind.DECIMAL: "Decimal",
    ColumnKind.MONEY: "Money",
    ColumnKind.BOOLEAN: "Boolean",
    ColumnKind.DATE: "DateTime",
    ColumnKind.DATETIME: "DateTime",
    ColumnKind.CHOICE: "Picklist",
    ColumnKind.GUID: "Uniqueidentifier",
    ColumnKind.LOOKUP: "Lookup",
    ColumnKind.ANY: "String",
}
_PARTS = ("Keys", "Attributes", "ManyToOneRelationships")
_EXPANDABLE = (*_PARTS, "OptionSet")


def service_document(store: Store, request: Request) -> Reply:
    """What the root itself answers: the entity sets."""
    sets = [{"name": name, "kind": "EntitySet", "url": name} for name in store.tables]
    return Reply(200, {"@odata.context": f"{request.base}{ROOT}/$metadata", "value": sets})


def entity_definitions(store: Store, request: Request, segments: list[Segment]) -> Reply:
    """All tables, one of them, or a part of one."""
    definitions = [_definition(table) for table in store.tables.values()]
    if segments[0].key is None:
        if len(segments) > 1:
            raise errors.no_such_segment(segments[1].name)
        return _list(request, "EntityDefinitions", definitions)
    definition = _one(definitions, segments[0].key)
    if len(segments) == 1:
        return Reply(200, _whole(request, "EntityDefinitions", definition))
    part = segments[1].name
    if part not in _PARTS:
        raise errors.no_such_segment(part)
    items: list[JsonObject] = definition[part]
    for cast in segments[2:]:
        items = [item for item in items if item.get("@odata.type") == f"#{cast.name}"]
    where = f"EntityDefinitions({definition['LogicalName']})/{part}"
    if segments[1].key is not None:
        return Reply(200, _whole(request, where, _one(items, segments[1].key)))
    return _list(request, where, items)


def message_filters(store: Store, request: Request) -> Reply:
    """Which bulk messages a table has (Microsoft: "Use bulk operation messages", on availability).

    Clients ask here for any of the three by name, so UpsertMultiple is answered too; Microsoft's page says that it is
    there where CreateMultiple and UpdateMultiple are.
    """
    rows: list[JsonObject] = [
        {
            "sdkmessagefilterid": _stable_id(f"{table.logical_name}/{message}"),
            "sdkmessageid/name": message,
            "primaryobjecttypecode": table.logical_name,
        }
        for table in store.tables.values()
        if table.bulk
        for message in ("CreateMultiple", "UpdateMultiple", "UpsertMultiple")
    ]
    known = ("sdkmessagefilterid", "sdkmessageid/name", "primaryobjecttypecode")
    return read_rows(request, "sdkmessagefilters", rows, known, ["sdkmessagefilterid"])


def system_rows(table: SystemTable, request: Request, segments: list[Segment]) -> Reply:
    """All rows of a table of the environment's own, or one by its id."""
    if len(segments) > 1:
        raise errors.no_such_segment(segments[1].name)
    rows, selected, key = table.rows(), select(request, table.columns, table.entity_set), segments[0].key
    always = [table.primary_id] if selected else []
    if key is None:
        return read_rows(request, table.entity_set, rows, table.columns, [*selected, *always])
    for row in rows:
        if row[table.primary_id] == key.lower():
            return Reply(200, {name: value for name, value in row.items() if not selected or name in selected})
    raise errors.no_such_record(table.entity_set, key)


def _list(request: Request, where: str, items: list[JsonObject]) -> Reply:
    names = {name for item in items for name in item} | {"LogicalName", "SchemaName"}
    selected = _selection(request)
    plain = {name: value for name, value in request.query.items() if name not in ("$expand", "$select")}
    return read_rows(
        Request(request.method, request.path, plain, request.headers, b"", request.base), where, items, names, selected
    )


def _whole(request: Request, where: str, item: JsonObject) -> JsonObject:
    selected = _selection(request)
    shown = {name: value for name, value in item.items() if not selected or name in selected or name[0] == "@"}
    return {"@odata.context": f"{request.base}{ROOT}/$metadata#{where}/$entity", **shown}


def _selection(request: Request) -> list[str]:
    """What is selected, with what is expanded; metadata always comes with its id."""
    names = [name.strip() for name in request.query.get("$select", "").split(",") if name.strip()]
    expanded = [name for name in _EXPANDABLE if name in request.query.get("$expand", "")]
    return [*names, "MetadataId", *expanded] if names else []


def _one(items: list[JsonObject], key: str) -> JsonObject:
    name = key.removeprefix("LogicalName=").strip("'").lower()
    for item in items:
        if name in (item.get("LogicalName"), item["MetadataId"]):
            return item
    raise errors.DataverseError(404, "0x80060888", f"Could not find an entity with specified key '{key}'.")


def _definition(table: Table) -> JsonObject:
    return {
        "MetadataId": _stable_id(table.logical_name),
        "LogicalName": table.logical_name,
        "SchemaName": table.logical_name,
        "EntitySetName": table.entity_set,
        "LogicalCollectionName": table.entity_set,
        "PrimaryIdAttribute": table.primary_id,
        "IsOptimisticConcurrencyEnabled": True,
        "ChangeTrackingEnabled": table.change_tracking,
        "Keys": [
            {
                "MetadataId": _stable_id(f"{table.logical_name}/key/{key.name}"),
                "LogicalName": key.name.lower(),
                "SchemaName": key.name,
                "KeyAttributes": list(key.columns),
                "EntityKeyIndexStatus": "Active",
                "EntityLogicalName": table.logical_name,
            }
            for key in table.alternate_keys
        ],
        "Attributes": [_attribute(table, column) for column in table.columns_by_name.values()],
        "ManyToOneRelationships": [
            {
                "MetadataId": _stable_id(f"{table.logical_name}/relationship/{navigation}"),
                "SchemaName": f"{table.logical_name}_{navigation}",
                "ReferencingEntity": table.logical_name,
                "ReferencingAttribute": column.name,
                "ReferencingEntityNavigationPropertyName": navigation,
            }
            for navigation, column in table.columns_by_navigation.items()
        ],
    }


def _attribute(table: Table, column: Column) -> JsonObject:
    kind = {"statecode": "State", "statuscode": "Status"}.get(column.name, _TYPES[column.kind])
    attribute: dict[str, Any] = {
        "@odata.type": f"#{PREFIX}{kind}AttributeMetadata",
        "MetadataId": _stable_id(f"{table.logical_name}/{column.name}"),
        "LogicalName": column.name,
        "SchemaName": column.name,
        "AttributeType": kind,
        "EntityLogicalName": table.logical_name,
    }
    if column.max_length is not None:
        attribute["MaxLength"] = column.max_length
    if column.kind is ColumnKind.CHOICE:
        attribute["OptionSet"] = {"Options": [_option(number) for number in column.options]}
    return attribute


def _option(number: int) -> JsonObject:
    return {"Value": number, "Label": {"LocalizedLabels": [], "UserLocalizedLabel": None}}


def _stable_id(name: str) -> str:
    return str(uuid5(NAMESPACE_URL, name))
