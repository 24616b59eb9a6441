"""SIGTERM and Ctrl-C end a command in order."""

import asyncio
import signal
import sys
from types import FrameType


def interrupt_on_sigterm() -> None:
    """SIGTERM ends a command as Ctrl-C does: an embedded server is stopped, what was temporary removed."""
    signal.signal(signal.SIGTERM, _interrupt)


def stop_event() -> asyncio.Event:
    """Set by SIGTERM and Ctrl-C, for a command that serves until then."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _interrupt(number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # a shell's background job ignores Ctrl-C
        sys.exit(128 + number)
    handler(signal.SIGINT, frame)
