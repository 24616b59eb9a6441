"""`status`: the truth in one glance."""

from typing import Any

from rich.table import Table

from dynamics_sync import app
from dynamics_sync.cli.circuit import coloured
from dynamics_sync.cli.output import AsJson, console, print_json, with_stores
from dynamics_sync.core.operation import QueueStatus
from dynamics_sync.web.health import circuit_document


def status(as_json: AsJson = False) -> None:
    """The truth in one glance: what waits, what needs a person, how Dynamics is."""

    async def look(stores: app.Stores) -> dict[str, Any]:
        incident = await stores.incidents.current()
        return {
            "waiting": await stores.waiting(),
            "differences": await stores.differences(),
            "queue": await stores.queue.counts(),
            "circuit": circuit_document(await stores.breaker.status()),
            "incident": incident.id if incident else None,
        }

    found = with_stores(look)
    if as_json:
        print_json(found)
        return
    table = Table(show_header=False, box=None)
    table.add_row("waiting in the outbox", str(found["waiting"]))
    for name in QueueStatus:
        if found["queue"].get(name):
            table.add_row(f"queue: {name}", str(found["queue"][name]))
    if found["differences"]:
        table.add_row("found to differ, not repaired", str(found["differences"]))
    incident = f", incident {found['incident']}" if found["incident"] else ""
    table.add_row("circuit", coloured(found["circuit"]["state"]) + incident)
    console.print(table)
