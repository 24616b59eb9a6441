"""The one place that says what may be logged, stored or shown (R14, R16).

An allow-list, by field name and by form. Everything else is dropped, not masked: a field that is not named here does
not exist for a log.
"""

import re
from collections.abc import Mapping
from datetime import date, datetime

LOG_FIELDS = frozenset(
    {
        "attempt_count",
        "attempt_number",
        "attempts",
        "certification_id",
        "column_name",
        "compared",
        "correlation_id",
        "count",
        "delay_ms",
        "different",
        "error_code",
        "event",
        "exception_type",
        "expired",
        "expiring",
        "extra",
        "failure_count",
        "failure_reason",
        "inbox_id",
        "last_error_code",
        "level",
        "line",
        "logger",
        "missing",
        "opened_at",
        "operation_type",
        "queue_id",
        "repaired",
        "retry_after_seconds",
        "retry_at",
        "source_table",
        "status",
        "target",
        "timestamp",
        "winner",
    }
)
"""`certification_id` is the record's key, whatever table it is of: the seed's name for it (R2)."""

MAX_TEXT = 200
"""Characters of a text value that are kept."""

_CODE = re.compile(r"0x[0-9A-Fa-f]{8}|-?[0-9]{1,12}")


def loggable(fields: Mapping[str, object]) -> dict[str, object]:
    """The fields that may be logged: known names with plain values, texts cut at 200 characters."""
    return {name: _plain(value) for name, value in fields.items() if name in LOG_FIELDS}


def error_code(value: object) -> str | None:
    """The value if it has the form of a Dataverse error code (`0x80040265`, `-2147204784`), else None.

    Codes come from an answer's body; anything of another form could be somebody's name.
    """
    return value if isinstance(value, str) and _CODE.fullmatch(value) else None


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value[:MAX_TEXT] if isinstance(value, str) else type(value).__name__
