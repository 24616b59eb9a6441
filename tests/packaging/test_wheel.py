"""The built wheel, in an empty environment without the source tree, does the main job."""

import subprocess
import sys
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
