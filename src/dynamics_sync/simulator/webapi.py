"""Which part of the Web API answers a request."""

from dynamics_sync.simulator import bulk, errors, metadata, writes
from dynamics_sync.simulator.addresses import locator, split_path
from dynamics_sync.simulator.messages import Reply, Request
from dynamics_sync.simulator.queries import read_page, read_record
from dynamics_sync.simulator.store import Store

WHO_AM_I = {
    "BusinessUnitId": "3f6b2c1e-0000-4000-8000-000000000001",
    "UserId": "3f6b2c1e-0000-4000-8000-000000000002",
    "OrganizationId": "3f6b2c1e-0000-4000-8000-000000000003",
}


def answer(store: Store, request: Request) -> Reply:
    """The reply to one request, a batch excepted.

    Raises:
        DataverseError: as Dataverse would.
    """
    segments = split_path(request.path)
    name, key = segments[0].name, segments[0].key
    if name in ("WhoAmI", "WhoAmI()"):
        return _only_get(request) or Reply(200, WHO_AM_I)
    if name == "EntityDefinitions":
        return _only_get(request) or metadata.entity_definitions(store, request, segments)
    if name == "sdkmessagefilters":
        return _only_get(request) or metadata.message_filters(store, request)
    table = store.table(name)
    if len(segments) == 2 and key is None:
        if segments[1].name == "$count":
            return Reply(200, len(store.all(table)))
        if request.method != "POST":
            raise errors.not_allowed(request.method)
        return bulk.run_bulk(store, request, table, segments[1].name)
    if len(segments) == 2 and key is not None:
        return _property(store, request, segments[1].name)
    if len(segments) > 2:
        raise errors.no_such_segment(segments[2].name)
    if key is None:
        match request.method:
            case "GET":
                return read_page(request, table, store.all(table))
            case "POST":
                return writes.create(store, request, table)
        raise errors.not_allowed(request.method)
    where = locator(table, key)
    match request.method:
        case "GET":
            return read_record(request, table, writes.must_find(store, table, where))
        case "PATCH":
            return writes.patch(store, request, table, where)
        case "DELETE":
            return writes.delete(store, request, table, where)
    raise errors.not_allowed(request.method)


def _property(store: Store, request: Request, name: str) -> Reply:
    """One column of a record: GET, PUT and DELETE."""
    segment = split_path(request.path)[0]
    table = store.table(segment.name)
    column = table.column(name)
    if column is None:
        raise errors.no_such_segment(name)
    record = writes.must_find(store, table, locator(table, segment.key or ""))
    match request.method:
        case "GET":
            return Reply(200, {"value": record.attributes.get(column.read_name)})
        case "PUT":
            value = request.json(table.entity_set).get("value")
            store.update(table, record, writes.attributes(store, table, {name: value}))
        case "DELETE":
            store.update(table, record, {column.read_name: None})
        case _:
            raise errors.not_allowed(request.method)
    request.keys.append(record.id)
    return Reply(204)


def _only_get(request: Request) -> None:
    if request.method != "GET":
        raise errors.not_allowed(request.method)
