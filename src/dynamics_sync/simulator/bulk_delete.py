"""`BulkDelete`, in the form that Microsoft's Python SDK sends: one query, of ids.

In Dataverse it is an asynchronous job; here it is done when the answer comes. Ids that are not there are passed over.
"""

from typing import Any
from uuid import uuid4

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import ROOT, Locator
from dynamics_sync.simulator.messages import Reply, Request
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.tables import Table
from dynamics_sync.simulator.values import guid


def run_bulk_delete(store: Store, request: Request) -> Reply:
    """Delete what the query names, and answer with the id of a job."""
    if request.method != "POST":
        raise errors.no_such_resource(request.path)
    try:
        query = request.json()["QuerySet"][0]
        table = _table(store, query["EntityName"])
        (condition,) = query["Criteria"]["Conditions"]
        if (condition["AttributeName"], condition["Operator"]) != (table.primary_id, "In"):
            raise ValueError("not a query of ids")
        ids = [guid(_plain(value)) for value in condition["Values"]]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise errors.malformed("The simulator's BulkDelete takes one query: ids 'In' a list.") from None
    for record_id in ids:
        record = store.find(table, Locator(record_id))
        if record is not None:
            store.delete(table, record)
            request.keys.append(record_id)
    context = f"{request.base}{ROOT}/$metadata#Microsoft.Dynamics.CRM.BulkDeleteResponse"
    return Reply(200, {"@odata.context": context, "JobId": str(uuid4())})


def _table(store: Store, logical_name: object) -> Table:
    for table in store.tables.values():
        if table.logical_name == logical_name:
            return table
    raise ValueError("no such table")


def _plain(value: Any) -> object:
    return value["Value"] if isinstance(value, dict) else value
