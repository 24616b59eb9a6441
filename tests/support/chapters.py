"""Chapters with people in them, made by the project's owner."""

from dataclasses import dataclass, field
from uuid import UUID, uuid4

from dynamics_sync.postgres.connections import Connection

MAKE = """
with organisation as (
  insert into public.organisations (name) values ('HLF') returning id
), chapter as (
  insert into public.chapters (id, organisation_id, name) select %(chapter)s, id, 'Oslo' from organisation
)
insert into public.chapter_memberships (user_id, chapter_id, role)
values (%(coordinator)s, %(chapter)s, 'coordinator')
"""
ADD_MENTOR = """
with mentor as (
  insert into public.peer_mentors (id, chapter_id, display_name)
  values (%(mentor)s, %(chapter)s, 'Kari Nordmann')
)
insert into public.certifications (id, peer_mentor_id, chapter_id, status, expires_on)
values (%(certification)s, %(mentor)s, %(chapter)s, 'active', current_date + 300)
"""


@dataclass(frozen=True)
class Chapter:
    """One that nobody else has to do with: a coordinator, and a mentor with a certification."""

    id: UUID = field(default_factory=uuid4)
    coordinator: UUID = field(default_factory=uuid4)
    mentor: UUID = field(default_factory=uuid4)
    certification: UUID = field(default_factory=uuid4)


async def make_chapter(owner: Connection) -> Chapter:
    """Of an organisation of its own."""
    chapter = Chapter()
    ids = {"chapter": chapter.id, "coordinator": chapter.coordinator}
    async with owner.transaction():
        await owner.execute(MAKE, ids)
        await owner.execute(ADD_MENTOR, {**ids, "mentor": chapter.mentor, "certification": chapter.certification})
    return chapter
