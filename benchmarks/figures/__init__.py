"""The figures, and how each is measured: contenders that take turns, round by round."""

from benchmarks.figures.backlog import BACKLOG
from benchmarks.figures.breaker import BREAKER
from benchmarks.figures.latency import LATENCY
from benchmarks.figures.throughput import BULK, SINGLE, WORKERS
from benchmarks.figures.trigger import TRIGGER

FIGURES = (SINGLE, BULK, LATENCY, BACKLOG, TRIGGER, BREAKER, WORKERS)
