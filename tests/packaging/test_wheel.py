"""The built wheel, in an empty environment without the source tree, does the main job."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_does_the_main_job(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", "fresh", cwd=tmp_path)
    fresh = tmp_path / "fresh" / "bin"
    locked = ROOT / "requirements" / "runtime.txt"
    run(fresh / "python", "-m", "pip", "install", "-q", "--require-hashes", "-r", locked, cwd=tmp_path)
    run(fresh / "python", "-m", "pip", "install", "-q", "--no-deps", wheel, cwd=tmp_path)
    assert "simulator" in run(fresh / "dynamics-sync", "--help", cwd=tmp_path)
    assert "Nothing was lost" in run(fresh / "dynamics-sync", "demo", cwd=tmp_path)


def test_lock_files_name_no_address() -> None:
    for lock in (ROOT / "requirements").glob("*.txt"):
        assert "://" not in lock.read_text()


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    reasons = (ROOT / "ARCHITECTURE.md").read_text().split("## Dependencies")[1]
    for dependency in project["dependencies"]:
        name = dependency.split(">=")[0].split("[")[0]
        assert name in reasons
