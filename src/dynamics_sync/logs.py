"""Logging: JSON lines for machines, colour for a terminal. Only allow-listed fields get out, whoever logs (R16)."""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from dynamics_sync.core.redaction import loggable


def configure_logging(stream: TextIO = sys.stderr) -> None:
    """Send our events, and the mere fact of other libraries' warnings, to a stream."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if stream.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            only_allowed_fields,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[ForeignHandler()], level=logging.WARNING, force=True)


def only_allowed_fields(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The allow-list once more, for whoever logs without `sync.events`."""
    return loggable(event)


class ForeignHandler(logging.Handler):
    """Other libraries' messages can quote anything: kept are who warned, where, and the kind of exception."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        structlog.get_logger("dynamics_sync").warning(
            "library.warning",
            logger=record.name,
            line=record.lineno,
            exception_type=kind.__name__ if kind else None,
        )
