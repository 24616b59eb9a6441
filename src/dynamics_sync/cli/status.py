"""`status` and `circuit`: the truth in one glance."""

from typing import Any

import typer
from rich.table import Table

from dynamics_sync import app
from dynamics_sync.cli.output import AsJson, console, print_json, with_stores
from dynamics_sync.core.explanations import explain
from dynamics_sync.core.operation import QueueStatus
from dynamics_sync.web.health import circuit_document

circuit_commands = typer.Typer(help="How Dynamics is, as all workers see it.", no_args_is_help=True)


def status(as_json: AsJson = False) -> None:
    """The truth in one glance: what waits, what needs a person, how Dynamics is."""

    async def look(stores: app.Stores) -> dict[str, Any]:
        return {
            "waiting": await stores.waiting(),
            "queue": await stores.queue.counts(),
            "circuit": circuit_document(await stores.breaker.status()),
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
    table.add_row("circuit", _coloured(found["circuit"]["state"]))
    console.print(table)


@circuit_commands.command("show")
def circuit_show(as_json: AsJson = False) -> None:
    """The circuit: closed, open or half-open, and why."""
    found = with_stores(lambda stores: stores.breaker.status())
    if as_json:
        print_json(circuit_document(found))
        return
    console.print(f"The circuit is {_coloured(found.state)}.")
    if found.opened_at is not None:
        console.print(f"Opened {found.opened_at:%Y-%m-%d %H:%M:%S %Z} after {found.failure_count} failed requests.")
    if found.last_error_code is not None:
        console.print(f"Last error {found.last_error_code}: {explain(found.last_error_code)}")
    if found.retry_at is not None:
        console.print(f"The next request may leave at {found.retry_at:%H:%M:%S %Z}.")


def _coloured(state: str) -> str:
    colour = {"closed": "green", "open": "red", "half_open": "yellow"}[state]
    return f"[bold {colour}]{state}[/]"
