"""`circuit`: how each target is, what outages there were, and opening and closing it by hand."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, timedelta
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from dynamics_sync.cli.output import AsJson, Reason, Target, Yes, confirmed, console, print_json, with_stores
from dynamics_sync.cli.watching import entries_in_words
from dynamics_sync.core.circuit import CircuitState
from dynamics_sync.core.explanations import explain
from dynamics_sync.core.operation import DYNAMICS
from dynamics_sync.postgres.audit import Operator
from dynamics_sync.postgres.incidents import Incident
from dynamics_sync.settings import load_settings, operator_name
from dynamics_sync.stores import Stores, TargetStores
from dynamics_sync.sync.breaker import CircuitStatus, DynamicsCircuitBreaker
from dynamics_sync.web.health import circuit_document

circuit_commands = typer.Typer(
    help="How Dynamics is, and any other target, as all workers see it.", no_args_is_help=True
)

Look = tuple[CircuitStatus, Incident | None]
OneTarget = Annotated[str | None, typer.Option("--target", help="Else the Dynamics environment of the settings.")]


@circuit_commands.command("show")
def circuit_show(target: Target = None, as_json: AsJson = False) -> None:
    """The circuit: closed, open or half-open, and why."""

    async def look(stores: Stores) -> dict[str, Look]:
        return {each.name: await _look(each) for each in await stores.chosen(target)}

    found = with_stores(look)
    if not as_json:
        for name, one in found.items():
            _tell(one, name)
        return
    documents = {name: _document(one) for name, one in found.items()}
    first = next(iter(documents.values()))
    print_json(first if len(documents) == 1 else {**first, "targets": documents})


@circuit_commands.command("incidents")
def circuit_incidents(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20,
    target: Target = None,
    as_json: AsJson = False,
) -> None:
    """The last outages, newest first: when, how long, why, and what they left in the queue."""

    async def look(stores: Stores) -> list[Incident]:
        incidents = stores.incidents if target is None else (await stores.target(target)).incidents
        return await incidents.recent(limit)

    found = with_stores(look)
    if as_json:
        print_json([_incident_document(incident) for incident in found])
        return
    if not found:
        console.print("There was no outage: the circuit has never opened.")
        return
    table = Table("incident", "target", "opened", "lasted", "error code", "entries open", "of all", box=SIMPLE_HEAD)
    for incident in found:
        opened = f"{incident.opened_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        lasted = _lasted(incident.duration) if incident.closed_at else "[bold red]goes on[/]"
        entries = (str(incident.open_entries), str(sum(incident.entries.values())))
        table.add_row(f"[bold]{incident.id}[/]", incident.target, opened, lasted, incident.error_code, *entries)
    console.print(table)


@circuit_commands.command("open")
def circuit_open(target: OneTarget = None, reason: Reason = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Keep everything back for one cool-down from now; then a probe decides. Begins an incident."""
    target = target or load_settings().target
    confirmed(f"Open the circuit of {target}? No request leaves for one cool-down, then a probe decides.", yes)
    _force(DynamicsCircuitBreaker.force_open, target, reason, as_json)


@circuit_commands.command("close")
def circuit_close(target: OneTarget = None, reason: Reason = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Let everything pass again, as if a probe had succeeded. Ends the incident."""
    target = target or load_settings().target
    confirmed(f"Close the circuit of {target}? All that waits is sent at once.", yes)
    _force(DynamicsCircuitBreaker.force_closed, target, reason, as_json)


def _force(
    change: Callable[[DynamicsCircuitBreaker], Awaitable[None]], target: str, reason: str | None, as_json: bool
) -> None:
    """Change one circuit in the name of whoever asks, and tell how it is then."""

    async def act(stores: Stores) -> Look:
        of = await stores.target(target)
        await change(of.breaker_of(Operator(operator_name(), reason)))
        return await _look(of)

    look = with_stores(act)
    if as_json:
        print_json(_document(look))
    else:
        _tell(look, target)


async def _look(of: TargetStores) -> Look:
    return await of.breaker.status(), await of.incidents.current()


def _document(look: Look) -> dict[str, Any]:
    status, incident = look
    return circuit_document(status) | {"incident": incident.id if incident else None}


def _tell(look: Look, target: str) -> None:
    status, incident = look
    of_target = "" if {target, load_settings().target} == {DYNAMICS} else f" of {target}"
    console.print(f"The circuit{of_target} is {coloured(status.state)}.")
    if status.opened_at is not None:
        failures = f" after {status.failure_count} failed requests" if status.failure_count else ""
        console.print(f"Opened {status.opened_at:%Y-%m-%d %H:%M:%S %Z}{failures}.")
    if status.last_error_code is not None:
        console.print(f"Last error {status.last_error_code}: {explain(status.last_error_code, target)}")
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
        "explanation": explain(incident.error_code, incident.target),
        "open_entries": incident.open_entries,
    }


def _lasted(duration: timedelta) -> str:
    return str(timedelta(seconds=round(duration.total_seconds())))
