"""`access`: closing a table or view at once when a hole is found, and who reached across organisations."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from dynamics_sync.certifications.access_audit import Access, recent
from dynamics_sync.cli.output import AsJson, Reason, console, print_json, warn, with_stores
from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.postgres.access import Frozen, Way, WayKind
from dynamics_sync.postgres.audit import Operator
from dynamics_sync.postgres.connections import transaction
from dynamics_sync.settings import operator_name
from dynamics_sync.stores import Stores

access_commands = typer.Typer(help="Who gets at what: close a table at once, and see who did.", no_args_is_help=True)

Relation = Annotated[str, typer.Argument(metavar="TABLE|VIEW", help="As SQL names it: public.certifications.")]


@access_commands.command("freeze")
def access_freeze(relation: Relation, reason: Reason = None, as_json: AsJson = False) -> None:
    """Close a table or view to anon and authenticated at once. `thaw` gives back exactly what was taken.

    What has begun ends as it began: statements, cursors and transactions that have used it before may read on until
    they end; over Supabase's API that is a request, of seconds. All else is refused, also on open connections, and what
    was prepared. service_role and the worker go on. Exit status 1 if it could not be closed.
    """
    operator = Operator(operator_name(), reason)
    name, ways = with_stores(lambda stores: stores.access.freeze(relation, operator))
    is_closed = all(way.kind is not WayKind.RIGHTS for way in ways)
    if as_json:
        print_json({"relation": name, "is_closed": is_closed, "stays_open": [asdict(way) for way in ways]})
    else:
        console.print(f"frozen: {escape(name)}", highlight=False)
    for way in ways:
        warn(_in_words(name, way))
    if not is_closed:
        raise typer.Exit(1)


@access_commands.command("thaw")
def access_thaw(relation: Relation, reason: Reason = None, as_json: AsJson = False) -> None:
    """Give back the rights that `freeze` took, and no others."""
    operator = Operator(operator_name(), reason)
    name, lost = with_stores(lambda stores: stores.access.thaw(relation, operator))
    if as_json:
        print_json({"relation": name, "not_given_back": lost})
    else:
        console.print(f"thawed: {escape(name)}", highlight=False)
    for right in lost:
        warn(f"{right} was not given back: the role, the column, or the right to pass it on is gone.")


@access_commands.command("list")
def access_list(as_json: AsJson = False) -> None:
    """What is frozen: since when, by whom, why, and what is open again or stays open."""
    found = with_stores(lambda stores: stores.access.frozen())
    if as_json:
        print_json([asdict(frozen) | {"is_open_again": frozen.is_open_again} for frozen in found])
    elif not found:
        console.print("Nothing is frozen.")
    else:
        console.print(_table(found))


@access_commands.command("audit")
def access_audit(
    since: Annotated[datetime | None, typer.Option("--since", help="From this day or moment (UTC) on.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Who read or wrote records without being confined to their chapter, newest first: no values."""
    start = since.replace(tzinfo=UTC) if since else None

    async def look(stores: Stores) -> list[Access] | None:
        async with transaction(stores.pool) as connection:
            return await recent(connection, start, limit)

    found = with_stores(look)
    if found is None:
        raise ConfigurationError("There is no access audit: the certifications that ship are not used here.")
    if as_json:
        print_json([asdict(access) for access in found])
        return
    if not found:
        console.print("Nobody reached across chapters or organisations.")
        return
    table = Table("when and who", Column("what", overflow="fold"), box=SIMPLE_HEAD)
    for access in found:
        who = access.actor if access.actor.startswith(access.acting_as) else f"{access.actor}\n{access.acting_as}"
        what = f"{access.kind} {access.table_name}\n{access.record_id or 'all records'}"
        why = f"\n{escape(access.reason)}" if access.reason else ""
        table.add_row(f"{_moment(access.at)}\n{escape(who)}", escape(what) + why, end_section=True)
    console.print(table)
    if len(found) == limit:
        console.print(f"These are the newest {limit}. `--limit` shows more.")


def _table(found: Sequence[Frozen]) -> Table:
    table = Table(Column("table or view", overflow="fold"), "what happened", box=SIMPLE_HEAD)
    for frozen in found:
        lines = [f"[bold]{_state(frozen)}[/]", f"since {_moment(frozen.frozen_at)} by {escape(frozen.frozen_by)}"]
        lines += [escape(frozen.reason)] if frozen.reason else []
        lines += [escape(_in_words(frozen.name, way)) for way in frozen.ways]
        table.add_row(escape(frozen.name), "\n".join(lines), end_section=True)
    return table


def _state(frozen: Frozen) -> str:
    if frozen.is_gone:
        return "[yellow]dropped since: one of that name made later is not frozen[/]"
    return "[red]open again[/]" if frozen.is_open_again else "[green]frozen[/]"


def _in_words(name: str, way: Way) -> str:
    roles = " and ".join(way.roles)
    match way.kind:
        case WayKind.RIGHTS:
            return (
                f"{name} is open to {roles}: by a right granted since, by another role, or to a role that they are "
                "members of. Freeze it again, or have that right revoked"
            )
        case WayKind.PARTITION:
            return f"{way.way} holds rows of it and stays open to {roles}: freeze it too"
        case WayKind.VIEW | WayKind.MATERIALIZED_VIEW:
            return f"{way.way} reads from it and stays open to {roles}: freeze it too"
        case WayKind.FUNCTION:
            return (
                f"{way.way} may read from it with its owner's rights and stays open to {roles}: look at it, and revoke "
                "execute on it"
            )


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
