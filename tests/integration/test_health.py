"""The health pages of a running worker tell what is wrong, and only that."""

from pathlib import Path
from typing import Any

from support.commands import worker_process
from support.engine import stage


def outcomes(ready: Any) -> dict[str, str]:
    return {name: check["status"] for name, check in ready["checks"].items()}


async def test_a_dynamics_that_is_down_shows_in_the_circuit_and_the_worker_stays_ready(
    database: str, tmp_path: Path
) -> None:
    async with (
        stage(database, working=False) as on,
        worker_process(on, database, tmp_path, base_delay_ms="10", cool_down_seconds="600") as worker,
    ):
        assert await worker.health("circuit") == (
            200,
            {"state": "closed", "failure_count": 0, "opened_at": None, "last_error_code": None, "retry_at": None},
        )
        await on.fault(kind="status", status=503)
        await on.issue()
        await worker.says("circuit.opened")
        _, circuit = await worker.health("circuit")
        assert (circuit["state"], circuit["failure_count"], circuit["last_error_code"]) == ("open", 3, "http_503")
        assert circuit["opened_at"] < circuit["retry_at"]
        assert (await worker.health("ready"))[0] == 200

        await on.user.execute("update dynamics_sync.circuit set opened_at = opened_at - interval '1 hour'")
        await on.lift_faults()
        key = await on.issue()
        await on.settled()
        assert await on.record(key) is not None
        assert (await worker.health("circuit"))[1]["state"] == "closed"


async def test_a_schema_that_another_version_changed_makes_it_unready(database: str, tmp_path: Path) -> None:
    async with (
        stage(database, working=False) as on,
        worker_process(on, database, tmp_path) as worker,
    ):
        await on.user.execute(
            "insert into supabase_migrations.schema_migrations (version, name) "
            "values ('29990101000000', 'dynamics_sync_future')"
        )
        ready = await worker.answers("ready", 503)
        assert outcomes(ready) == {"database": "pass", "schema": "fail", "token": "pass"}
        assert "Upgrade this program" in ready["checks"]["schema"]["detail"]
        assert await worker.health("live") == (200, {"status": "pass"})
        await on.user.execute("delete from supabase_migrations.schema_migrations where version = '29990101000000'")
        await worker.answers("ready", 200)
