"""Every example runs."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_breaker() -> None:
    run = subprocess.run([sys.executable, EXAMPLES / "breaker.py"], capture_output=True, text=True, check=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith("call")]
    assert lines == [
        "call 1: failed, the circuit is closed",
        "call 2: failed, the circuit is closed",
        "call 3: failed, the circuit is open",
        "call 4: not made, the circuit is open",
    ]
