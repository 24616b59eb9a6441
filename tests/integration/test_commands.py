"""The commands as a person runs them: real processes, real servers."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from support.commands import COMMAND, refused, run
from support.ports import free_port


def test_migrate_status_and_an_empty_queue(empty_database: str, tmp_path: Path) -> None:
    assert "applied" in run("migrate", cwd=tmp_path, database_url=empty_database).stdout
    assert "up to date" in run("migrate", cwd=tmp_path, database_url=empty_database).stdout
    status = json.loads(run("status", "--json", cwd=tmp_path, database_url=empty_database).stdout)
    assert (status["enabled"], status["waiting"], status["circuit"]["state"]) == (True, 0, "closed")
    assert json.loads(run("queue", "list", "--json", cwd=tmp_path, database_url=empty_database).stdout) == []
    circuit = json.loads(run("circuit", "show", "--json", cwd=tmp_path, database_url=empty_database).stdout)
    assert circuit["state"] == "closed"


def test_a_missing_schema_is_told(empty_database: str, tmp_path: Path) -> None:
    refused(run("status", cwd=tmp_path, database_url=empty_database), "dynamics-sync migrate")


def test_a_wrong_password_is_told_and_not_shown(database: str, tmp_path: Path) -> None:
    wrong = database.replace("postgres:", "postgres:hunter2", 1).replace("hunter2", "hunter2x", 1)
    done = run("status", cwd=tmp_path, database_url=wrong)
    refused(done, "password is wrong")
    assert "hunter2" not in done.stderr


def test_no_server_is_told(tmp_path: Path) -> None:
    url = f"postgresql://u:p@127.0.0.1:{free_port()}/x"
    refused(run("status", cwd=tmp_path, database_url=url), "Cannot connect")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"max_retries": "many"}, "DYNAMICS_SYNC_MAX_RETRIES"),
        ({"dynamics_url": "https://x.invalid"}, "DYNAMICS_SYNC_TENANT_ID"),
        ({"mapping": "absent.toml"}, "DYNAMICS_SYNC_MAPPING"),
    ],
)
def test_wrong_settings_are_named(database: str, tmp_path: Path, settings: dict[str, str], word: str) -> None:
    refused(run("run", cwd=tmp_path, database_url=database, **settings), word)


def test_a_half_written_file_is_told(database: str, tmp_path: Path) -> None:
    (tmp_path / "dynamics-sync.toml").write_text("max_retries = ")
    refused(run("status", cwd=tmp_path, database_url=database), "dynamics-sync.toml is not valid TOML")


def test_a_mapping_that_does_not_fit_names_each_place(database: str, tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text(
        '[[tables]]\nsource = "public.certifications"\nkey = "id"\nentity_set = "a"\nlogical_name = "b"\n'
        'alternate_key = "c"\n[tables.columns]\nabsent = "d"\n'
    )
    refused(run("run", cwd=tmp_path, database_url=database, mapping="map.toml"), "has no column absent")


def test_a_wrong_client_secret_is_told(database: str, tmp_path: Path) -> None:
    port = free_port()
    simulator = subprocess.Popen([*COMMAND, "simulator", "--port", str(port)], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/_simulator/requests")
        url = f"http://127.0.0.1:{port}"
        dynamics = {"dynamics_url": url, "authority_url": url, "tenant_id": "t", "client_id": "demo"}
        done = run("run", cwd=tmp_path, database_url=database, client_secret="s3cret-wrong", port="0", **dynamics)
        refused(done, "DYNAMICS_SYNC_CLIENT_SECRET")
        assert "s3cret-wrong" not in done.stderr
    finally:
        simulator.terminate()
        assert simulator.wait(10) == 0


def test_run_serves_health_and_stops_on_sigterm(database: str, tmp_path: Path) -> None:
    port = free_port()
    environment = {**os.environ, "DYNAMICS_SYNC_DATABASE_URL": database, "DYNAMICS_SYNC_PORT": str(port)}
    process = subprocess.Popen([*COMMAND, "run"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert wait_for(f"http://127.0.0.1:{port}/health/live") == {"status": "pass"}
        ready = wait_for(f"http://127.0.0.1:{port}/health/ready")
        assert {check["status"] for check in ready["checks"].values()} == {"pass"}
        assert wait_for(f"http://127.0.0.1:{port}/health/circuit")["state"] == "closed"
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "SIMULATOR" in errors


def test_demo_adds_up(tmp_path: Path) -> None:
    done = run("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Nothing was lost" in done.stdout


def wait_for(url: str) -> dict[str, dict[str, dict[str, str]]]:
    for _ in range(200):
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                document: dict[str, dict[str, dict[str, str]]] = json.load(response)
                return document
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"{url} does not answer")
