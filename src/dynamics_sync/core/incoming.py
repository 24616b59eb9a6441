"""A change that was made in Dynamics, as a contract's adapter reads it (R19)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from re import compile as pattern


class InboxStatus(StrEnum):
    """Where a delivery stands."""

    RECEIVED = "received"
    """It waits to be applied."""
    APPLIED = "applied"
    SUPERSEDED = "superseded"
    """A newer change of the same record was applied before."""
    IGNORED = "ignored"
    """It is none of ours: our own change, or a record that is not here."""
    UNRECOGNISED = "unrecognised"
    """No version of the contract understands it. A replay applies it once one does."""
    REQUIRES_INVESTIGATION = "requires_investigation"
    """It is understood, and cannot be applied: something has to be put right first."""


OPEN_STATUSES = (InboxStatus.RECEIVED, InboxStatus.UNRECOGNISED, InboxStatus.REQUIRES_INVESTIGATION)
"""What still stands for something that is not here. The body is kept for so long."""

REPLAYABLE_STATUSES = (InboxStatus.UNRECOGNISED, InboxStatus.REQUIRES_INVESTIGATION)


class Message(StrEnum):
    """What was done to the record."""

    CREATE = "Create"
    UPDATE = "Update"
    DELETE = "Delete"


@dataclass(frozen=True, slots=True)
class Reference:
    """A lookup's value: another record, by its id."""

    id: str


@dataclass(frozen=True, slots=True)
class UnknownForm:
    """A value of a form that the contract does not know."""


Attributes = Mapping[str, object]
"""Values by logical name: None, bool, int, Decimal, str, Reference or UnknownForm. A choice is its number, several
choices are `1,2` as in the Web API, money is its amount, and a point in time is still a text."""


@dataclass(frozen=True, slots=True)
class RecordChange:
    """One change of one record."""

    message: Message
    entity: str
    """The table's logical name."""
    record_id: str
    at: datetime
    """When it was made, by Dynamics' clock."""
    caused_by: str | None
    """The id of the user who made it."""
    attributes: Attributes | None = field(repr=False)
    """What changed; None where it was left out because the message was too long."""
    beside: Attributes = field(default_factory=dict, repr=False)
    """What the message tells of the record besides, such as its alternate key."""
    before: Attributes = field(default_factory=dict, repr=False)
    """What the record held before, where an image of that is registered."""

    def key(self, alternate_key: str) -> str | None:
        """The alternate key's value, if the message tells it."""
        for told in (self.attributes or {}, self.beside, self.before):
            value = told.get(alternate_key.lower())
            if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
                return str(value)
        return None


_DATE = pattern(r"/Date\((-?[0-9]{1,15})([+-][0-9]{4})?\)/")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(value: object) -> datetime | None:
    """A point in time as Dynamics writes it: `/Date(1506384247000-0700)/` in webhooks, ISO 8601 in the Web API. The
    milliseconds are of UTC; the offset says only where it was noted."""
    if not isinstance(value, str):
        return None
    try:
        if (found := _DATE.fullmatch(value)) is not None:
            return _EPOCH + timedelta(milliseconds=int(found[1]))
        parsed = datetime.fromisoformat(value)
        return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
