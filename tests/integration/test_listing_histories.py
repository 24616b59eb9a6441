"""Whatever happens, and whatever fails: the public sees a mentor if and only if one of their certifications is valid
today (R20)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from support.database_clock import INSTALL
from support.listing_history import History, Place
from support.postgres import Cluster
from support.search import search


@pytest.fixture(scope="module")
def place(clusters: dict[str, Cluster]) -> Iterator[Place]:
    with clusters["pg18"].database() as url:
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(INSTALL)
        people, public, *workers = (psycopg.connect(url, autocommit=True) for _ in range(5))
        public.execute("set role anon")
        yield Place(people, public, workers)
        for each in (people, public, *workers):
            each.close()


def test_no_moment_lists_the_wrong_mentors(place: Place) -> None:
    run_state_machine_as_test(lambda: History(place), settings=search(30))


@dataclass(frozen=True)
class Mistake:
    """What somebody may break: a text that stands in these functions, and what they write in its place."""

    functions: tuple[str, ...]
    right: str
    wrong: str


IN_FORCE = "status in ('active', 'expiring')"
RULE, LISTING, SWEEP = "is_valid", "listed_mentors", "sweep"

MISTAKES = {
    "the last day does not count": Mistake((RULE,), "expires_on >= day", "expires_on > day"),
    "a day more counts": Mistake((RULE,), "expires_on >= day", "expires_on >= day - 1"),
    "the first day does not count": Mistake((RULE,), "issued_on <= day", "issued_on < day"),
    "the first day is not asked": Mistake((RULE,), "issued_on <= day", "true"),
    "it needs a first day": Mistake((RULE,), "issued_on is null or", ""),
    "without a last day it is for ever": Mistake((RULE,), "expires_on is not null and", "expires_on is null or"),
    "the sweep is believed": Mistake((RULE,), "expires_on >= day", "true"),
    "pending ones count": Mistake((RULE, LISTING), IN_FORCE, "status in ('active', 'expiring', 'pending')"),
    "revoked ones count": Mistake((RULE, LISTING), IN_FORCE, "status in ('active', 'expiring', 'revoked')"),
    "what the sweep ended counts": Mistake((RULE, LISTING), IN_FORCE, "status in ('active', 'expiring', 'expired')"),
    "expiring ones do not count": Mistake((RULE,), IN_FORCE, "status in ('active')"),
    "all days are those of UTC": Mistake(("today_in",), "at time zone time_zone", "at time zone 'UTC'"),
    "the days are those of where the mentor is": Mistake(
        (LISTING,),
        "ch.id = c.chapter_id",
        "ch.id = (select m.chapter_id from public.peer_mentors m where m.id = c.peer_mentor_id)",
    ),
    "only what was sent counts": Mistake(
        (LISTING,),
        "where c.",
        "where not exists (select from dynamics_sync.changes s where c.id::text = any (s.record_keys)) and c.",
    ),
    "it expires on its last day": Mistake((SWEEP,), "c.expires_on < days.today", "c.expires_on <= days.today"),
}


@contextmanager
def made(place: Place, mistake: Mistake) -> Iterator[None]:
    """The functions are as somebody who makes this mistake leaves them."""
    with psycopg.connect(place.people.info.dsn, password=place.people.info.password, autocommit=True) as owner:
        owner.execute("grant usage on schema dynamics_sync to service_role")
        owner.execute("grant select on dynamics_sync.changes to service_role")
        names = [f"dynamics_certifications.{name}" for name in mistake.functions]
        right = [owner.execute("select pg_get_functiondef(%s::regproc)", [name]).fetchone() for name in names]
        for definition in right:
            assert definition is not None
            assert mistake.right in definition[0]
            owner.execute(definition[0].replace(mistake.right, mistake.wrong).encode())
        yield
        for definition in right:
            assert definition is not None
            owner.execute(definition[0].encode())


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_such_a_mistake_is_found(place: Place, mistake: Mistake) -> None:
    until_found = settings(search(500), phases=[Phase.generate], database=None, report_multiple_bugs=False)
    with made(place, mistake), pytest.raises(AssertionError):
        run_state_machine_as_test(lambda: History(place), settings=until_found)
