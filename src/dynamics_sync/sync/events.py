"""Structured events. Whatever logging a program configures, only allow-listed fields get this far (R2, R4, R16)."""

from typing import Literal

import structlog

from dynamics_sync.core.redaction import loggable

Level = Literal["debug", "info", "warning", "error"]


def emit(event: str, level: Level = "info", **fields: object) -> None:
    """Log one event with the fields that the allow-list knows."""
    getattr(structlog.get_logger("dynamics_sync"), level)(event, **loggable(fields))
