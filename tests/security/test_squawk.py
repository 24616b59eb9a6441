"""The migrations pass squawk, which knows what locks out others or cannot be taken back."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SQUAWK = Path(sys.executable).with_name("squawk")


def squawk(*paths: Path) -> str:
    """What it finds in these files. It takes its settings from the project."""
    done = subprocess.run(
        [SQUAWK, "--reporter", "gcc", *paths], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode == 0) == (done.stdout == ""), done.stderr
    return done.stdout


def test_it_finds_nothing_in_the_migrations() -> None:
    migrations = sorted(ROOT.glob("src/dynamics_sync/*/migrations/*.sql"))
    assert len(migrations) > 5
    assert squawk(*migrations) == ""


def test_it_would_find_something(tmp_path: Path) -> None:
    flaw = tmp_path / "flaw.sql"
    flaw.write_text("alter table public.certifications add column place text not null;")
    assert "adding-required-field" in squawk(flaw)
