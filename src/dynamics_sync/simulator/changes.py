"""Change tracking: what changed since a token (Microsoft: "Use change tracking to synchronize data")."""

from urllib.parse import quote

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import ROOT
from dynamics_sync.simulator.messages import Reply, Request
from dynamics_sync.simulator.queries import context_columns, row, select
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import JsonObject, Table

_REFUSED = ("$filter", "$orderby", "$expand", "$top")


def wants_changes(request: Request) -> bool:
    """Whether a list is asked for with change tracking, or by a delta link."""
    return "odata.track-changes" in request.prefer or "$deltatoken" in request.query


def read_changes(store: Store, request: Request, table: Table) -> Reply:
    """New and changed rows by version, then deletions, then the link for the next time. It is not paged."""
    for option in _REFUSED:
        if option in request.query:
            raise errors.malformed(f"The {option} query parameter is not supported with change tracking.")
    since = _since(store, request)
    selected = select(request, table.properties, table.logical_name)
    changed = sorted((one for one in store.all(table) if one.version > since), key=lambda one: one.version)
    rows = [row(table, record, selected) for record in changed]
    context = f"{request.base}{ROOT}/$metadata#{table.entity_set}"
    if "$deltatoken" in request.query:
        rows += [_deleted(context, one.id) for one in store.deletions(table) if one.version > since]
    document: JsonObject = {"@odata.context": f"{context}{context_columns(selected)}/$delta"}
    columns = f"$select={quote(','.join(selected), safe=',')}&" if selected else ""
    document["@odata.deltaLink"] = f"{request.base}{ROOT}/{table.entity_set}?{columns}$deltatoken={store.version}"
    document["value"] = rows
    return Reply(200, document, {"Preference-Applied": "odata.track-changes"})


def _since(store: Store, request: Request) -> int:
    token = request.query.get("$deltatoken", "0")
    if not (token.isascii() and token.isdigit() and len(token) < 16 and int(token) <= store.version):
        raise errors.malformed(f"The delta token '{token}' is not valid, or has expired.")
    return int(token)


def _deleted(context: str, record_id: str) -> JsonObject:
    return {"@odata.context": f"{context}/$deletedEntity", "id": record_id, "reason": "deleted"}
