"""Names, addresses, numbers, secrets and tokens are planted everywhere; nothing of them comes out (I7, R14, R16)."""

import json
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dynamics_sync.dynamics.tokens import Credentials, Token
from dynamics_sync.settings import load_settings
from support.by_hand import past_the_triggers
from support.commands import WorkerProcess, start, worker_process
from support.engine import Stage, stage

NAME, EMAIL, PHONE = "Kari Nordmann", "kari.nordmann@example.org", "+47 912 34 567"
SECRET = "Qx8~Canary.Client-Secret"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJrYXJpIn0.c2lnbmF0dXJlLWNhbmFyeQ"
PASSWORD = "wrong-database-password-canary"
PLANTED = f"{NAME} {EMAIL} {PHONE} {SECRET} {JWT}"
CANARIES = (NAME, "Nordmann", EMAIL, PHONE, "912 34 567", SECRET, *JWT.split("."), PASSWORD, "eyJ0eXAi", "Bearer")
"""The last but one is how every token of the simulator begins."""

MAPPING = f"""
[[tables]]
source = "public.people"
key = "id"
entity_set = "hlf_certifications"
logical_name = "hlf_certification"
alternate_key = "hlf_externalid"
[tables.columns]
name = "hlf_name"
born_on = {{ to = "hlf_bornon", kind = "date" }}
grade = {{ to = "hlf_grade", choices = {{ "{NAME}" = 1 }} }}
"""

TABLES = (
    "public.dynamics_sync_retry_queue",
    "dynamics_sync.attempts",
    "dynamics_sync.audit",
    "dynamics_sync.changes",
    "dynamics_sync.circuit",
    "dynamics_sync.incidents",
    "dynamics_sync.outbox",
    "dynamics_sync.reconciliation",
    "dynamics_sync.reconciliation_findings",
    "dynamics_sync.reconciliation_progress",
    "dynamics_sync.reconciliation_seen",
    "dynamics_sync.record_state",
)


async def test_nothing_personal_and_no_secret_comes_out(database: str, tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(MAPPING)
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(
            "create table public.people "
            "(id uuid primary key default gen_random_uuid(), name text, born_on date, grade text)"
        )
        owner.execute("select dynamics_sync.watch('public.people')")
    async with (
        stage(database, working=False, mapping=mapping, simulated={"clients": {"demo": SECRET}}) as on,
        worker_process(
            on,
            database,
            tmp_path,
            mapping=str(mapping),
            client_secret=SECRET,
            base_delay_ms="1",
            cool_down_seconds="1",
            token_pause_seconds="0.1",
        ) as worker,
    ):
        shown = await drive_every_path(on, worker, database, tmp_path)
        shown += await reconciliations(on, database, tmp_path, mapping)
        shown += await refusals(on, database, tmp_path, mapping)
        assert await worker.terminate() == 0
        shown += [str(await on.rows(f"select to_jsonb(t) from {table} t")) for table in TABLES]
        shown.append(worker.log.read_text())
        assert await on.rows("select count(*) from public.people") == [(8,)]
    everything = "\n".join(shown)
    found = [canary for canary in (*CANARIES, *password_of(database)) if canary in everything]
    assert found == []


async def drive_every_path(on: Stage, worker: WorkerProcess, database: str, cwd: Path) -> list[str]:
    """Send, retry, refuse, open, pause, lose the token and the database, replay; give all that a person was shown."""
    shown: list[str] = []

    async def command(*words: str) -> None:
        done = await start(*words, cwd=cwd, database_url=database, cool_down_seconds="1")
        assert done.returncode == 0, done.stderr
        shown.extend((done.stdout, done.stderr))

    async def add(grade: str = NAME, born_on: str = "1970-01-31") -> None:
        await on.user.execute(
            "insert into public.people (name, grade, born_on) values (%s, %s, %s)", [PLANTED, grade, born_on]
        )
        await on.settled()

    await add()
    held = json.dumps(list((await on.records("hlf_certifications")).values()), ensure_ascii=False)
    assert all(text in held for text in (NAME, EMAIL, PHONE, SECRET, JWT))  # so there was something to leak
    await add(grade=EMAIL)
    await add(born_on="infinity")
    await on.fault(kind="status", status=400, count=1, message=PLANTED, code=EMAIL)
    await add()
    await on.fault(kind="status", status=401, count=2, message=PLANTED)
    await add()
    await on.fault(kind="garbled", count=1)
    await add()
    await on.fault(kind="status", status=429, count=1, retry_after=1, message=PLANTED)
    await add()
    await on.fault(kind="status", status=503, count=3, message=PLANTED)
    await add()
    shown += [str(await worker.health(page)) for page in ("live", "ready", "circuit")]
    shown.append(await worker.metrics())
    assert "dynamics_sync_queue_entries" in shown[-1]
    await command("status")
    await command("circuit", "show")
    await command("queue", "list")
    await command("queue", "list", "--json")
    for entry in await on.rows(
        "select id from public.dynamics_sync_retry_queue where error_code in (%s, %s)", "http_503", "http_400"
    ):
        await command("queue", "show", str(entry[0]))
    await worker.answers("ready", 200)
    await command("queue", "replay", "--status", "pending_manual_replay", "--yes")
    await on.until("select state = 'closed' from dynamics_sync.circuit")
    await command("queue", "discard", "--all", "--yes", "--reason", "seen")
    await on.credentials(client_secret="another", revoke=True)
    await on.user.execute("update public.people set grade = %s where grade = %s", [EMAIL, EMAIL])
    await on.user.execute("update public.people set name = name || '!'")
    shown += [str(await worker.answers("ready", 503)), await worker.metrics()]
    await on.user.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname is not null"
    )
    await on.credentials(client_secret=SECRET)
    await on.settled()
    events = {json.loads(line)["event"] for line in worker.log.read_text().splitlines() if line.startswith("{")}
    assert {"sync.attempt_failed", "sync.queued", "sync.throttled", "circuit.opened", "circuit.closed"} <= events
    return shown


async def reconciliations(on: Stage, database: str, cwd: Path, mapping: Path) -> list[str]:
    """What a person is told about records that differ, and when Dynamics quotes some of them in a refusal."""
    async with past_the_triggers(on):
        await on.user.execute("update public.people set name = name || '?'")
    shown = []
    for words, status in ((), 3), (("--json",), 3):
        done = await start("reconcile", *words, cwd=cwd, **good_settings(on, database, mapping))
        assert done.returncode == status, done.stderr
        assert "hlf_name" in done.stdout
        shown += [done.stdout, done.stderr]
    for answer in ({"status": 403}, {"status": 400, "code": EMAIL}, {"status": 503}):
        await on.fault(kind="status", count=4, message=PLANTED, method="GET", **answer)
        done = await start(
            "reconcile", cwd=cwd, base_delay_ms="1", cool_down_seconds="1", **good_settings(on, database, mapping)
        )
        assert done.returncode == 1, done.stderr
        await on.lift_faults()
        shown += [done.stdout, done.stderr]
    return shown


def good_settings(on: Stage, database: str, mapping: Path) -> dict[str, str]:
    return {
        "database_url": database,
        "dynamics_url": on.simulator.url,
        "authority_url": on.simulator.url,
        "tenant_id": "demo",
        "client_id": "demo",
        "client_secret": SECRET,
        "mapping": str(mapping),
        "port": "0",
    }


async def refusals(on: Stage, database: str, cwd: Path, mapping: Path) -> list[str]:
    """What a person is told about settings that hold secrets and are wrong."""
    good = good_settings(on, database, mapping)
    wrong = [
        {"client_secret": f"{SECRET}?"},
        {"client_id": JWT},
        {"dynamics_url": f"https://demo:{SECRET}@example.org"},
        {"authority_url": f"http://{SECRET}.example.org"},
        {"database_url": make_conninfo(database, password=PASSWORD)},
        {"database_url": f"mysql://user:{PASSWORD}@host/db"},
        {"database_url": f"postgresql://user:{PASSWORD}@127.0.0.1:1/db"},
        {"max_retries": PHONE},
    ]
    shown = []
    for settings in wrong:
        done = await start("run", cwd=cwd, **(good | settings))
        assert done.returncode == 1, settings
        assert len(done.stderr) > 40
        shown += [done.stdout, done.stderr]
    return shown


def password_of(database: str) -> list[str]:
    """The password that the worker connects with, unless it is a word that proves nothing."""
    password = str(conninfo_to_dict(database).get("password") or "")
    return [password] if len(password) > 8 else []


@pytest.mark.parametrize(
    "holder",
    [
        Credentials("tenant", "client", SECRET),
        Token(JWT, 3600.0),
        load_settings(client_secret=SECRET, database_url=f"postgresql://user:{SECRET}@host/db"),
    ],
    ids=lambda holder: type(holder).__name__,
)
def test_what_holds_a_secret_does_not_show_it(holder: object) -> None:
    assert not any(canary in f"{holder!r} {holder}" for canary in CANARIES)
