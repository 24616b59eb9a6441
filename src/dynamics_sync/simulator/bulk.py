"""CreateMultiple, UpdateMultiple, UpsertMultiple: all or nothing (Microsoft: "Use bulk operation messages")."""

from collections.abc import Callable, Iterator

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import ROOT, Locator, below_root, key_locator, key_text, locator, split_path
from dynamics_sync.simulator.messages import Reply, Request, request_target
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import JsonObject, Table
from dynamics_sync.simulator.values import guid, is_guid
from dynamics_sync.simulator.writes import create_record, logged_key, update_record, upsert

PREFIX = "Microsoft.Dynamics.CRM."


def run_bulk(store: Store, request: Request, table: Table, message: str) -> Reply:
    """One of the three messages, in one transaction."""
    run = _MESSAGES.get(message.removeprefix(PREFIX))
    if run is None or not message.startswith(PREFIX) or not table.bulk:
        raise errors.no_such_segment(message)
    if request.method != "POST":
        raise errors.not_allowed(request.method)
    targets = _targets(request, table)
    with store.transaction():
        return run(store, request, table, targets)


def bulk_keys(request: Request, table: Table) -> Iterator[str]:
    """The keys that a bulk request names; nothing for what cannot be understood."""
    try:
        targets = _targets(request, table)
    except errors.DataverseError:
        return
    for target in targets:
        try:
            yield key_text(_where(table, target))
        except errors.DataverseError:
            continue


def _targets(request: Request, table: Table) -> list[JsonObject]:
    targets = request.json().get("Targets")
    if not isinstance(targets, list) or not all(isinstance(target, dict) for target in targets):
        raise errors.bad_payload(table.entity_set, "The parameter 'Targets' must be a collection of entities.")
    wanted = PREFIX + table.logical_name
    for target in targets:
        named = target.get("@odata.type")
        if not isinstance(named, str) or named.removeprefix("#") != wanted:
            raise errors.bad_payload(
                table.entity_set,
                f"A type name was expected for each item of 'Targets': '@odata.type' must be '{wanted}'.",
            )
    return targets


def _create(store: Store, request: Request, table: Table, targets: list[JsonObject]) -> Reply:
    records = [create_record(store, request, table, target.copy()) for target in targets]
    request.keys[:] = [logged_key(table, record) for record in records]
    context = f"{request.base}{ROOT}/$metadata#{PREFIX}CreateMultipleResponse"
    return Reply(200, {"@odata.context": context, "Ids": [record.id for record in records]})


def _update(store: Store, request: Request, table: Table, targets: list[JsonObject]) -> Reply:
    """A record that is named twice keeps the first: the rest is ignored without a word."""
    done: set[str] = set()
    for target in targets:
        record = store.must_find(table, _where(table, target))
        if record.id not in done:
            done.add(record.id)
            body = {name: value for name, value in target.items() if name != table.primary_id}
            update_record(store, request, table, record, body)
    return Reply(204)


def _upsert(store: Store, request: Request, table: Table, targets: list[JsonObject]) -> Reply:
    done: set[str] = set()
    for target in targets:
        where = _where(table, target)
        record = store.find(table, where)
        if record is None and "@odata.id" in target and not set(where.values or {}).isdisjoint(target):
            # Microsoft's Python SDK, pull request 127: the key in the address and in the body, on the way to a create.
            raise errors.DataverseError(400, "0x80040216", "An unexpected error occurred.")
        record = upsert(store, request, table, where, target.copy())
        if record.id in done:
            raise errors.DataverseError(
                400, "0x80040237", "A record with matching key values is given twice in 'Targets'."
            )
        done.add(record.id)
    return Reply(204)


def _where(table: Table, target: JsonObject) -> Locator:
    given_id = target.get(table.primary_id)
    if is_guid(given_id):
        return Locator(guid(given_id))
    address = target.get("@odata.id")
    if isinstance(address, str):
        path = request_target(address)
        segment = split_path(below_root(path) or path)[0]
        if segment.key is not None and segment.name == table.entity_set:
            return locator(table, segment.key)
    for key in table.alternate_keys:
        if set(key.columns) <= set(target):
            return key_locator(table, {name: target[name] for name in key.columns})
    raise errors.bad_payload(table.entity_set, "Each item of 'Targets' must name its record.")


_MESSAGES: dict[str, Callable[[Store, Request, Table, list[JsonObject]], Reply]] = {
    "CreateMultiple": _create,
    "UpdateMultiple": _update,
    "UpsertMultiple": _upsert,
}
