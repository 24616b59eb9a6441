"""Change tracking: what changed since a token (Microsoft: "Use change tracking to synchronize data")."""

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import ROOT
from dynamics_sync.simulator.messages import Reply, Request
from dynamics_sync.simulator.queries import context_columns, page_size, row, select
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import JsonObject, Table

_REFUSED = ("$filter", "$orderby", "$expand", "$top")


@dataclass(frozen=True, slots=True)
class _Position:
    """Which changes a page is of: later than `since`, up to `until`, and behind those of the pages before."""

    since: int
    until: int
    behind: tuple[int, int]


def wants_changes(request: Request) -> bool:
    """Whether a list is asked for with change tracking, or by a delta link."""
    return "odata.track-changes" in request.prefer or "$deltatoken" in request.query


def read_changes(store: Store, request: Request, table: Table) -> Reply:
    """New and changed rows by version, then deletions; with the last page comes the link for the next time.

    A record that changes between two pages belongs to the next time.
    """
    if not table.change_tracking:
        raise errors.malformed(f"Change tracking is not enabled for the entity '{table.logical_name}'.")
    for option in _REFUSED:
        if option in request.query:
            raise errors.malformed(f"The {option} query parameter isn't supported when Change Tracking is enabled.")
    position = _position(store, request)
    selected = select(request, table.properties, table.logical_name)
    context = f"{request.base}{ROOT}/$metadata#{table.entity_set}"
    changes = sorted(
        (place, change)
        for place, change in _changes(store, table, "$deltatoken" in request.query)
        if position.since < place[1] <= position.until and place > position.behind
    )
    page = changes[: page_size(request)]
    document: JsonObject = {"@odata.context": f"{context}{context_columns(selected)}/$delta"}
    address = f"{request.base}{ROOT}/{table.entity_set}?"
    if selected:
        address += f"$select={quote(','.join(selected), safe=',')}&"
    if len(page) < len(changes):
        since = f"$deltatoken={position.since}&" if "$deltatoken" in request.query else ""
        kind, version = page[-1][0]
        document["@odata.nextLink"] = f"{address}{since}$skiptoken={position.until}.{kind}.{version}"
    else:
        document["@odata.deltaLink"] = f"{address}$deltatoken={position.until}"
    records = {record.id: record for record in store.all(table)}
    document["value"] = [
        row(table, records[record_id], selected) if kind == _CHANGED else _deleted(context, record_id)
        for (kind, _), record_id in page
    ]
    return Reply(200, document, {"Preference-Applied": "odata.track-changes"})


_CHANGED, _DELETED = 0, 1


def _changes(store: Store, table: Table, with_deletions: bool) -> Iterator[tuple[tuple[int, int], str]]:
    """The place of each in the order, and the record's id."""
    for record in store.all(table):
        yield (_CHANGED, record.version), record.id
    if with_deletions:
        for deletion in store.deletions(table):
            yield (_DELETED, deletion.version), deletion.id


def _position(store: Store, request: Request) -> _Position:
    since = request.query.get("$deltatoken", "0")
    place = request.query.get("$skiptoken", f"{store.version}.{_CHANGED}.0").split(".")
    for part in (since, *place):
        if not (part.isascii() and part.isdigit() and len(part) < 16):
            raise errors.malformed(f"The token '{part}' is not valid.")
    if len(place) != 3 or not int(since) <= int(place[0]) <= store.version:
        raise errors.malformed(f"The delta token '{since}' is not valid, or has expired.")
    return _Position(int(since), int(place[0]), (int(place[1]), int(place[2])))


def _deleted(context: str, record_id: str) -> JsonObject:
    return {"@odata.context": f"{context}/$deletedEntity", "id": record_id, "reason": "deleted"}
