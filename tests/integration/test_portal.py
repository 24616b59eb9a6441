"""Certifications reach a portal beside Dynamics, as they are, or a person knows why not: over real sockets."""

from datetime import UTC, datetime, timedelta

from support.engine import stage

EXPIRED = 100000003


def days_from_now(days: int) -> str:
    return (datetime.now(UTC).date() + timedelta(days=days)).isoformat()


async def test_a_change_reaches_dynamics_and_the_portal(database: str) -> None:
    async with stage(database, portal=True) as on:
        key = await on.issue()
        await on.settled()
        assert await on.record(key) is not None
        (delivery,) = await on.deliveries()
        assert (delivery["key"], delivery["status"]) == (key, 200)
        assert await on.listed() == [str(on.mentor)]


async def test_an_expired_mentor_leaves_the_listing(database: str) -> None:
    async with stage(database, portal=True) as on:
        key = await on.issue()
        await on.settled()
        await on.user.execute("update public.certifications set status = 'expired' where id = %s", [key])
        await on.settled()
        assert (await on.record(key) or {})["hlf_status"] == EXPIRED
        assert await on.listed() == []
