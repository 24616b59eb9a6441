"""The peers' environment: installed when first needed, from a lock file with hashes, apart from ours."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions

from benchmarks.processes import ROOT

LOCK = ROOT / "benchmarks" / "peers.txt"
PLACE = ROOT / ".venv" / "peers"
NAMED = (
    *("pgqueuer", "procrastinate", "faststream-outbox", "PowerPlatform-Dataverse-Client"),
    *("pybreaker", "aiobreaker", "circuitbreaker", "purgatory", "hyx"),
)


@dataclass(frozen=True, slots=True)
class Peers:
    """What is installed."""

    python: str | None
    """Their interpreter; None where they are not there."""
    why_not: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def no_peers(why_not: str) -> Peers:
    """They are left out."""
    return Peers(None, why_not)


def install() -> Peers:
    """Make sure of the environment. Where it cannot be had, the report says why, and the rest is measured."""
    python = PLACE / "bin" / "python"
    locked = PLACE / "locked.txt"
    if not locked.exists() or locked.read_text() != LOCK.read_text():
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(PLACE)],
            [*pip, "--require-hashes", "-r", str(LOCK)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                return no_peers("they could not be installed: " + _last_line(done.stderr.splitlines()))
        locked.write_text(LOCK.read_text())
    return Peers(str(python), versions=_versions())


def _versions() -> Mapping[str, str]:
    there = distributions(path=[str(path) for path in PLACE.glob("lib/python*/site-packages")])
    known = {each.metadata["Name"].lower(): each.version for each in there}
    return {name: known[name.lower()] for name in NAMED if name.lower() in known}


def _last_line(lines: Sequence[str]) -> str:
    return lines[-1] if lines else "pip gave no reason"
