"""Many histories, on all cores."""

import gc
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from time import process_time

from simulation.bugs import Bug
from simulation.plan import plan_for
from simulation.world import simulate

CHUNK = 250
"""Seeds that a process works off at a time."""


@dataclass(frozen=True, slots=True)
class Found:
    """What some histories came to."""

    histories: int = 0
    requests: int = 0
    simulated_seconds: float = 0.0
    cpu_seconds: float = 0.0
    failures: tuple[tuple[int, str], ...] = ()
    """Seeds, and what they violate first."""

    def __add__(self, other: "Found") -> "Found":
        return Found(
            self.histories + other.histories,
            self.requests + other.requests,
            self.simulated_seconds + other.simulated_seconds,
            self.cpu_seconds + other.cpu_seconds,
            self.failures + other.failures,
        )


def explore(seeds: Sequence[int]) -> Found:
    """Let these histories happen, in this process."""
    failures, requests, simulated_seconds, begun = [], 0, 0.0, process_time()
    gc.disable()  # a history is one heap of cycles, and short
    warnings.simplefilter("ignore", RuntimeWarning)  # of what killed processes would have liked to await
    try:
        for number, seed in enumerate(seeds):
            world = simulate(plan_for(seed))
            requests += world.to_dynamics.requests
            simulated_seconds += world.loop.time()
            if world.violations:
                failures.append((seed, world.violations[0]))
            if number % 100 == 99:
                gc.collect()
    finally:
        gc.enable()
    return Found(len(seeds), requests, simulated_seconds, process_time() - begun, tuple(failures))


def seeds_until_found(bug: Bug, seeds: Iterable[int]) -> tuple[int, str] | None:
    """How many seeds it takes to find a deliberate bug, and what it violates first; None if they are not enough."""
    with bug.apply():
        for count, seed in enumerate(seeds, 1):
            violations = simulate(plan_for(seed)).violations
            if violations and "exception" not in violations[0]:
                return count, violations[0]
    return None


def campaign(seeds: range, processes: int = 0) -> Iterator[Found]:
    """Let them happen in several processes, 0 for one a core; give what each chunk came to."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(explore, chunk) for chunk in chunks]):
            yield done.result()
