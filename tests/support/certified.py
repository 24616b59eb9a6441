"""An oracle for the listing and the sweep. It does not reckon as the SQL does: a certification is valid between two
moments, the midnight that begins its first day and the one that ends its last, by the clocks where it was issued."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from uuid import UUID
from zoneinfo import ZoneInfo


class Status(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    REVOKED = "revoked"


IN_FORCE = (Status.ACTIVE, Status.EXPIRING)


@dataclass
class Organisation:
    zone: str
    expiring_days: int

    def midnight(self, day: date) -> datetime:
        """The moment at which the day begins."""
        return datetime.combine(day, time(), ZoneInfo(self.zone)).astimezone(UTC)

    def today(self, now: datetime) -> date:
        return now.astimezone(ZoneInfo(self.zone)).date()


@dataclass
class Certification:
    mentor: UUID
    chapter: UUID
    status: Status
    issued_on: date | None
    expires_on: date | None


@dataclass
class World:
    """What people and the sweep have made of it."""

    now: datetime
    organisations: dict[UUID, Organisation]
    chapters: dict[UUID, UUID]
    """The organisation of each."""
    mentors: dict[UUID, UUID]
    """The chapter of each."""
    certifications: dict[UUID, Certification] = field(default_factory=dict)

    def organisation_of(self, certification: Certification) -> Organisation:
        return self.organisations[self.chapters[certification.chapter]]

    def end_of(self, certification: Certification) -> datetime | None:
        """From when on it is over; None if it has no last day."""
        if certification.expires_on is None:
            return None
        return self.organisation_of(certification).midnight(certification.expires_on + timedelta(days=1))

    def is_valid(self, certification: Certification) -> bool:
        end = self.end_of(certification)
        if certification.status not in IN_FORCE or end is None or end <= self.now:
            return False
        first = certification.issued_on
        return first is None or self.organisation_of(certification).midnight(first) <= self.now

    def listed(self) -> set[UUID]:
        """The mentors that are to be seen."""
        return {each.mentor for each in self.certifications.values() if self.is_valid(each)}

    def due(self) -> dict[UUID, Status]:
        """What a sweep moves, and what it becomes."""
        found: dict[UUID, Status] = {}
        for key, each in self.certifications.items():
            end = self.end_of(each)
            if each.status not in IN_FORCE or end is None or each.expires_on is None:
                continue
            organisation = self.organisation_of(each)
            soon = organisation.midnight(each.expires_on - timedelta(days=organisation.expiring_days))
            if end <= self.now:
                found[key] = Status.EXPIRED
            elif each.status is Status.ACTIVE and soon <= self.now:
                found[key] = Status.EXPIRING
        return found

    def moments(self) -> Iterable[datetime]:
        """When something begins or ends, on any clock: the days around the dates that there are."""
        days = {day for each in self.certifications.values() for day in (each.issued_on, each.expires_on) if day}
        days = {near for day in days for near in (day, day + timedelta(days=1))}
        return sorted({each.midnight(day) for each in self.organisations.values() for day in days})
