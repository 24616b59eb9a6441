"""What Dynamics has already costs no request, as long as it is certain that it has it."""

import pytest

from support.engine import LAST_DAY, Stage, stage


async def change(on: Stage, key: str, **columns: object) -> None:
    for column, value in columns.items():
        await on.user.execute(f"update public.certifications set {column} = %s where id = %s".encode(), [value, key])


async def there_and_back(on: Stage, key: str) -> None:
    """A change that is taken back before it is sent."""
    async with on.user.transaction():
        await change(on, key, status="expiring")
        await change(on, key, status="active")


@pytest.mark.every_postgres
async def test_a_change_that_was_taken_back_costs_no_request(database: str) -> None:
    async with stage(database) as on:
        key = await on.issue()
        await on.settled()
        state = "select applied_version, etag, payload_hash from dynamics_sync.record_state"
        before = await on.rows(state)
        await there_and_back(on, key)
        await on.settled()
        assert len(await on.requests()) == 1
        assert await on.rows(state) == before


async def test_a_hundred_changes_while_it_waits_cost_one_request(database: str) -> None:
    async with stage(database) as on:
        await on.fault(kind="delay", seconds=0.5, count=1)
        first = await on.issue()
        await on.until_requests(1)
        for number in range(100):
            await change(on, first, status="expiring" if number % 2 == 0 else "expired")
        await on.settled()
        assert len(await on.requests()) == 2


@pytest.mark.parametrize("doubt", ["resync", "replay", "unanswered"])
async def test_where_it_is_not_certain_the_record_is_sent(database: str, doubt: str) -> None:
    async with stage(database) as on:
        key = await on.issue()
        await on.settled()
        match doubt:
            case "resync":
                await on.user.execute("select dynamics_sync.resync('public.certifications')")
            case "replay":
                await on.fault(kind="status", status=400, key=key, count=1)
                await change(on, key, status="expiring")
                await on.settled()
                await change(on, key, status="active")
                await on.settled()
            case "unanswered":
                await on.fault(kind="reset_after_write", key=key, count=1)
                await change(on, key, status="expiring")
                await on.settled()
                before = len(await on.requests())
                await there_and_back(on, key)
                await change(on, key, status="expiring")
                await on.settled()
                assert len(await on.requests()) == before + 1
        await on.settled()
        assert len(await on.requests()) >= 2
        assert ((await on.record(key)) or {})["hlf_expireson"] == LAST_DAY


async def test_another_environment_has_nothing_yet(database: str) -> None:
    """The digest says what was written, and where."""
    async with stage(database) as on:
        key = await on.issue()
        await on.settled()
    async with stage(database, again=True) as elsewhere:
        await there_and_back(elsewhere, key)
        await elsewhere.settled()
        assert await elsewhere.record(key) is not None
