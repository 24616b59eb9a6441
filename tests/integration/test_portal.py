"""Certifications reach a portal beside Dynamics, as they are, or a person knows why not: over real sockets."""

import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from dynamics_sync.core.explanations import explain
from dynamics_sync.simulator import PORTAL_SECRET
from support.engine import Stage, engine_settings, stage, working
from support.outbox import GATHER

EXPIRED = 100000003
NEXT_CONTRACT = Path(__file__).parents[2] / "examples" / "portal-contract.json"
"""The portal's second contract, as docs/portal.md shows one."""
OTHER_SECRET = "whsec_" + "b3RoZXIg" * 4

OF_PORTAL = "from public.dynamics_sync_retry_queue where target = 'portal'"


async def queued(on: Stage) -> list[tuple[Any, ...]]:
    """Status, attempts, reason, code and place of the portal's entries."""
    return await on.rows(
        f"select status, attempt_count, failure_reason, error_code, payload_json ->> 'place' {OF_PORTAL}"
    )


async def settled_with(on: Stage, target: str) -> None:
    await on.until(
        f"select not exists (select from dynamics_sync.changes where target = '{target}') "
        f"and not exists (select from dynamics_sync.outbox where target = '{target}')"
    )


async def test_a_change_reaches_dynamics_and_the_portal(database: str) -> None:
    async with stage(database, portal=True) as on:
        key = await on.issue()
        await on.settled()
        assert await on.record(key) is not None
        (delivery,) = await on.deliveries()
        assert (delivery["key"], delivery["status"]) == (key, 200)
        assert await on.listed() == [str(on.mentor)]
        applied = await on.rows("select target from dynamics_sync.record_state order by target")
        assert applied == [("dynamics",), ("portal",)]


@pytest.mark.parametrize(
    "change",
    [
        "update public.certifications set status = 'expired'",
        "update public.certifications set expires_on = '2020-01-01'",
        "delete from public.certifications",
    ],
)
async def test_a_mentor_who_is_not_certified_any_more_leaves_the_listing(database: str, change: str) -> None:
    async with stage(database, portal=True) as on:
        await on.issue()
        await on.settled()
        assert await on.listed() == [str(on.mentor)]
        await on.user.execute(change.encode())
        await on.settled()
        assert await on.listed() == []
        assert await on.queue() == []


async def test_a_delivery_whose_answer_is_lost_is_repeated_without_harm(database: str) -> None:
    async with stage(database, portal=True) as on:
        await on.fault(kind="reset_after_write", path="portal", count=1)
        await on.issue()
        await on.settled()
        first, second = await on.deliveries()
        assert first["id"] == second["id"]
        assert (first["status"], first["is_repeated"]) == (None, False)
        assert (second["status"], second["is_repeated"]) == (200, True)
        assert await on.listed() == [str(on.mentor)]


async def test_each_version_of_a_record_is_another_delivery_and_later_ones_are_higher(database: str) -> None:
    async with stage(database, portal=True) as on:
        await on.issue()
        await on.settled()
        await on.user.execute("update public.certifications set status = 'expiring'")
        await on.settled()
        first, second = await on.deliveries()
        assert first["id"] != second["id"]
        assert first["version"] < second["version"]


async def test_when_the_contract_changes_nothing_is_lost_and_the_new_one_brings_it_all(database: str) -> None:
    async with stage(database, portal=True, cool_down_seconds=600) as on:
        await on.issue()
        await on.settled()
        await on.change_portal(contract="2")
        await on.user.execute("update public.certifications set status = 'expired'")
        await settled_with(on, "portal")
        ((status, attempts, reason, code, place),) = await queued(on)
        assert (status, attempts, reason, code) == (
            "requires_investigation",
            1,
            "contract_mismatch",
            "contract_mismatch",
        )
        assert place == "answer with status 422: /required (error); /properties/contract/const"
        for word in ("new version of the contract", "DYNAMICS_SYNC_PORTAL_CONTRACT", "replay"):
            assert word in explain(code, "portal")
        assert await on.listed() == [str(on.mentor)]

        on.engine.stop()
        settings = engine_settings(
            database,
            on.simulator.url,
            portal_url=on.simulator.url,
            portal_secret=PORTAL_SECRET,
            portal_contract=NEXT_CONTRACT,
        )
        async with working(settings, database) as engine:
            queue = engine.stores.queue
            await queue.replay([entry.id for entry in await queue.entries()], "tester")
            await on.settled()
            assert [entry.status for entry in await queue.entries()] == ["replayed"]
            assert await on.listed() == []


@pytest.mark.parametrize(
    ("drift", "place"),
    [
        ({"answers": "2"}, "answer: /required (id, accepted); /properties/contract/const"),
        ({"log_in_page": True}, "answer: no JSON by its content type"),
        ({"redirect": True}, "answer with status 302: no status of the contract"),
    ],
)
async def test_an_answer_outside_the_contract_is_no_success(
    database: str, drift: dict[str, object], place: str
) -> None:
    async with stage(database, portal=True) as on:
        await on.change_portal(**drift)
        await on.issue()
        await on.settled()
        assert await queued(on) == [("requires_investigation", 1, "contract_mismatch", "contract_mismatch", place)]
        assert len(await on.deliveries()) == 1


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 503}, {"kind": "timeout"}])
async def test_a_portal_that_is_down_does_not_hold_up_dynamics(database: str, fault: dict[str, object]) -> None:
    async with stage(database, portal=True, cool_down_seconds=600, request_timeout_seconds=600) as on:
        await on.fault(path="portal", **fault)
        keys = [await on.issue() for _ in range(60)]  # more than there are connections
        await settled_with(on, "dynamics")
        assert all([await on.record(key) for key in keys])
        assert await on.listed() == []
        waiting = await on.rows(
            "select (select count(*) from dynamics_sync.outbox where target = 'portal') "
            "+ (select count(*) from dynamics_sync.changes where target = 'portal')"
        )
        assert waiting[0][0] + len(await queued(on)) == 60
        assert (await on.engine.stores.breaker.state()).value == "closed"
        await on.lift_faults()


async def test_a_dynamics_that_is_down_does_not_hold_up_the_portal(database: str) -> None:
    async with stage(database, portal=True, cool_down_seconds=600) as on:
        await on.fault(kind="status", status=503)
        with capture_logs() as logs:
            await on.issue()
            await on.settled()
            await on.issue()
            await settled_with(on, "portal")
        assert [log["target"] for log in logs if log["event"] == "circuit.opened"] == ["dynamics"]
        assert len(await on.deliveries()) == 2
        assert await on.listed() == [str(on.mentor)]
        assert await queued(on) == []


async def test_a_refused_signature_is_told_and_a_secret_may_be_changed_without_a_gap(database: str) -> None:
    async with stage(database, portal=True, portal_secret=f"{OTHER_SECRET} {PORTAL_SECRET}") as on:
        await on.issue()
        await on.settled()
        await on.change_portal(secret=OTHER_SECRET)
        await on.issue()
        await on.settled()
        assert [delivery["status"] for delivery in await on.deliveries()] == [200, 200]
        await on.change_portal(secret="whsec_" + "YW5vdGhl" * 4)
        await on.issue()
        await on.settled()
        assert [entry[:4] for entry in await queued(on)] == [("requires_investigation", 1, "unauthorized", "http_401")]
        assert "DYNAMICS_SYNC_PORTAL_SECRET" in explain("http_401", "portal")


async def test_a_record_that_does_not_fit_the_contract_is_not_sent_and_its_place_is_named(
    database: str, tmp_path: Path
) -> None:
    contract = json.loads(NEXT_CONTRACT.read_text())
    attributes = contract["request"]["properties"]["data"]["properties"]["attributes"]["properties"]
    attributes["expires_on"]["pattern"] = "^2026"
    path = tmp_path / "strict.json"
    path.write_text(json.dumps(contract))
    async with stage(database, portal=True, portal_contract=path) as on:
        await on.issue()
        await on.settled()
        assert await queued(on) == [
            ("requires_investigation", 0, "unsendable", "portal.request", "$.data.attributes.expires_on")
        ]
        assert await on.deliveries() == []


@pytest.mark.parametrize("status", [429, 503])
async def test_what_the_portal_asks_for_is_waited(database: str, status: int) -> None:
    async with stage(database, portal=True) as on:
        await on.fault(kind="status", status=status, path="portal", retry_after=0.5, count=1)
        await on.issue()
        await on.settled()
        first, second = await on.deliveries()
        assert second["at"] - first["done_at"] >= 0.45
        assert await queued(on) == []


async def test_switched_off_changes_wait_for_the_portal_too(database: str) -> None:
    """R26."""
    async with stage(database, portal=True, working=False) as on:
        await on.issue()
        await on.rows(GATHER)
        waiting = await on.rows("select target from dynamics_sync.outbox order by target")
        assert waiting == [("dynamics",), ("portal",)]
        async with working(
            engine_settings(database, on.simulator.url, portal_url=on.simulator.url, portal_secret=PORTAL_SECRET),
            database,
        ):
            await on.settled()
        assert await on.listed() == [str(on.mentor)]
