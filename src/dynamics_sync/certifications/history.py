"""Entries of `certifications.renewal_history` (R22), read by the rules of the history migration's functions.

An entry says its form in `schema_version`. Whatever form it was written in, it is upgraded step by step when it is
read; what cannot be, such as an entry of a later version, is given as it is, with what is wrong. The forms are in
docs/history.md.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

CURRENT_VERSION = 2

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")


class RenewalEvent(StrEnum):
    """What happened to the certification."""

    ISSUED = "issued"
    RENEWED = "renewed"
    REVOKED = "revoked"
    REINSTATED = "reinstated"
    EXPIRED = "expired"


def _text_of(form: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not form.fullmatch(value):
        raise ValueError("another form")
    return value


def _day(value: object) -> date:
    return value if type(value) is date else date.fromisoformat(_text_of(_DAY, value))


def _time(value: object) -> datetime:
    if isinstance(value, datetime):
        return value
    return datetime.strptime(_text_of(_TIME, value), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


def _uuid(value: object) -> UUID:
    return value if isinstance(value, UUID) else UUID(_text_of(_UUID, value))


def _written(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


Day = Annotated[date, BeforeValidator(_day)]
Time = Annotated[datetime, BeforeValidator(_time), PlainSerializer(_written)]
Id = Annotated[UUID, BeforeValidator(_uuid)]


class RenewalV1(BaseModel):
    """The first form: renewals only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    renewed_on: Day
    expires_on: Day | None = None


class Renewal(BaseModel):
    """The current form, 2."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[2]
    id: Id
    event: RenewalEvent
    on: Day
    expires_on: Day | None
    recorded_at: Time | None
    """None where the first form did not say it."""
    recorded_by: Id | None
    """The user; None for a service."""

    def as_json(self) -> dict[str, Any]:
        """As it is written."""
        return self.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class Unread:
    """An entry that cannot be upgraded, as it is."""

    position: int
    """Counted from 1; 0 for a history that is no array."""
    entry: object
    problem: str


_KEYS = "a key is missing, or not one of its schema_version"
_NO_DAY = "is neither a day (YYYY-MM-DD) nor null"
_PROBLEMS = {
    "renewed_on": "renewed_on is no day (YYYY-MM-DD)",
    "id": "id is no UUID",
    "event": f"event is none of {', '.join(RenewalEvent)}",
    "on": "on is no day (YYYY-MM-DD)",
    "expires_on": f"expires_on {_NO_DAY}",
    "recorded_at": "recorded_at is neither a time in UTC (YYYY-MM-DDTHH:MM:SS.ffffffZ) nor null",
    "recorded_by": "recorded_by is neither a UUID nor null",
}


def problem_of(entry: object) -> str | None:
    """What is wrong with an entry, as it is in a JSON document; None if nothing is. No value is quoted."""
    if not isinstance(entry, Mapping):
        return "it is not an object"
    version = _version_of(entry)
    if version is None:
        return "schema_version is missing, or no version number"
    if version > CURRENT_VERSION:
        return f"its schema_version is later than the latest that is known, {CURRENT_VERSION}"
    form = RenewalV1 if version == 1 else Renewal
    try:
        form.model_validate(entry)
    except ValidationError as error:
        return _told(error)
    return None


def read_history(certification_id: UUID, history: object) -> list[Renewal | Unread]:
    """All entries, in their order, in the current form as far as possible. None is left out."""
    if not isinstance(history, list):
        return [Unread(0, history, "the history is not an array")]
    read = [_read(certification_id, position, entry) for position, entry in enumerate(history, 1)]
    ids = Counter(entry.id for entry in read if isinstance(entry, Renewal))
    return [
        Unread(position, entry.as_json(), "another entry has the same id")
        if isinstance(entry, Renewal) and ids[entry.id] > 1
        else entry
        for position, entry in enumerate(read, 1)
    ]


def upgrade_1(certification_id: UUID, position: int, entry: RenewalV1) -> Renewal:
    """From the first form to the second. It knew no ids: one is derived (a UUID of version 8), the same each time."""
    digits = hashlib.sha256(f"{certification_id}:{position}".encode()).hexdigest()
    return Renewal(
        schema_version=2,
        id=UUID(f"{digits[:12]}8{digits[13:16]}8{digits[17:32]}"),
        event=RenewalEvent.RENEWED,
        on=entry.renewed_on,
        expires_on=entry.expires_on,
        recorded_at=None,
        recorded_by=None,
    )


def _read(certification_id: UUID, position: int, entry: object) -> Renewal | Unread:
    problem = problem_of(entry)
    if problem is not None or not isinstance(entry, Mapping):
        return Unread(position, entry, problem or "")
    if _version_of(entry) == 1:
        return upgrade_1(certification_id, position, RenewalV1.model_validate(entry))
    return Renewal.model_validate(entry)


def _version_of(entry: Mapping[str, object]) -> int | None:
    """Entries of the first form did not say at first which it is. None for what is no entry."""
    if "schema_version" not in entry:
        return 1 if "renewed_on" in entry else None
    version = entry["schema_version"]
    return version if type(version) is int and 0 < version < 1_000_000_000 else None


def _told(error: ValidationError) -> str:
    """The first problem, in the order of the fields."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if any(problem["type"] in ("missing", "extra_forbidden") for problem in problems):
        return _KEYS
    return _PROBLEMS[str(problems[0]["loc"][0])]
