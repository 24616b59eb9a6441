"""Writing single records: create, upsert, update, delete, and the conditions that clients put on them.

Sources: Microsoft's pages "Create a table row", "Update and delete table rows", "Upsert a table row" and "Perform
conditional operations".
"""

from collections.abc import Mapping
from typing import Any

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import Locator, key_text, record_address, split_path
from dynamics_sync.simulator.attributes import attributes, check_required, check_state
from dynamics_sync.simulator.messages import Reply, Request
from dynamics_sync.simulator.queries import entity
from dynamics_sync.simulator.records import Record
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import JsonObject, Table
from dynamics_sync.simulator.values import guid, is_guid


def create(store: Store, request: Request, table: Table) -> Reply:
    """POST to an entity set."""
    record = create_record(store, request, table, request.json())
    request.keys.append(logged_key(table, record))
    address = record_address(request.base, table, record.id)
    if request.prefer.get("return") == "representation":
        return Reply(201, entity(request, table, record), _representation(record), wrote=address)
    return Reply(204, headers={"OData-EntityId": address, "Location": address}, wrote=address)


def create_record(store: Store, request: Request, table: Table, body: JsonObject) -> Record:
    """A new record from a body, which may carry the id that the client wants."""
    given_id = body.pop(table.primary_id, None)
    if given_id is not None and not is_guid(given_id):
        raise errors.wrong_type(table.entity_set, given_id, "Edm.Guid")
    values = check_state(table, attributes(store, table, body), {})
    check_required(table, values)
    check_duplicates(store, request, table, values, None)
    return store.create(table, values, None if given_id is None else guid(given_id))


def patch(store: Store, request: Request, table: Table, where: Locator) -> Reply:
    """PATCH: update or create, as the conditions allow."""
    record = store.find(table, where)
    created = record is None
    if_match = request.headers.get("if-match")
    if record is None and if_match is not None:
        store.must_find(table, where)
    if record is not None and request.headers.get("if-none-match") == "*":
        raise errors.record_exists()
    if record is not None:
        check_version(record, if_match)
    record = upsert(store, request, table, where, request.json())
    shown = where.id if where.id is not None else split_path(request.path)[0].key or ""
    address = record_address(request.base, table, shown)
    if request.prefer.get("return") == "representation":
        status = 201 if created else 200
        return Reply(status, entity(request, table, record), _representation(record), wrote=address)
    return Reply(204, headers={"OData-EntityId": address}, wrote=address)


def upsert(store: Store, request: Request, table: Table, where: Locator, body: JsonObject) -> Record:
    """Key columns in the body are dropped for a row that is there; for a new one they win over the address.

    Microsoft: "Upsert a table row", on alternate key values in the body.
    """
    body.pop(table.primary_id, None)
    record = store.find(table, where)
    keys = {table.columns_by_name[name].read_name: value for name, value in (where.values or {}).items()}
    if record is not None:
        return update_record(store, request, table, record, {n: v for n, v in body.items() if n not in keys})
    values = check_state(table, keys | attributes(store, table, body), {})
    check_required(table, values)
    check_duplicates(store, request, table, values, None)
    return store.create(table, values, where.id)


def update_record(store: Store, request: Request, table: Table, record: Record, body: Mapping[str, Any]) -> Record:
    """Change what the body names."""
    values = check_state(table, attributes(store, table, body), record.attributes)
    check_required(table, record.attributes | values)
    check_duplicates(store, request, table, record.attributes | values, record)
    return store.update(table, record, values)


def delete(store: Store, request: Request, table: Table, where: Locator) -> Reply:
    """DELETE of one record."""
    record = store.must_find(table, where)
    check_version(record, request.headers.get("if-match"))
    store.delete(table, record)
    return Reply(204)


def column_value(store: Store, request: Request, table: Table, where: Locator, name: str) -> Reply:
    """One column of a record: GET, PUT and DELETE (Microsoft: "Update a single property value")."""
    record = store.must_find(table, where)
    column = table.columns_by_name.get(name) or table.columns_by_read_name.get(name)
    if column is None:
        raise errors.no_such_segment(name)
    match request.method:
        case "GET":
            value = record.attributes.get(column.read_name)
            return Reply(204) if value is None else Reply(200, {"value": value})
        case "PUT":
            update_record(store, request, table, record, {name: request.json().get("value")})
        case "DELETE" if column.read_name != column.name:
            store.update(table, record, {column.read_name: None})
        case "DELETE":
            update_record(store, request, table, record, {name: None})
        case _:
            raise errors.not_allowed(request.method)
    return Reply(204)


def reference(store: Store, request: Request, table: Table, where: Locator, navigation: str) -> Reply:
    """`…/<navigation property>/$ref`: PUT sets a lookup, DELETE clears it (Microsoft: "Associate table rows")."""
    record = store.must_find(table, where)
    if navigation not in table.columns_by_navigation:
        raise errors.no_such_segment(navigation)
    match request.method:
        case "PUT":
            value = request.json().get("@odata.id")
        case "DELETE":
            value = None
        case _:
            raise errors.not_allowed(request.method)
    update_record(store, request, table, record, {f"{navigation}@odata.bind": value})
    return Reply(204)


def check_duplicates(
    store: Store, request: Request, table: Table, values: Mapping[str, Any], record: Record | None
) -> None:
    """Duplicate detection runs only when a client asks for it (Microsoft: "Use optional parameters")."""
    if not table.duplicates_by or request.headers.get("mscrm.suppressduplicatedetection", "").lower() != "false":
        return
    wanted = [values.get(name) for name in table.duplicates_by]
    for other in store.all(table):
        if other is not record and [other.attributes.get(name) for name in table.duplicates_by] == wanted:
            raise errors.duplicate_found()


def check_version(record: Record, if_match: str | None) -> None:
    """Optimistic concurrency."""
    if if_match not in (None, "*", record.etag):
        raise errors.version_mismatch()


def logged_key(table: Table, record: Record) -> str:
    """What the request log shows of a new record: its first alternate key that has values, or its id."""
    for key in table.alternate_keys:
        values = {name: record.attributes.get(table.columns_by_name[name].read_name) for name in key.columns}
        if None not in values.values():
            return key_text(Locator(None, key.name, values))
    return record.id


def _representation(record: Record) -> dict[str, str]:
    return {"ETag": record.etag, "Preference-Applied": "return=representation"}
