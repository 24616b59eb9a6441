"""`status`: the truth in one glance."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from dynamics_sync.cli.circuit import coloured
from dynamics_sync.cli.output import AsJson, Target, console, print_json, with_stores
from dynamics_sync.core.incoming import OPEN_STATUSES
from dynamics_sync.core.operation import QueueStatus
from dynamics_sync.settings import load_settings
from dynamics_sync.stores import Stores, TargetStores
from dynamics_sync.web.health import circuit_document


def status(target: Target = None, as_json: AsJson = False) -> None:
    """The truth in one glance: what waits, what needs a person, and how each target is."""

    async def look(stores: Stores) -> dict[str, Any]:
        found = {each.name: await _look_at(each) for each in await stores.chosen(target)}
        first = next(iter(found.values()))
        every = {
            "enabled": load_settings().enabled,
            "differences": await stores.differences(target),
            "frozen": {each.name: each.is_open_again for each in await stores.access.frozen()},
            "inbox": await (await stores.inbox_of(target)).counts(),
            "not_in_settings": [name for name in found if name not in stores.targets],
        }
        if len(found) == 1:
            return first | every
        waiting, queue = await stores.waiting(), await stores.queue.counts()
        return {**first, **every, "waiting": waiting, "queue": queue, "targets": found}

    found = with_stores(look)
    if as_json:
        print_json(found)
        return
    table = Table(show_header=False, box=None)
    if not found["enabled"]:
        table.add_row("sending", "[yellow]switched off here (DYNAMICS_SYNC_ENABLED): changes wait[/]")
    table.add_row("waiting in the outbox", str(found["waiting"]))
    for name in QueueStatus:
        if found["queue"].get(name):
            table.add_row(f"queue: {name}", str(found["queue"][name]))
    for counted in (*OPEN_STATUSES, "conflicts"):
        if found["inbox"].get(counted):
            table.add_row(f"inbox: {counted}", str(found["inbox"][counted]))
    if found["differences"]:
        table.add_row("found to differ, not repaired", str(found["differences"]))
    for name, is_open_again in found["frozen"].items():
        table.add_row("[bold red]frozen, but open again[/]" if is_open_again else "frozen", escape(name))
    for name, one in found.get("targets", {None: found}).items():
        incident = f", incident {one['incident']}" if one["incident"] else ""
        waiting = f", {one['waiting']} waiting" if name else ""
        elsewhere = "; not in these settings" if name in found["not_in_settings"] else ""
        state = f"{coloured(one['circuit']['state'])}{incident}{waiting}{elsewhere}"
        table.add_row(f"circuit of {name}" if name else "circuit", state)
    console.print(table)


async def _look_at(target: TargetStores) -> dict[str, Any]:
    incident = await target.incidents.current()
    return {
        "waiting": await target.waiting(),
        "queue": await target.queue.counts(),
        "circuit": circuit_document(await target.breaker.status()),
        "incident": incident.id if incident else None,
    }
