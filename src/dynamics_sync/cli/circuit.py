"""`circuit`: how Dynamics is, what outages there were, and opening and closing it by hand."""

from dataclasses import asdict
from datetime import UTC, timedelta
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from dynamics_sync import app
from dynamics_sync.cli.output import AsJson, Reason, Yes, confirmed, console, print_json, with_stores
from dynamics_sync.cli.watching import entries_in_words
from dynamics_sync.core.circuit import CircuitState
from dynamics_sync.core.explanations import explain
from dynamics_sync.postgres.audit import Operator
from dynamics_sync.postgres.incidents import Incident
from dynamics_sync.settings import operator_name
from dynamics_sync.sync.breaker import CircuitStatus
from dynamics_sync.web.health import circuit_document

circuit_commands = typer.Typer(help="How Dynamics is, as all workers see it.", no_args_is_help=True)

Look = tuple[CircuitStatus, Incident | None]


@circuit_commands.command("show")
def circuit_show(as_json: AsJson = False) -> None:
    """The circuit: closed, open or half-open, and why."""
    _tell(with_stores(_look), as_json)


@circuit_commands.command("incidents")
def circuit_incidents(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20, as_json: AsJson = False
) -> None:
    """The last outages, newest first: when, how long, why, and what they left in the queue."""
    found = with_stores(lambda stores: stores.incidents.recent(limit))
    if as_json:
        print_json([_incident_document(incident) for incident in found])
        return
    if not found:
        console.print("There was no outage: the circuit has never opened.")
        return
    table = Table("incident", "opened", "lasted", "error code", "entries open", "of all", box=SIMPLE_HEAD)
    for incident in found:
        opened = f"{incident.opened_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        lasted = _lasted(incident.duration) if incident.closed_at else "[bold red]goes on[/]"
        entries = (str(incident.open_entries), str(sum(incident.entries.values())))
        table.add_row(f"[bold]{incident.id}[/]", opened, lasted, incident.error_code, *entries)
    console.print(table)


@circuit_commands.command("open")
def circuit_open(reason: Reason = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Keep everything back for one cool-down from now; then a probe decides. Begins an incident."""

    async def act(stores: app.Stores) -> Look:
        await stores.breaker_of(Operator(operator_name(), reason)).force_open()
        return await _look(stores)

    confirmed("Open the circuit? No request leaves for one cool-down, then a probe decides.", yes)
    _tell(with_stores(act), as_json)


@circuit_commands.command("close")
def circuit_close(reason: Reason = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Let everything pass again, as if a probe had succeeded. Ends the incident."""

    async def act(stores: app.Stores) -> Look:
        await stores.breaker_of(Operator(operator_name(), reason)).force_closed()
        return await _look(stores)

    confirmed("Close the circuit? All that waits is sent at once.", yes)
    _tell(with_stores(act), as_json)


async def _look(stores: app.Stores) -> Look:
    return await stores.breaker.status(), await stores.incidents.current()


def _tell(look: Look, as_json: bool) -> None:
    status, incident = look
    if as_json:
        print_json(circuit_document(status) | {"incident": incident.id if incident else None})
        return
    console.print(f"The circuit is {coloured(status.state)}.")
    if status.opened_at is not None:
        failures = f" after {status.failure_count} failed requests" if status.failure_count else ""
        console.print(f"Opened {status.opened_at:%Y-%m-%d %H:%M:%S %Z}{failures}.")
    if status.last_error_code is not None:
        console.print(f"Last error {status.last_error_code}: {explain(status.last_error_code)}")
    if status.retry_at is not None:
        console.print(f"The next request may leave at {status.retry_at:%H:%M:%S %Z}.")
    if incident is not None:
        console.print(
            f"This is incident {incident.id}, with {entries_in_words(incident.open_entries)} in the queue: "
            f"`dynamics-sync queue list --incident {incident.id}`."
        )


def coloured(state: str) -> str:
    colour = {CircuitState.CLOSED: "green", CircuitState.OPEN: "red", CircuitState.HALF_OPEN: "yellow"}
    return f"[bold {colour[CircuitState(state)]}]{state}[/]"


def _incident_document(incident: Incident) -> dict[str, Any]:
    document = asdict(incident)
    document["duration_seconds"] = round(document.pop("duration").total_seconds(), 3)
    return document | {
        "explanation": explain(incident.error_code),
        "open_entries": incident.open_entries,
    }


def _lasted(duration: timedelta) -> str:
    return str(timedelta(seconds=round(duration.total_seconds())))
