"""CreateMultiple, UpdateMultiple, UpsertMultiple: all or nothing (Microsoft: "Use bulk operation messages")."""

from collections.abc import Callable

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import Locator, key_text, locator, split_path
from dynamics_sync.simulator.messages import ROOT, Reply, Request
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import JsonObject, Table, is_guid, lower_guid
from dynamics_sync.simulator.writes import attributes, check_required, find, must_find, upsert

PREFIX = "Microsoft.Dynamics.CRM."


def run_bulk(store: Store, request: Request, table: Table, message: str) -> Reply:
    """One of the three messages, in one transaction."""
    run = _MESSAGES.get(message.removeprefix(PREFIX))
    if run is None or not table.bulk:
        raise errors.no_such_segment(message)
    targets = request.json(table.entity_set).get("Targets")
    if not isinstance(targets, list) or not all(isinstance(target, dict) for target in targets):
        raise errors.bad_payload(table.entity_set, "The parameter 'Targets' must be a collection of entities.")
    for target in targets:
        if target.get("@odata.type", "").removeprefix("#") != PREFIX + table.logical_name:
            raise errors.bad_payload(
                table.entity_set, "A type named '@odata.type' must be given for each item of 'Targets'."
            )
    with store.transaction():
        return run(store, request, table, targets)


def _create(store: Store, request: Request, table: Table, targets: list[JsonObject]) -> Reply:
    ids = []
    for target in targets:
        values = attributes(store, table, {name: value for name, value in target.items() if name != table.primary_id})
        check_required(table, values)
        given_id = target.get(table.primary_id)
        ids.append(store.create(table, values, lower_guid(given_id) if is_guid(given_id) else None).id)
    request.keys.extend(ids)
    context = f"{request.base}{ROOT}/$metadata#Microsoft.Dynamics.CRM.CreateMultipleResponse"
    return Reply(200, {"@odata.context": context, "Ids": ids})


def _update(store: Store, request: Request, table: Table, targets: list[JsonObject]) -> Reply:
    """A record that is named twice keeps the first: the rest is ignored without a word."""
    done: set[str] = set()
    for target in targets:
        record = must_find(store, table, _where(table, target))
        if record.id not in done:
            done.add(record.id)
            values = attributes(store, table, {name: v for name, v in target.items() if name != table.primary_id})
            store.update(table, record, values)
            request.keys.append(key_text(table, _where(table, target)))
    return Reply(204)


def _upsert(store: Store, request: Request, table: Table, targets: list[JsonObject]) -> Reply:
    seen: set[str] = set()
    for target in targets:
        where = _where(table, target)
        if (key := key_text(table, where)) in seen:
            raise errors.DataverseError(
                400, "0x80040237", "Duplicate targets are not supported in one UpsertMultiple request."
            )
        seen.add(key)
        if (record := find(store, table, where)) is None and set(where.values or {}) & set(target):
            raise errors.DataverseError(400, "0x80040216", "An unexpected error occurred.")
        upsert(store, request, table, where, record, target)
        request.keys.append(key)
    return Reply(204)


def _where(table: Table, target: JsonObject) -> Locator:
    given_id = target.get(table.primary_id)
    if is_guid(given_id):
        return Locator(lower_guid(str(given_id)))
    address = target.get("@odata.id")
    if isinstance(address, str):
        segment = split_path(address.partition(ROOT)[2] if ROOT in address else address)[0]
        if segment.key is not None:
            return locator(table, segment.key)
    named = {name for name in target if table.column(name) is not None}
    for key in table.alternate_keys:
        if set(key.columns) <= named:
            return Locator(None, key.name, {name: target[name] for name in key.columns})
    raise errors.bad_payload(table.entity_set, "each item of 'Targets' must name its record.")


_MESSAGES: dict[str, Callable[[Store, Request, Table, list[JsonObject]], Reply]] = {
    "CreateMultiple": _create,
    "UpdateMultiple": _update,
    "UpsertMultiple": _upsert,
}
