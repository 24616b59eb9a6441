"""`simulator` and `demo`: Dynamics without Dynamics."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynamics_sync.cli.output import console
from dynamics_sync.cli.signals import stop_event
from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.settings import load_settings

if TYPE_CHECKING:
    from dynamics_sync.simulator import SimulatorConfig


def simulator(
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8081,
    tls: Annotated[bool, typer.Option("--tls", help="Serve TLS, with a certificate of its own making.")] = False,
    ca_file: Annotated[Path, typer.Option(help="With --tls: where to write the authority to trust.")] = Path(
        ".dynamics-sync/simulator-ca.pem"
    ),
    tables: Annotated[Path | None, typer.Option(help="A TOML file of tables, instead of the mapping's.")] = None,
    token_lifetime: Annotated[int, typer.Option(min=1, help="Seconds that a token is valid.")] = 3599,
) -> None:
    """Run a local Dataverse that can be told to fail."""
    # Slow to import: other commands do without.
    from dynamics_sync import app, sandbox
    from dynamics_sync.simulator import SimulatorConfig, load_tables

    try:
        declared = (
            load_tables(tables) if tables else sandbox.simulator_tables(app.read_mapping(load_settings().mapping))
        )
        config = SimulatorConfig(
            declared, port=port, tls=tls, ca_file=ca_file if tls else None, token_lifetime_seconds=token_lifetime
        )
        asyncio.run(_serve(config))
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"The simulator cannot start: {error}") from None


async def _serve(config: "SimulatorConfig") -> None:
    from dynamics_sync.simulator import PORTAL_SECRET, Simulator

    stop = stop_event()
    async with Simulator(config) as running:
        console.print(f"Dynamics simulator at [bold]{running.url}[/], client id [bold]demo[/], secret [bold]demo[/]")
        console.print(f"and a portal at [bold]{running.url}[/], secret [bold]{PORTAL_SECRET}[/]", soft_wrap=True)
        if running.ca_file is not None:
            console.print(f"Trust it with DYNAMICS_SYNC_CA_FILE={running.ca_file}")
        await stop.wait()


def demo() -> None:
    """Show the main job on this machine: an embedded PostgreSQL, a Dynamics that fails, and an account at the end."""
    from dynamics_sync.demo import run_demo

    sys.exit(0 if run_demo(console) else 1)
