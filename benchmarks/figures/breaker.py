"""What a closed breaker in memory adds to an awaited call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.measuring import OURS, Contender, Figure, Stage
from benchmarks.processes import Command, module, result_of

OVERHEAD = "µs"
PEERS = ("pybreaker", "aiobreaker", "circuitbreaker", "purgatory", "hyx")


def _contender(name: str, command: Command) -> Contender:
    return Contender(name, lambda: {OVERHEAD: result_of(command)})


@contextmanager
def _breaker(stage: Stage) -> Iterator[Sequence[Contender]]:
    calls, python = stage.sizes.calls, stage.peers.python
    contenders = [
        _contender(OURS, module("bare.breaker", "ours", calls)),
        _contender("a bare state machine", module("bare.breaker", "bare", calls)),
    ]
    if python is not None:
        contenders += [_contender(name, module("peers.breakers", name, calls, python=python)) for name in PEERS]
    yield contenders


BREAKER = Figure("breaker", "The breaker, for each call", _breaker)
