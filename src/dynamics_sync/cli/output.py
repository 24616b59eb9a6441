"""What every command says, and how."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.settings import load_settings
from dynamics_sync.stores import Stores, database, open_stores

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Why, for the audit trail.")]

Target = Annotated[str | None, typer.Option("--target", help="`dynamics`, `portal` or another; else all.")]

console = Console()


def fail(message: str) -> NoReturn:
    """One message on stderr, and exit status 1."""
    Console(stderr=True).print(f"[bold red]dynamics-sync:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(1)


def warn(message: str) -> None:
    """One line on stderr; the command goes on."""
    Console(stderr=True).print(f"[bold yellow]{escape(message)}[/]", highlight=False, soft_wrap=True)


def print_json(document: object) -> None:
    """For machines: one JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, default=_plain) + "\n")


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def confirmed(question: str, yes: bool) -> None:
    """Go on if the person agrees.

    Raises:
        ConfigurationError: they do not, or nobody can answer.
    """
    try:
        if yes or typer.confirm(question):
            return
    except typer.Abort:
        console.print()
    raise ConfigurationError("Nothing was done. Where nobody can answer, add `--yes`.")


def with_stores(look: Callable[[Stores], Coroutine[Any, Any, T]]) -> T:
    """Open the database, do one thing, close it."""
    settings = load_settings()

    async def work(url: str) -> T:
        async with open_stores(settings, url) as stores:
            return await look(stores)

    with database(settings) as url:
        return asyncio.run(work(url))
