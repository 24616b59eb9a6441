"""An event loop whose time is simulated, and whose processes can be killed, stopped and continued.

The engine's code runs on it as it is. Nothing waits: when nothing is ready, the clock jumps to the next timer. All
that happens follows from the order in which callbacks were scheduled, so one seed gives one history.
"""

import asyncio
import warnings
from asyncio.events import Handle, TimerHandle, _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar
from heapq import heappop, heappush
from typing import Any

PROCESS: ContextVar["Process"] = ContextVar("PROCESS")
"""The process that a callback belongs to. Tasks inherit it; what the world does (networks, servers) has none."""

WORLD = Context()
"""The context of what goes on whatever happens to a process."""


class Process:
    """An operating system process: its tasks and callbacks, all of them."""

    __slots__ = ("_held", "is_dead", "is_stopped", "name", "on_death")

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.is_stopped = False
        self.on_death: list[Callable[[], None]] = []
        self._held: list[Handle] = []

    def kill(self) -> None:
        """SIGKILL: none of its code runs any more, not even a `finally`."""
        self.is_dead = True
        self._held.clear()
        for tell in self.on_death:
            tell()

    def stop(self) -> None:
        """SIGSTOP: its code stands still, the world goes on."""
        self.is_stopped = True

    def hold(self, handle: Handle) -> None:
        self._held.append(handle)

    def go_on(self) -> list[Handle]:
        """SIGCONT: what became due meanwhile, in its order."""
        self.is_stopped = False
        held, self._held = self._held, []
        return held


class SimulationLoop(asyncio.AbstractEventLoop):
    """One thread, one clock, no sockets."""

    def __init__(self) -> None:
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, TimerHandle]] = []
        self._scheduled = 0
        self._now = 0.0
        self.steps = 0
        self.errors: list[str] = []
        self._tasks: list[asyncio.Task[Any]] = []
        """Kept, or what a killed process has left would be collected, and its `finally` blocks run, at any time."""

    def run(self, until: Callable[[], bool], end: float) -> bool:
        """Run until the condition holds, asked whenever time passes; False if it does not before `end`."""
        _set_running_loop(self)
        try:
            while True:
                self._run_ready()
                if until():
                    return True
                if not self._timers or self._timers[0][0] > end:
                    self._now = end
                    return False
                self._now = max(self._now, self._timers[0][0])
                while self._timers and self._timers[0][0] <= self._now:
                    self._ready.append(heappop(self._timers)[2])
        finally:
            _set_running_loop(None)

    def _run_ready(self) -> None:
        ready = self._ready
        while ready:
            handle = ready.popleft()
            if handle._cancelled:  # type: ignore[attr-defined]
                continue
            process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
            if process is not None:
                if process.is_dead:
                    continue
                if process.is_stopped:
                    process.hold(handle)
                    continue
            self.steps += 1
            handle._run()

    def close(self) -> None:
        """Clear away what killed processes have left. Its `finally` blocks run now, and can do no harm any more."""
        _set_running_loop(self)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of what they would have liked to await
            for task in self._tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    for _ in range(10):  # as often as one of them waits for something more
                        with suppress(RuntimeError):
                            task.get_coro().close()  # type: ignore[union-attr]
                            break
            self._tasks.clear()
        _set_running_loop(None)

    def continue_process(self, process: Process) -> None:
        self._ready.extend(process.go_on())

    def start(self, process: Process, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a coroutine as the process's main task."""
        context = Context()
        context.run(PROCESS.set, process)
        return self.create_task(coroutine, context=context)

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Handle:
        handle = Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        timer = TimerHandle(when, callback, args, self, context)
        self._scheduled += 1
        heappush(self._timers, (when, self._scheduled, timer))
        return timer

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        """It is passed over when its time comes."""

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An exception that nobody took. That of a dead process's task is none: it was never run to its end."""
        if "pending" not in context.get("message", ""):
            self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")
