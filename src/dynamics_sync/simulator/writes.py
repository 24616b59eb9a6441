"""Writing single records: create, upsert, update, delete, and the conditions that clients put on them.

Source: Microsoft's pages "Create a table row", "Upsert a table row", "Perform conditional operations".
"""

from collections.abc import Mapping
from typing import Any

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import FORBIDDEN_IN_KEYS, Locator, key_text, locator, split_path
from dynamics_sync.simulator.messages import ROOT, Reply, Request
from dynamics_sync.simulator.queries import entity
from dynamics_sync.simulator.store import Record, Store
from dynamics_sync.simulator.tables import JsonObject, Table, check_value, is_guid, lower_guid

_BIND = "@odata.bind"


def find(store: Store, table: Table, where: Locator) -> Record | None:
    """The record that a locator names, if it is there."""
    if where.id is not None:
        return store.by_id(table, where.id)
    key = next(key for key in table.alternate_keys if key.name == where.key)
    return store.by_key(table, key, where.values or {})


def must_find(store: Store, table: Table, where: Locator) -> Record:
    """The record, or DataverseError 404."""
    record = find(store, table, where)
    if record is None:
        raise (
            errors.no_record_with_key(table.logical_name)
            if where.id is None
            else errors.no_such_record(table.logical_name, where.id)
        )
    return record


def create(store: Store, request: Request, table: Table) -> Reply:
    """POST to an entity set."""
    body = request.json(table.entity_set)
    given_id = body.pop(table.primary_id, None)
    if given_id is not None and not is_guid(given_id):
        raise errors.bad_payload(table.entity_set, f"Cannot convert the literal '{given_id}' to the type 'Edm.Guid'.")
    values = attributes(store, table, body)
    check_required(table, values)
    check_duplicates(store, request, table, values, None)
    record = store.create(table, values, lower_guid(given_id) if given_id else None)
    request.keys.append(_logged_key(table, record))
    if request.prefer.get("return") == "representation":
        return Reply(201, entity(request, table, record), _representation(record))
    return Reply(204, headers={"OData-EntityId": _address(request, table, record.id)})


def patch(store: Store, request: Request, table: Table, where: Locator) -> Reply:
    """PATCH: update or create, as the conditions allow."""
    request.keys.append(key_text(table, where))
    record = find(store, table, where)
    created = record is None
    if_match = request.headers.get("if-match")
    if record is None and if_match is not None:
        must_find(store, table, where)
    if record is not None and request.headers.get("if-none-match") == "*":
        raise errors.record_exists()
    if record is not None:
        check_version(record, if_match)
    record = upsert(store, request, table, where, record, request.json(table.entity_set))
    if request.prefer.get("return") == "representation":
        return Reply(201 if created else 200, entity(request, table, record), _representation(record))
    shown = where.id if where.id is not None else split_path(request.path)[0].key
    return Reply(204, headers={"OData-EntityId": _address(request, table, str(shown))})


def upsert(
    store: Store, request: Request, table: Table, where: Locator, record: Record | None, body: JsonObject
) -> Record:
    """Key columns in the body are dropped for a row that is there; for a new one they win over the address."""
    body = {name: value for name, value in body.items() if name != table.primary_id}
    keys = dict(where.values or {})
    if record is not None:
        values = attributes(store, table, {name: value for name, value in body.items() if name not in keys})
        check_duplicates(store, request, table, record.attributes | values, record)
        return store.update(table, record, values)
    values = keys | attributes(store, table, body)
    check_required(table, values)
    check_duplicates(store, request, table, values, None)
    return store.create(table, values, where.id)


def delete(store: Store, request: Request, table: Table, where: Locator) -> Reply:
    """DELETE of one record."""
    request.keys.append(key_text(table, where))
    record = must_find(store, table, where)
    check_version(record, request.headers.get("if-match"))
    store.delete(table, record)
    return Reply(204)


def attributes(store: Store, table: Table, body: Mapping[str, Any]) -> JsonObject:
    """A body as stored attributes.

    Raises:
        DataverseError: a property is unknown or its value does not fit.
    """
    values: JsonObject = {}
    for name, value in body.items():
        if name.endswith(_BIND):
            column = table.navigation(name.removesuffix(_BIND))
            if column is None:
                raise errors.undeclared_property(table.entity_set, name.removesuffix(_BIND), table.logical_name)
            values[column.read_name] = None if value is None else _referred(store, table, value)
            continue
        if name.startswith("@") or "@odata." in name:
            continue
        column = table.column(name)
        if column is None or column.navigation_property:
            raise errors.undeclared_property(table.entity_set, name, table.logical_name)
        values[name] = check_value(table, column, value)
        _check_key_characters(table, name, value)
    return values


def check_required(table: Table, values: Mapping[str, Any]) -> None:
    for column in table.columns:
        if column.required and values.get(column.read_name) is None:
            raise errors.required_missing(column.name, table.logical_name)


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
    if if_match not in (None, "*", record.etag):
        raise errors.version_mismatch()


def _check_key_characters(table: Table, name: str, value: object) -> None:
    in_key = any(name in key.columns for key in table.alternate_keys)
    if in_key and isinstance(value, str) and FORBIDDEN_IN_KEYS & set(value):
        raise errors.invalid_key(table.logical_name)


def _referred(store: Store, table: Table, value: object) -> str:
    """The id behind a reference, written as an address: with or without a leading slash, absolute, by id or key."""
    if not isinstance(value, str):
        raise errors.bad_payload(table.entity_set, "an entity reference must be an address.")
    path = value.partition(ROOT)[2] if ROOT in value else value
    segments = split_path(path)
    if len(segments) != 1 or segments[0].key is None:
        raise errors.malformed(f"The entity reference '{value}' is not valid.")
    other = store.table(segments[0].name)
    return must_find(store, other, locator(other, segments[0].key)).id


def _logged_key(table: Table, record: Record) -> str:
    for key in table.alternate_keys:
        if len(key.columns) == 1 and record.attributes.get(key.columns[0]) is not None:
            return str(record.attributes[key.columns[0]])
    return record.id


def _address(request: Request, table: Table, key: str) -> str:
    return f"{request.base}{ROOT}/{table.entity_set}({key})"


def _representation(record: Record) -> dict[str, str]:
    return {"ETag": record.etag, "Preference-Applied": "return=representation"}
