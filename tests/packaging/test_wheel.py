"""The built wheel, in an empty environment and away from the source tree, does the main job."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


COMPILE_ONCE = {"PYTHONDONTWRITEBYTECODE": ""}
"""Else, where an environment forbids to keep what was compiled, each command would compile everything anew."""


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    environment = {**os.environ, **COMPILE_ONCE, **environment}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dynamics-sync`, installed from the wheel."""
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, ROOT, cwd=directory)
    (wheel,) = directory.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", "fresh", cwd=directory)
    fresh = directory / "fresh" / "bin"
    # What is never imported need not be compiled.
    install = [sys.executable, "-m", "pip", "--python", fresh / "python", "install", "-q", "--no-compile"]
    run(*install, "--require-hashes", "-r", ROOT / "requirements" / "runtime.txt", cwd=directory)
    run(*install, "--no-deps", wheel, cwd=directory)
    return fresh / "dynamics-sync"


def test_it_explains_itself(command: Path, tmp_path: Path) -> None:
    assert "simulator" in run(command, "--help", cwd=tmp_path)


def test_it_does_the_main_job(command: Path, tmp_path: Path) -> None:
    assert "Nothing was lost" in run(command, "demo", cwd=tmp_path)


def test_it_prepares_a_database(command: Path, tmp_path: Path, empty_database: str) -> None:
    database = {"DYNAMICS_SYNC_DATABASE_URL": empty_database}
    assert len(json.loads(run(command, "migrate", "--json", cwd=tmp_path, **database))["applied"]) > 0
    assert json.loads(run(command, "migrate", "--json", cwd=tmp_path, **database)) == {"applied": []}
    assert json.loads(run(command, "status", "--json", cwd=tmp_path, **database))["waiting"] == 0


def test_its_simulator_answers_and_stops_on_sigterm(command: Path, tmp_path: Path) -> None:
    words = [command, "simulator", "--port", "0"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as simulator:
        assert simulator.stdout is not None
        address = re.search(r"http://\S+:\d+", simulator.stdout.readline())
        assert address is not None
        with urllib.request.urlopen(f"{address[0]}/_simulator/requests", timeout=10) as response:
            assert json.load(response) == []
        simulator.terminate()
        _, errors = simulator.communicate(timeout=20)
    assert (simulator.returncode, errors) == (0, "")
