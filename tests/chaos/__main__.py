"""`make chaos`: the long form. DURATION (seconds), WORKERS, USERS, RECORDS, SEED and SERVER (pg15, pg17, pg18) change
it."""

import asyncio
import os
import secrets
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from chaos.report import print_report
from chaos.run import ChaosSettings, run


def settings_from_environment() -> ChaosSettings:
    def number(name: str, default: float) -> float:
        return float(os.environ.get(name) or default)

    return ChaosSettings(
        seed=int(number("SEED", secrets.randbelow(1_000_000))),
        duration_seconds=number("DURATION", 600),
        workers=int(number("WORKERS", 4)),
        users=int(number("USERS", 4)),
        records=int(number("RECORDS", 200)),
        server=os.environ.get("SERVER") or "pg18",
    )


def main() -> int:
    """Exit status 1 if anything was violated."""
    console = Console()
    settings = settings_from_environment()
    console.print(f"Seed {settings.seed}, {settings.workers} workers, {settings.records} records, {settings.server}.")
    columns = (TimeElapsedColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("starting", total=settings.duration_seconds)
        result = asyncio.run(
            run(settings, lambda seconds, text: progress.update(bar, completed=seconds, description=text))
        )
    print_report(console, result)
    return 0 if result.held else 1


if __name__ == "__main__":
    sys.exit(main())
