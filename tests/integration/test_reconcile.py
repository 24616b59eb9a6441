"""Reconciliation on real parts: what no protocol can prevent is found, told, and repaired through the worker."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest

from dynamics_sync import app, sandbox
from dynamics_sync.postgres.records import PostgresRecords
from dynamics_sync.simulator import Simulator, SimulatorConfig
from dynamics_sync.sync.reconciliation import TableReport
from support.by_hand import back_up, hand, past_the_triggers, restore
from support.engine import LAST_DAY, Stage, engine_settings, stage

CERTIFICATIONS = "public.certifications"
ACTIVE, EXPIRED, REVOKED = 100000001, 100000003, 100000004
MADE_BY_HAND = "0d9f6f3e-6a57-4a83-8f0e-1f6a4f1e2b11"
ALL_WELL = TableReport(CERTIFICATIONS)


async def reconcile(on: Stage, *, repair: bool = False, restart: bool = False) -> TableReport:
    (report,) = await on.engine.reconciliation.reconciler.run(repair=repair, restart=restart)
    return report


async def found(on: Stage) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Kind and attributes of what differs, by key."""
    findings = await on.engine.reconciliation.store.findings()
    return {finding.record_key: (finding.kind, finding.attributes) for finding in findings}


async def repaired(on: Stage, differences: int) -> None:
    """Repair finds that many differences, the worker sends them, and then there are none."""
    report = await reconcile(on, repair=True)
    assert (report.differences, report.repaired) == (differences, differences)
    await on.settled()
    assert (await reconcile(on)).differences == 0
    assert await found(on) == {}
    assert await on.queue() == []


async def reads(on: Stage) -> int:
    return sum(noted["method"] == "GET" for noted in await on.requests())


async def issued(on: Stage, count: int) -> Sequence[str]:
    keys = [await on.issue() for _ in range(count)]
    await on.settled()
    return keys


@pytest.mark.every_postgres
@pytest.mark.pooled_too
async def test_each_kind_of_difference_is_found_and_repaired(database: str) -> None:
    async with stage(database) as on:
        same, edited, lost, deleted, reactivated, restored, never_sent = await issued(on, 7)
        by = await hand(on)
        for key in (deleted, reactivated):
            await on.user.execute("delete from public.certifications where id = %s", [key])
        await on.settled()
        assert await reconcile(on) == replace(ALL_WELL, compared=7)

        await by.edit(edited, hlf_status=REVOKED, hlf_expireson=None)
        await by.delete(lost)
        await by.edit(reactivated, statecode=0, statuscode=1)
        await by.edit(MADE_BY_HAND, hlf_status=ACTIVE)
        async with past_the_triggers(on):
            await on.user.execute("update public.certifications set status = 'expired' where id = %s", [restored])
            await on.user.execute("delete from public.certifications where id = %s", [never_sent])

        assert await reconcile(on) == replace(ALL_WELL, compared=8, missing=1, different=2, extra=3)
        assert await found(on) == {
            edited: ("different", ("hlf_expireson", "hlf_status")),
            lost: ("missing", ()),
            reactivated: ("extra", ("statecode", "statuscode")),
            restored: ("different", ("hlf_status",)),
            never_sent: ("extra", ("statecode", "statuscode")),
            MADE_BY_HAND: ("extra", ("statecode", "statuscode")),
        }
        await repaired(on, 6)
        assert (await on.record(edited) or {})["hlf_expireson"] == LAST_DAY
        assert (await on.record(restored) or {})["hlf_status"] == EXPIRED
        assert (await on.record(lost) or {})["hlf_status"] == ACTIVE
        for key in (reactivated, never_sent, MADE_BY_HAND):
            assert (await on.record(key) or {})["statecode"] == 1
        assert (await on.record(same) or {})["hlf_status"] == ACTIVE


async def test_an_answer_that_lied(database: str) -> None:
    """204, and nothing stored."""
    async with stage(database) as on:
        lied_about, updated = await issued(on, 2)
        await reconcile(on)
        await on.fault(kind="status", status=204, count=2, method="PATCH")
        never_stored = await on.issue()
        await on.user.execute("update public.certifications set status = 'revoked' where id = %s", [lied_about])
        await on.settled()
        assert await on.record(never_stored) is None
        await on.user.execute("update public.certifications set status = 'expired' where id = %s", [updated])
        await on.settled()
        assert (await reconcile(on)).differences == 2
        assert await found(on) == {never_stored: ("missing", ()), lied_about: ("different", ("hlf_status",))}
        await repaired(on, 2)


async def test_a_backup_of_ours_put_back_past_the_triggers(database: str) -> None:
    async with stage(database) as on:
        await issued(on, 5)
        await on.user.execute("create table backup as table public.certifications")
        await on.user.execute("update public.certifications set status = 'revoked'")
        newer = await on.issue()
        await on.settled()
        await reconcile(on)
        async with past_the_triggers(on):
            await on.user.execute("delete from public.certifications")
            await on.user.execute("insert into public.certifications select * from backup")
        assert await reconcile(on) == replace(ALL_WELL, compared=6, different=5, extra=1)
        await repaired(on, 6)
        assert (await on.record(newer) or {})["statecode"] == 1


async def test_a_backup_of_dynamics_put_back(database: str) -> None:
    """The delta link tells nothing of what the restoration undid, once its version is reached again."""
    async with stage(database) as on:
        keys = await issued(on, 5)
        await back_up(on)
        await on.user.execute("update public.certifications set status = 'revoked' where id <> %s", [keys[0]])
        await on.settled()
        await reconcile(on)
        await restore(on)
        for status in ("expired", "active") * 5:
            await on.user.execute("update public.certifications set status = %s where id = %s", [status, keys[0]])
            await on.settled()
        assert (await reconcile(on)).different == 4
        await repaired(on, 4)


async def test_a_second_run_asks_only_for_what_changed(database: str) -> None:
    """And for one record that did not change, whether Dynamics is still the same."""
    async with stage(database) as on:
        keys = await issued(on, 30)
        await reconcile(on)
        before = await reads(on)
        await on.user.execute("update public.certifications set status = 'revoked' where id = %s", [keys[3]])
        await on.settled()
        assert await reconcile(on) == replace(ALL_WELL, compared=30)
        assert await reads(on) == before + 2
        await (await hand(on)).delete(keys[4])
        assert (await reconcile(on)).missing == 1


async def test_a_table_without_change_tracking_is_read_in_pages(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamics_sync.sync.reconcile_table.PAGE_SIZE", 7)
    async with stage(database, change_tracking=False) as on:
        keys = await issued(on, 20)
        for _ in range(2):
            before = await reads(on)
            assert await reconcile(on) == replace(ALL_WELL, compared=20)
            assert await reads(on) == before + 3
        by = await hand(on)
        await by.delete(keys[0])
        await by.edit(keys[1], hlf_status=REVOKED)
        assert (await reconcile(on)).differences == 2
        await repaired(on, 2)


async def test_a_delta_link_that_has_expired_begins_anew(database: str) -> None:
    async with stage(database) as on:
        keys = await issued(on, 3)
        await reconcile(on)
        await on.user.execute(
            "update dynamics_sync.reconciliation_progress set delta_link = replace(delta_link, 'deltatoken=', "
            "'deltatoken=9999999')"
        )
        await (await hand(on)).delete(keys[0])
        assert await reconcile(on) == replace(ALL_WELL, compared=3, missing=1)


async def test_change_tracking_is_not_trusted_for_ever(database: str) -> None:
    async with stage(database) as on:
        await issued(on, 3)
        for days, full in ((0, True), (6, False), (8, True)):
            await on.user.execute(
                "update dynamics_sync.reconciliation_progress "
                "set full_at = clock_timestamp() - make_interval(days => %s)",
                [days],
            )
            await reconcile(on)
            assert await on.rows("select run = full_run from dynamics_sync.reconciliation_progress") == [(full,)]


async def test_what_is_on_its_way_or_in_the_queue_is_no_difference(database: str) -> None:
    async with stage(database) as on:
        queued, deferred, unanswered, same = await issued(on, 4)
        await on.user.execute(
            "select dynamics_sync.note_unanswered('dynamics', %s, %s, 60)", [CERTIFICATIONS, unanswered]
        )
        await (await hand(on)).edit(unanswered, hlf_status=REVOKED)
        await on.fault(kind="status", status=400, key=queued)
        await on.user.execute("update public.certifications set status = 'revoked' where id = %s", [queued])
        await on.settled()
        await on.fault(kind="timeout", key=deferred)
        await on.user.execute("update public.certifications set status = 'revoked' where id = %s", [deferred])
        await on.until("select count(*) = 1 from dynamics_sync.outbox where lease_owner is not null")
        assert await reconcile(on, repair=True) == replace(ALL_WELL, compared=4, waiting=3)
        await on.lift_faults()
        assert (await on.record(same) or {})["hlf_status"] == ACTIVE


@pytest.mark.parametrize("arrives", [True, False], ids=["and arrives", "and waits"])
async def test_a_record_that_changes_between_the_two_sides_is_no_difference(
    database: str, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    """Dynamics was asked, and before the row is read it changes, each time."""
    read_many, statuses = PostgresRecords.read_many, cycle(("revoked", "expired"))

    async with stage(database, working=False) as on:
        worker = asyncio.create_task(on.engine.worker.run())
        keys = await issued(on, 3)
        if not arrives:
            on.engine.worker.stop()
            await worker

        async def read_what_just_changed(records: PostgresRecords, source: str, wanted: Sequence[str]) -> Any:
            await on.user.execute(
                "update public.certifications set status = %s where id = %s", [next(statuses), keys[0]]
            )
            if arrives:
                await on.settled()
            return await read_many(records, source, wanted)

        monkeypatch.setattr(PostgresRecords, "read_many", read_what_just_changed)
        assert await reconcile(on) == replace(ALL_WELL, compared=3, waiting=1)
        monkeypatch.undo()
        on.engine.worker.stop()
        await worker


async def test_no_false_alarm_under_a_constant_load_of_changes(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamics_sync.sync.reconcile_table.PAGE_SIZE", 10)
    monkeypatch.setattr("dynamics_sync.sync.reconcile_table.ROWS_AT_ONCE", 10)
    async with stage(database) as on:
        keys = await issued(on, 60)
        done = asyncio.Event()

        async def change() -> None:
            for turn in range(1_000_000):
                if done.is_set():
                    return
                key, status = keys[turn * 7 % len(keys)], ("active", "revoked", "expired")[turn % 3]
                if turn % 10 == 9:
                    await on.user.execute("delete from public.certifications where id = %s", [key])
                else:
                    await on.user.execute(
                        "insert into public.certifications (id, peer_mentor_id, chapter_id, status) "
                        "values (%s, %s, %s, %s) on conflict (id) do update set status = excluded.status",
                        [key, on.mentor, on.chapter, status],
                    )
                await asyncio.sleep(0)

        changing = asyncio.create_task(change())
        reports = [await reconcile(on, restart=turn % 2 == 0) for turn in range(6)]
        done.set()
        await changing
        assert [report.differences for report in reports] == [0] * 6
        await on.settled()
        assert (await reconcile(on)).differences == 0


async def test_records_that_were_made_in_dynamics_are_none_of_ours(database: str) -> None:
    async with stage(database) as on:
        await issued(on, 2)
        await (await hand(on)).create(hlf_status=ACTIVE)
        assert await reconcile(on) == replace(ALL_WELL, compared=2, without_key=1)


async def test_a_record_whose_key_no_row_can_have_is_extra_and_a_persons_to_judge(database: str) -> None:
    async with stage(database) as on:
        by = await hand(on)
        await by.edit("no uuid", hlf_status=ACTIVE)
        assert (await reconcile(on, repair=True)).extra == 1
        await on.settled()
        assert [entry[0] for entry in await on.queue()] == ["requires_investigation"]
        assert (await reconcile(on, repair=True)).waiting == 1


async def test_another_environment_is_read_from_the_beginning(database: str) -> None:
    """What was seen in one, and the links that it gave, mean nothing to the other."""
    async with stage(database) as on:
        key = await on.issue()
        await on.settled()
        assert (await reconcile(on)).differences == 0
    async with Simulator(SimulatorConfig(sandbox.simulator_tables(app.read_mapping(None)))) as other:
        settings = engine_settings(database, other.url)
        async with app.open_engine(settings, database) as engine:
            (report,) = await engine.reconciliation.reconciler.run()
            assert report == replace(ALL_WELL, compared=1, missing=1)
            assert [finding.record_key for finding in await engine.reconciliation.store.findings()] == [key]
