"""Commands. Each opens what it needs, does one thing and says what happened; an error is one message and status 1."""

import sys
from typing import NoReturn

import typer

from dynamics_sync.cli.access import access_commands
from dynamics_sync.cli.circuit import circuit_commands
from dynamics_sync.cli.history import history_commands
from dynamics_sync.cli.inbox import inbox_commands
from dynamics_sync.cli.migrations import migration_commands
from dynamics_sync.cli.output import fail
from dynamics_sync.cli.queue import queue_commands
from dynamics_sync.cli.reconcile import reconcile
from dynamics_sync.cli.service import migrate, run
from dynamics_sync.cli.signals import interrupt_on_sigterm
from dynamics_sync.cli.simulator import demo, simulator
from dynamics_sync.cli.status import status
from dynamics_sync.core.errors import DynamicsSyncError
from dynamics_sync.logs import configure_logging

commands = typer.Typer(
    help="Every committed change in PostgreSQL reaches Microsoft Dynamics 365, or a person knows why not.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (migrate, run, simulator, demo, status, reconcile):
    commands.command()(command)
commands.add_typer(queue_commands, name="queue")
commands.add_typer(inbox_commands, name="inbox")
commands.add_typer(circuit_commands, name="circuit")
commands.add_typer(access_commands, name="access")
commands.add_typer(migration_commands, name="migrations")
commands.add_typer(history_commands, name="history")


def main() -> NoReturn:
    """The entry point: errors of ours become one message on stderr and exit status 1."""
    configure_logging()
    interrupt_on_sigterm()
    try:
        commands(standalone_mode=True)
    except DynamicsSyncError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
