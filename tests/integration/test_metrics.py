"""`/metrics` tells Prometheus how it is, from the database, and answers whatever happens."""

from collections.abc import Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from support.commands import worker_process
from support.engine import stage
from support.histories import first_form, histories
from support.webhooks import SECRET, Dataverse


def numbers(page: str, name: str) -> Mapping[str, float]:
    """The values of a metric, by its labels in alphabetical order of their names."""
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return {
        " ".join(value for _, value in sorted(sample.labels.items())): sample.value
        for sample in samples
        if sample.name == name
    }


async def test_the_page_tells_what_waits_what_failed_and_what_outgrows(database: str, tmp_path: Path) -> None:
    with histories(database) as at:
        at.certification([first_form(n) for n in range(501)])
    async with (
        stage(database, working=False) as on,
        worker_process(on, database, tmp_path, base_delay_ms="1", cool_down_seconds="600") as worker,
    ):
        await worker.says("history.oversized")
        page = await worker.metrics()
        assert numbers(page, "dynamics_sync_up") == {"": 1}
        assert numbers(page, "dynamics_sync_outbox_waiting") == {"": 0}
        assert numbers(page, "dynamics_sync_oversized_histories") == {"": 1}
        assert numbers(page, "dynamics_sync_circuit_state") == {
            "closed dynamics": 1,
            "open dynamics": 0,
            "half_open dynamics": 0,
        }
        await on.fault(kind="status", status=503)
        await on.issue()
        await worker.says("circuit.opened")
        await on.issue()
        await on.until("select (select count(*) from dynamics_sync.changes) + count(*) = 1 from dynamics_sync.outbox")
        page = await worker.metrics()
        assert numbers(page, "dynamics_sync_outbox_waiting") == {"": 1}
        assert numbers(page, "dynamics_sync_circuit_state")["open dynamics"] == 1
        queued = numbers(page, "dynamics_sync_queue_entries")
        assert (queued["pending_manual_replay"], sum(queued.values())) == (1, 1)


async def test_webhooks_that_nothing_understands_are_counted(database: str, tmp_path: Path) -> None:
    webhooks = {"webhooks": "on", "webhook_secret": SECRET}
    async with (
        stage(database, working=False) as on,
        worker_process(on, database, tmp_path, **webhooks) as worker,
    ):
        assert await Dataverse(worker.url, on.http).deliver(b"what is this?") == 202
        await worker.says("inbox.unrecognised")
        told = numbers(await worker.metrics(), "dynamics_sync_inbox_deliveries")
        assert (told["unrecognised"], sum(told.values())) == (1, 1)


async def test_a_table_that_cannot_be_read_leaves_out_only_what_it_tells(database: str, tmp_path: Path) -> None:
    async with (
        stage(database, working=False) as on,
        worker_process(on, database, tmp_path) as worker,
    ):
        await on.user.execute("begin")
        await on.user.execute("lock table public.certifications")
        page = await worker.metrics()
        await on.user.execute("rollback")
        assert numbers(page, "dynamics_sync_up") == {"": 0}
        assert numbers(page, "dynamics_sync_oversized_histories") == {}
        assert numbers(page, "dynamics_sync_outbox_waiting") == {"": 0}
        assert numbers(await worker.metrics(), "dynamics_sync_up") == {"": 1}
