"""Which part of the Web API answers a request, and which keys a request names."""

from collections.abc import Iterator

from dynamics_sync.simulator import errors, metadata, writes
from dynamics_sync.simulator.addresses import Segment, key_text, locator, split_path
from dynamics_sync.simulator.bulk import bulk_keys, run_bulk
from dynamics_sync.simulator.bulk_delete import run_bulk_delete
from dynamics_sync.simulator.changes import read_changes, wants_changes
from dynamics_sync.simulator.messages import Reply, Request
from dynamics_sync.simulator.organization import BUSINESS_UNIT_ID, ORGANIZATION_ID
from dynamics_sync.simulator.queries import read_count, read_page, read_record
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import Table

_READ_ONLY = ("", "WhoAmI", "WhoAmI()", "EntityDefinitions", "sdkmessagefilters")


def answer(store: Store, request: Request) -> Reply:
    """The reply to one request, a batch excepted.

    Raises:
        DataverseError: as Dataverse would.
    """
    segments = split_path(request.path) if request.path else [Segment("", None)]
    name, key = segments[0].name, segments[0].key
    if name in _READ_ONLY or name in store.system_tables:
        return _read_only(store, request, segments)
    if name == "BulkDelete" and len(segments) == 1:
        return run_bulk_delete(store, request)
    table = store.table(name)
    if key is None:
        return _collection(store, request, table, segments)
    return _record(store, request, table, segments)


def named_keys(store: Store, request: Request) -> list[str]:
    """The keys and ids that a request names, a batch excepted; none for what cannot be understood."""
    return list(_named_keys(store, request))


def _named_keys(store: Store, request: Request) -> Iterator[str]:
    try:
        segments = split_path(request.path)
        table, key = store.table(segments[0].name), segments[0].key
        if key is not None:
            yield key_text(locator(table, key))
        elif len(segments) == 2 and request.method == "POST":
            yield from bulk_keys(request, table)
    except errors.DataverseError:
        return


def _read_only(store: Store, request: Request, segments: list[Segment]) -> Reply:
    if request.method != "GET":
        raise errors.no_such_resource(request.path)
    match segments[0].name:
        case "":
            return metadata.service_document(store, request)
        case "EntityDefinitions":
            return metadata.entity_definitions(store, request, segments)
        case "sdkmessagefilters":
            return metadata.message_filters(store, request)
        case name if name in store.system_tables:
            return metadata.system_rows(store.system_tables[name], request, segments)
    ids = {"BusinessUnitId": BUSINESS_UNIT_ID, "UserId": request.user_id, "OrganizationId": ORGANIZATION_ID}
    return Reply(200, ids)


def _collection(store: Store, request: Request, table: Table, segments: list[Segment]) -> Reply:
    if len(segments) > 2:
        raise errors.no_such_segment(segments[2].name)
    if len(segments) == 2 and segments[1].name != "$count":
        return run_bulk(store, request, table, segments[1].name)
    match request.method, len(segments):
        case "GET", 2:
            return read_count(request, table, store.all(table))
        case "GET", _ if wants_changes(request):
            return read_changes(store, request, table)
        case "GET", _:
            return read_page(request, table, store.all(table))
        case "POST", 1:
            return writes.create(store, request, table)
    raise errors.not_allowed(request.method)


def _record(store: Store, request: Request, table: Table, segments: list[Segment]) -> Reply:
    where = locator(table, segments[0].key or "")
    if len(segments) == 2:
        return writes.column_value(store, request, table, where, segments[1].name)
    if len(segments) == 3 and segments[2].name == "$ref":
        return writes.reference(store, request, table, where, segments[1].name)
    if len(segments) > 1:
        raise errors.no_such_segment(segments[-1].name)
    match request.method:
        case "GET":
            return read_record(request, table, store.must_find(table, where))
        case "PATCH":
            return writes.patch(store, request, table, where)
        case "DELETE":
            return writes.delete(store, request, table, where)
    raise errors.not_allowed(request.method)
