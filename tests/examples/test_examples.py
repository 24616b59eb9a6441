"""Every example runs, and says what it is there to show."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

SAYS = {
    "breaker.py": [
        "call 1: failed, the circuit is closed",
        "call 2: failed, the circuit is closed",
        "call 3: failed, the circuit is open",
        "call 4: not made, the circuit is open",
    ],
    "service.py": [
        "valid: applied, request 3 got through",
        "without-expiry: queued as requires_investigation, Dynamics said 0x80040203",
        "The circuit is closed; 1 entry waits for a person.",
    ],
}


def test_there_is_no_other_example() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == SAYS.keys()


@pytest.mark.parametrize("name", SAYS)
def test_example(name: str) -> None:
    run = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, check=True)
    assert [line for line in run.stdout.splitlines() if not line.startswith("20")] == SAYS[name]
