"""Random histories of certifications, of what people, time and machines do, with a look at the listing after each
step."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from support.certified import Certification, Organisation, Status, World

ORGANISATIONS = [UUID(int=n) for n in range(1, 4)]
CHAPTERS = {UUID(int=10 + n): organisation for n, organisation in enumerate([*ORGANISATIONS, ORGANISATIONS[0]])}
MENTORS = [UUID(int=20 + n) for n in range(len(CHAPTERS))]

ZONES = [
    "Europe/Oslo",
    "Pacific/Kiritimati",  # the first to have a day
    "Pacific/Pago_Pago",  # and the last, 25 hours later
    "America/Havana",  # where the clocks change at midnight
    "America/St_Johns",
    "Asia/Kathmandu",
]
DAYS = [
    date(2026, 3, 29),  # Oslo's clocks go forward
    date(2026, 10, 25),  # and back
    date(2026, 3, 8),  # Havana has no midnight
    date(2026, 11, 1),  # and two
    date(2027, 1, 1),
    date(2028, 2, 29),
]

FORGET = """
delete from public.certifications;
delete from public.peer_mentors;
delete from public.chapters;
delete from public.organisations;
delete from dynamics_sync.changes
"""
CHANGE = """
insert into public.certifications (id, peer_mentor_id, chapter_id, status, issued_on, expires_on)
values (%s, %s, %s, %s, %s, %s)
on conflict (id) do update set peer_mentor_id = excluded.peer_mentor_id, chapter_id = excluded.chapter_id,
  status = excluded.status, issued_on = excluded.issued_on, expires_on = excluded.expires_on
"""
LISTED = "select id, display_name, chapter_id, chapter_name, organisation_name from public.public_peer_mentors"

picks = st.integers(0, 11)
statuses = st.sampled_from([Status.ACTIVE, *Status])
offsets = st.sampled_from([0, -1, 1, 0, -2, 2, 30, -30, None])
"""Days from today; None for no date."""


@dataclass(frozen=True)
class Place:
    """The database of all examples, as those who come to it see it."""

    people: psycopg.Connection[Any]
    public: psycopg.Connection[Any]
    workers: list[psycopg.Connection[Any]]


class History(RuleBasedStateMachine):
    """One thing after the other. What the public must see, and what a sweep may move, an oracle of its own says."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self._people = place.people
        self._people.execute(FORGET.encode())

    @initialize(day=st.sampled_from(DAYS), hour=st.integers(0, 47))
    def begin(self, day: date, hour: int) -> None:
        now = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(hours=hour - 24)
        self.world = World(
            now,
            {key: Organisation(zone, 30) for key, zone in zip(ORGANISATIONS, ZONES, strict=False)},
            dict(CHAPTERS),
            dict(zip(MENTORS, CHAPTERS, strict=False)),
        )
        self._set_clock(now)
        with self._people.cursor() as cursor:
            cursor.executemany(
                "insert into public.organisations (id, name, time_zone) values (%s, 'of ' || %s::uuid, %s)",
                [(key, key, each.zone) for key, each in self.world.organisations.items()],
            )
            cursor.executemany(
                "insert into public.chapters (id, organisation_id, name) values (%s, %s, 'in ' || %s::uuid)",
                [(chapter, organisation, chapter) for chapter, organisation in CHAPTERS.items()],
            )
            cursor.executemany(
                "insert into public.peer_mentors (id, chapter_id, display_name, email) values (%s, %s, %s, 'hidden')",
                [(mentor, chapter, str(mentor)) for mentor, chapter in self.world.mentors.items()],
            )

    # What people do.

    @rule(mentor=picks, chapter=picks, status=statuses, first=offsets, last=offsets)
    def issue(self, mentor: int, chapter: int, status: Status, first: int | None, last: int | None) -> None:
        where = self._chapter(chapter)
        certification = Certification(
            MENTORS[mentor % len(MENTORS)], where, status, self._day(where, first), self._day(where, last)
        )
        self._write(uuid4(), certification)

    @precondition(lambda self: self.world.certifications)
    @rule(pick=picks, last=offsets)
    def renew(self, pick: int, last: int | None) -> None:
        key, certification = self._some(pick)
        certification.status = Status.ACTIVE
        certification.expires_on = self._day(certification.chapter, last)
        self._write(key, certification)

    @precondition(lambda self: self.world.certifications)
    @rule(pick=picks, status=statuses)
    def declare(self, pick: int, status: Status) -> None:
        key, certification = self._some(pick)
        certification.status = status
        self._write(key, certification)

    @precondition(lambda self: self.world.certifications)
    @rule(pick=picks, first=offsets, last=offsets)
    def edit_dates(self, pick: int, first: int | None, last: int | None) -> None:
        key, certification = self._some(pick)
        certification.issued_on = self._day(certification.chapter, first)
        certification.expires_on = self._day(certification.chapter, last)
        self._write(key, certification)

    @precondition(lambda self: self.world.certifications)
    @rule(pick=picks, chapter=picks)
    def move_certification(self, pick: int, chapter: int) -> None:
        key, certification = self._some(pick)
        certification.chapter = self._chapter(chapter)
        self._write(key, certification)

    @precondition(lambda self: self.world.certifications)
    @rule(pick=picks)
    def delete(self, pick: int) -> None:
        key, _ = self._some(pick)
        del self.world.certifications[key]
        self._people.execute("delete from public.certifications where id = %s", [key])

    @rule(mentor=picks, chapter=picks)
    def move_mentor(self, mentor: int, chapter: int) -> None:
        key = MENTORS[mentor % len(MENTORS)]
        self.world.mentors[key] = self._chapter(chapter)
        self._people.execute(
            "update public.peer_mentors set chapter_id = %s where id = %s", [self.world.mentors[key], key]
        )

    @rule(pick=picks, zone=st.sampled_from(ZONES), expiring_days=st.sampled_from([0, 1, 30, 2_000_000_000]))
    def move_organisation(self, pick: int, zone: str, expiring_days: int) -> None:
        key = ORGANISATIONS[pick % len(ORGANISATIONS)]
        self.world.organisations[key] = Organisation(zone, min(expiring_days, 36525))
        self._people.execute(
            "update public.organisations set time_zone = %s, expiring_days = %s where id = %s",
            [zone, expiring_days, key],
        )

    # What time and machines do.

    @precondition(lambda self: self.world.certifications)
    @rule(pick=st.integers(0, 1000), seconds=st.sampled_from([-1, 0]))
    def day_begins(self, pick: int, seconds: int) -> None:
        """Some midnight, in the past or future, or the second before it."""
        if moments := list(self.world.moments()):
            self._set_clock(moments[pick % len(moments)] + timedelta(seconds=seconds))

    @rule(hours=st.sampled_from([1, 12, 25, 24 * 31, 24 * 400, -1, -25, -24 * 31]))
    def clock_is_set(self, hours: int) -> None:
        self._set_clock(self.world.now + timedelta(hours=hours))

    @rule()
    def all_is_sent(self) -> None:
        """Otherwise nothing is."""
        self._people.execute("delete from dynamics_sync.changes")

    @rule(workers=st.integers(1, 3), at_most=st.sampled_from([1, 2, 1000]))
    def sweep(self, workers: int, at_most: int) -> None:
        """By several at once: each has moved its own before the first commits."""
        due = self.world.due()
        expiring = expired = 0
        sweeping = self._place.workers[:workers]
        for worker in sweeping:
            worker.execute("begin")
            row = worker.execute("select expiring, expired from dynamics_certifications.sweep(%s)", [at_most])
            counts = row.fetchone()
            assert counts is not None
            expiring, expired = expiring + counts[0], expired + counts[1]
        for worker in sweeping:
            worker.execute("commit")
        moved = dict(self._people.execute("select id, status from public.certifications").fetchall())
        moved = {key: status for key, status in moved.items() if status != self.world.certifications[key].status}
        assert moved.items() <= due.items()
        assert len(moved) == min(len(due), workers * at_most)
        statuses = list(moved.values())
        assert (expiring, expired) == (statuses.count(Status.EXPIRING), statuses.count(Status.EXPIRED))
        for key, status in moved.items():
            self.world.certifications[key].status = Status(status)

    @invariant()
    def public_sees_whom_it_should(self) -> None:
        world = self.world
        assert set(self._place.public.execute(LISTED).fetchall()) == {
            (mentor, str(mentor), chapter, f"in {chapter}", f"of {world.chapters[chapter]}")
            for mentor, chapter in world.mentors.items()
            if mentor in world.listed()
        }

    def _set_clock(self, now: datetime) -> None:
        self.world.now = now
        self._people.execute("update test_clock.setting set stands_at = %s", [now])

    def _chapter(self, pick: int) -> UUID:
        return list(CHAPTERS)[pick % len(CHAPTERS)]

    def _some(self, pick: int) -> tuple[UUID, Certification]:
        every = list(self.world.certifications.items())
        return every[pick % len(every)]

    def _day(self, chapter: UUID, offset: int | None) -> date | None:
        """So many days from today where the chapter is."""
        organisation = self.world.organisations[self.world.chapters[chapter]]
        return None if offset is None else organisation.today(self.world.now) + timedelta(days=offset)

    def _write(self, key: UUID, certification: Certification) -> None:
        self.world.certifications[key] = certification
        self._people.execute(
            CHANGE,
            [
                key,
                certification.mentor,
                certification.chapter,
                certification.status,
                certification.issued_on,
                certification.expires_on,
            ],
        )
