"""deploy/: what its files name is what the product has, and what can be run of them runs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
import yaml
from psycopg.conninfo import make_conninfo

from dynamics_sync.cli import commands
from dynamics_sync.core.operation import DYNAMICS
from dynamics_sync.settings import CONFIG_FILE, Settings, load_settings
from dynamics_sync.sync.worker import WorkerSettings
from dynamics_sync.web.health import ANSWER_SECONDS, Health, health_app
from support.commands import worker_process
from support.engine import stage
from support.outbox import FORGET_ALL, NOTE
from support.postgres import binaries

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TEXTS = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".sql")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNIT = DEPLOY / "systemd" / "dynamics-sync@.service"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PREFIX = Settings.model_config.get("env_prefix", "")
NEEDED = {f"{PREFIX}{name}" for name in ("DATABASE_URL", "DYNAMICS_URL", "TENANT_ID", "CLIENT_ID", "CLIENT_SECRET")}
"""What has no default that is of use in production."""
MOST_AT_ONCE = 52
"""Requests of one user that Dataverse takes."""
IMAGE = f"{PROJECT['name']}:{PROJECT['version']}"
SCALER_ROLE = (DEPLOY / "postgres" / "scaler_role.sql").read_bytes()


def documents(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / path).read_text()))


BASE, KEDA = "kubernetes/base", "kubernetes/overlays/keda"
COMPOSE = documents("compose/compose.yaml")[0]
(POD,) = (document["spec"]["template"]["spec"] for document in documents(f"{BASE}/deployment.yaml"))
(WORKER,) = POD["containers"]
AUTHENTICATION, SCALED = documents(f"{KEDA}/scaledobject.yaml")
(TRIGGER,) = SCALED["spec"]["triggers"]


def unit(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def literals(base: str = BASE) -> dict[str, str]:
    """The settings of the config map."""
    (generated,) = documents(f"{base}/kustomization.yaml")[0]["configMapGenerator"]
    return dict(literal.split("=", 1) for literal in generated["literals"])


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


# Names


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_each_setting_that_is_named_is_one(path: Path) -> None:
    named = set(re.findall(rf"\b{PREFIX}([A-Z_]*[A-Z])\b", path.read_text()))
    assert {name.lower() for name in named} <= set(Settings.model_fields)


@pytest.mark.parametrize("words", [["migrate"], ["run"]])
def test_each_command_that_is_run_is_one(words: list[str]) -> None:
    assert set(words) <= set(typer.main.get_command(commands).commands)  # type: ignore[attr-defined]


def test_no_other_command_is_run() -> None:
    (start,) = unit("ExecStart")
    migrate, worker = (COMPOSE["services"][name]["command"] for name in ("migrate", "worker"))
    (first,) = POD["initContainers"]
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    (command,) = re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)
    assert [Path(start.split()[0]).name] == json.loads(entry) == list(PROJECT["scripts"])
    assert start.split()[1:] == json.loads(command) == worker == WORKER["args"] == ["run"]
    assert migrate == first["args"] == ["migrate"]


def test_what_must_be_set_is_asked_for_by_all() -> None:
    example = (DEPLOY / "environment.example").read_text()
    assert set(re.findall(r"^(\w+)=.+$", example, re.MULTILINE)) == NEEDED
    for service in COMPOSE["services"].values():
        required = {name for name, value in service["environment"].items() if value.startswith(f"${{{name}:?")}
        assert required == NEEDED
    for container in (*POD["initContainers"], WORKER):
        secrets = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"]}
        assert set(secrets) == NEEDED
        assert [reference["key"] for reference in secrets.values()] == list(secrets)
        assert not any(reference.get("optional") for reference in secrets.values())


def test_images_are_those_of_this_version() -> None:
    images = [service["image"] for service in COMPOSE["services"].values()]
    images += [container["image"] for container in (*POD["initContainers"], WORKER)]
    images += re.findall(r"-t (\S+) \.", DOCKERFILE)
    assert set(images) == {IMAGE}


def test_files_are_looked_for_where_they_are_mounted() -> None:
    (work,) = set(re.findall(r"^WORKDIR (/etc\S+)$", DOCKERFILE, re.MULTILINE))
    assert unit("WorkingDirectory") == [work]
    assert [volume.split(":")[1] for volume in COMPOSE["services"]["worker"]["volumes"]] == [work]
    assert work in [mount["mountPath"] for mount in WORKER["volumeMounts"]]
    assert CONFIG_FILE in UNIT.read_text()


# Ports, pages and times


def test_pages_are_served_where_they_are_asked_for() -> None:
    (port,) = WORKER["ports"]
    assert str(port["containerPort"]) == literals()["DYNAMICS_SYNC_PORT"]
    assert literals()["DYNAMICS_SYNC_HOST"] == "0.0.0.0"
    assert port["containerPort"] == Settings.model_fields["port"].default
    (scraped,) = (each["spec"]["template"]["metadata"]["annotations"] for each in documents(f"{BASE}/deployment.yaml"))
    assert scraped["prometheus.io/port"] == literals()["DYNAMICS_SYNC_PORT"]
    (exposed,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert f"DYNAMICS_SYNC_PORT={exposed}" in DOCKERFILE
    assert int(exposed) == port["containerPort"]


def test_probes_ask_pages_that_there_are_and_wait_for_their_answers() -> None:
    pages = {route.path for route in health_app(Health({}, {})).routes if hasattr(route, "path")}
    probes = [WORKER[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")]
    assert [probe["httpGet"]["path"] for probe in probes] == ["/health/live", "/health/live", "/health/ready"]
    assert {probe["httpGet"]["path"] for probe in probes} <= pages
    assert WORKER["readinessProbe"]["timeoutSeconds"] > ANSWER_SECONDS


def test_a_worker_has_the_time_that_it_takes_to_stop() -> None:
    needed = WorkerSettings().shutdown_seconds
    assert POD["terminationGracePeriodSeconds"] > needed
    assert seconds(COMPOSE["services"]["worker"]["stop_grace_period"]) > needed
    assert int(unit("TimeoutStopSec")[0]) > needed


def test_all_workers_together_send_no_more_at_once_than_dataverse_takes() -> None:
    concurrency = int(literals()["DYNAMICS_SYNC_CONCURRENCY"])
    assert SCALED["spec"]["maxReplicaCount"] * concurrency <= MOST_AT_ONCE
    (of_unit,) = re.findall(r"CONCURRENCY=(\d+)", unit("Environment")[0])
    assert 2 * int(of_unit) <= MOST_AT_ONCE
    worker = COMPOSE["services"]["worker"]
    replicas = defaults(worker["deploy"]["replicas"])
    assert int(replicas) * int(defaults(worker["environment"]["DYNAMICS_SYNC_CONCURRENCY"])) <= MOST_AT_ONCE


def defaults(interpolated: str) -> str:
    """The text, with no variable set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", interpolated)


# Confinement


def test_containers_run_as_nobody_in_particular_and_write_nothing() -> None:
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    assert POD["securityContext"]["runAsNonRoot"]
    assert POD["securityContext"]["runAsUser"] == 10001
    for container in (*POD["initContainers"], WORKER):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    for service in COMPOSE["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]


def systemd_analyze(*words: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    (start,) = unit("ExecStart")
    # It wants to see the program.
    installed = tmp_path / UNIT.name
    installed.write_text(UNIT.read_text().replace(shlex.split(start)[0], sys.executable))
    done = systemd_analyze("verify", "--man=no", str(installed))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_calls_the_unit_well_confined() -> None:
    done = systemd_analyze("security", "--offline=true", "--threshold=15", str(UNIT))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("missing", ["DATABASE_URL", "DYNAMICS_URL"])
def test_without_an_address_the_unit_does_not_start(missing: str) -> None:
    environment = dict.fromkeys(NEEDED, "x") | {f"{PREFIX}{missing}": ""}
    checks = [shlex.split(check.replace("$$", "$")) for check in unit("ExecStartPre")]
    done = [subprocess.run(check, env=environment, capture_output=True, text=True, check=False) for check in checks]
    assert [run.returncode != 0 for run in done].count(True) == 1
    assert f"{PREFIX}{missing}: must be set in {unit('EnvironmentFile')[0]}" in "".join(run.stderr for run in done)


def test_the_units_port_is_the_name_of_its_instance() -> None:
    assert "DYNAMICS_SYNC_PORT=%i" in unit("Environment")[0].split()


# The image


def test_the_image_is_built_from_what_there_is() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text()
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}\n" in ignored
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "src"} <= set(copied)
    assert "--require-hashes -r /tmp/runtime.txt" in DOCKERFILE


def test_what_it_leaves_out_again_is_what_only_builds_the_package_or_is_embedded() -> None:
    (words,) = re.findall(r"pip uninstall --yes((?: |\\\n|[\w-])+)$", DOCKERFILE, re.MULTILINE)
    removed = set(words.replace("\\\n", " ").split()) - {"pip"}
    locked = set(
        re.findall(r"^([\w.-]+)(?:\[\w+\])?==", (ROOT / "requirements" / "runtime.txt").read_text(), re.MULTILINE)
    )
    assert removed <= locked
    assert removed & {re.split(r"[>\[]", item)[0] for item in PROJECT["dependencies"]} == set()


async def test_the_images_health_check_tells_a_worker_from_none(database: str, tmp_path: Path) -> None:
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*?\])$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    python, *words = json.loads(check)
    assert python == "python"

    def status(url: str) -> int:
        environment = os.environ | {"DYNAMICS_SYNC_PORT": url.rsplit(":", 1)[1]}
        command = [sys.executable, *words]
        return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=False).returncode

    async with stage(database, working=False) as on:
        async with worker_process(on, database, tmp_path) as worker:
            assert status(worker.url) == 0
        assert status(worker.url) != 0


# Kubernetes' parts


@pytest.mark.parametrize("overlay", [BASE, KEDA])
def test_kustomizations_name_files_that_there_are(overlay: str) -> None:
    (kustomization,) = documents(f"{overlay}/kustomization.yaml")
    for resource in kustomization["resources"]:
        assert (DEPLOY / overlay / resource).exists()
    assert {path.name for path in (DEPLOY / overlay).iterdir()} == {
        "kustomization.yaml",
        *(resource for resource in kustomization["resources"] if not resource.startswith("..")),
    }


def test_keda_scales_what_there_is_and_says_alone_how_many() -> None:
    (deployment,) = documents(f"{BASE}/deployment.yaml")
    assert SCALED["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert TRIGGER["authenticationRef"]["name"] == AUTHENTICATION["metadata"]["name"]
    (patched,) = documents(f"{KEDA}/kustomization.yaml")[0]["patches"]
    assert yaml.safe_load(patched["patch"]) == [{"op": "remove", "path": "/spec/replicas"}]
    assert patched["target"] == {"kind": deployment["kind"], "name": deployment["metadata"]["name"]}


# What decides how many


@pytest.fixture
def scaler(database: str) -> Iterator[str]:
    """The address of a database, as the role that only counts."""
    with psycopg.connect(database, autocommit=True) as owner:
        for _ in range(2):
            owner.execute(SCALER_ROLE)
        owner.execute("alter role dynamics_sync_scaler password 'scaler'")
        yield make_conninfo(database, user="dynamics_sync_scaler", password="scaler")
        owner.execute("drop owned by dynamics_sync_scaler; drop role dynamics_sync_scaler")


@pytest.mark.every_postgres
def test_keda_counts_what_waits_for_dynamics_up_to_what_all_workers_are_for(database: str, scaler: str) -> None:
    each, most = int(TRIGGER["metadata"]["targetQueryValue"]), SCALED["spec"]["maxReplicaCount"]
    fill = """
    insert into dynamics_sync.outbox (target, source_table, record_key, operation_type)
    select %s, 'public.t', n::text, 'upsert' from generate_series(1, %s) as n
    """
    with psycopg.connect(database, autocommit=True) as owner, psycopg.connect(scaler, autocommit=True) as keda:

        def counted() -> object:
            ((number,),) = keda.execute(TRIGGER["metadata"]["query"].encode()).fetchall()
            return number

        assert counted() == 0
        owner.execute(fill, ["portal", 10])
        owner.execute(fill, [DYNAMICS, 7])
        assert counted() == 7
        owner.execute(NOTE, [DYNAMICS, "public.t", "upsert", [], ["changed just now"]])
        owner.execute(NOTE, ["portal", "public.t", "upsert", [], ["changed just now"]])
        assert counted() == 8
        owner.execute(FORGET_ALL)
        owner.execute(fill, [DYNAMICS, most * each + 1])
        assert counted() == most * each


REACHED = """
select oid::regclass::text from pg_class
where relnamespace::regnamespace::text <> all (%(systems)s) and relkind in ('r', 'p', 'v', 'm', 'f')
  and (
    has_table_privilege('dynamics_sync_scaler', oid, 'select, insert, update, delete, truncate, references, trigger')
    or has_any_column_privilege('dynamics_sync_scaler', oid, 'select, insert, update, references')
  )
union all
select seqrelid::regclass::text from pg_sequence
where has_sequence_privilege('dynamics_sync_scaler', seqrelid, 'usage, select, update')
union all
select oid::regprocedure::text from pg_proc
where pronamespace::regnamespace::text <> all (%(systems)s)
  and has_schema_privilege('dynamics_sync_scaler', pronamespace, 'usage')
  and has_function_privilege('dynamics_sync_scaler', oid, 'execute')
union all
select nspname from pg_namespace where has_schema_privilege('dynamics_sync_scaler', oid, 'create')
union all
select rolname from pg_roles
where rolname <> 'dynamics_sync_scaler' and pg_has_role('dynamics_sync_scaler', oid, 'member')
union all
select rolname from pg_roles
where rolname = 'dynamics_sync_scaler' and (rolsuper or rolcreaterole or rolcreatedb or rolbypassrls or rolreplication)
"""


@pytest.mark.every_postgres
def test_the_role_that_counts_can_do_nothing_else(database: str, scaler: str) -> None:
    systems = ["pg_catalog", "information_schema"]
    with psycopg.connect(database) as owner:
        reached = [row[0] for row in owner.execute(REACHED, {"systems": systems})]
    assert reached == ["dynamics_sync.waiting(text,integer)"]
    for statement in (b"select * from dynamics_sync.outbox", b"select * from public.dynamics_sync_retry_queue"):
        with psycopg.connect(scaler) as keda, pytest.raises(psycopg.errors.InsufficientPrivilege):
            keda.execute(statement)


def test_what_waits_is_still_counted_once_the_outbox_is_partitioned(database: str, scaler: str) -> None:
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute((DEPLOY / "postgres" / "partition_outbox.sql").read_bytes())
        owner.execute("select dynamics_sync.mark_dirty('dynamics', 'public.t', '1')")
    with psycopg.connect(scaler) as keda:
        assert keda.execute(TRIGGER["metadata"]["query"].encode()).fetchall() == [(1,)]


# What the pages say

SCALING = (ROOT / "docs" / "scaling.md").read_text()
PAGES = {"docs/scaling.md": SCALING, "deploy/README.md": (DEPLOY / "README.md").read_text()}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_the_pages_name_are_there(page: str) -> None:
    named = {link.partition("#")[0] for link in re.findall(r"\]\(([^)h][^)]*)\)", PAGES[page])} - {"benchmarks.md"}
    assert [link for link in named if not ((ROOT / page).parent / link).exists()] == []
    paths = set(re.findall(r"(?<![\w./])deploy/[\w./@-]*[\w@]", PAGES[page])) - {"deploy/compose/.env"}
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_what_psql_is_to_run_runs(database: str) -> None:
    commands = {line for page in PAGES.values() for line in re.findall(r"^    (psql .* -f .*)$", page, re.MULTILINE)}
    environment = {"PATH": f"{binaries('pg15')}:{os.environ['PATH']}", f"{PREFIX}DATABASE_URL": database}
    for command in commands:
        subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, check=True, capture_output=True)
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("drop owned by dynamics_sync_scaler; drop role dynamics_sync_scaler")
    assert {command.rsplit("/", 1)[1] for command in commands} == {"partition_outbox.sql", "scaler_role.sql"}


def test_statements_run_as_they_stand(database: str) -> None:
    statements = re.findall(r"^    (select [^;]*;)$|`(select [^;]*;)`", SCALING, re.MULTILINE)
    assert len(statements) == 5
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("create table public.your_table (id integer primary key)")
        for statement in map("".join, statements):
            owner.execute(statement.encode())


def test_a_further_environment_has_its_name_everywhere(database: str, scaler: str) -> None:
    (named,) = set(re.findall(r"target => '(\w+)'", SCALING))
    (setting,) = re.findall(r"^    (DYNAMICS_SYNC_TARGET=.*)$", SCALING, re.MULTILINE)
    (overlay,) = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", SCALING, re.DOTALL))
    (merged,) = overlay["configMapGenerator"]
    assert [setting] == merged["literals"] == [f"DYNAMICS_SYNC_TARGET={named}"]
    assert merged["name"] == documents(f"{BASE}/kustomization.yaml")[0]["configMapGenerator"][0]["name"]
    ((patch,),) = (yaml.safe_load(each["patch"]) for each in overlay["patches"])
    assert patch["path"] == "/spec/triggers/0/metadata/query"
    assert patch["value"] == TRIGGER["metadata"]["query"].replace(f"'{DYNAMICS}'", f"'{named}'")
    with psycopg.connect(scaler) as connection:
        assert connection.execute(patch["value"]).fetchone() == (0,)
    assert defaults(COMPOSE["services"]["worker"]["environment"]["DYNAMICS_SYNC_TARGET"]) == DYNAMICS
    assert load_settings().target == DYNAMICS


def test_metrics_that_are_to_be_watched_are_there() -> None:
    served = (ROOT / "src" / "dynamics_sync" / "web" / "metrics.py").read_text()
    watched = set(re.findall(r"`(dynamics_sync_[a-z_]+)", SCALING)) - {"dynamics_sync_scaler"}
    assert [name for name in watched if f'"{name}"' not in served] == []
    assert watched != set()


def test_the_table_of_what_the_limits_allow_is_what_the_formula_gives() -> None:
    rows = re.findall(r"^\|.*?([\d,]+) records?\b.*\| ([\d.]+) s \| ([\d,]+) \| ([\d,]+) \|", SCALING, re.MULTILINE)
    assert len(rows) == 5
    for records, taken, *stated in ([cell.replace(",", "") for cell in row] for row in rows):
        each_second = int(records) * min(6000 / 300, 1200 / 300 / float(taken))
        assert [float(cell) for cell in stated] == [each_second, 3600 * each_second]


def test_an_overlay_of_ones_own_merges_what_the_base_has() -> None:
    (own,) = re.findall(r"```yaml\n(.*?)```", PAGES["deploy/README.md"], re.DOTALL)
    overlay = yaml.safe_load(own)
    (generated,) = documents(f"{BASE}/kustomization.yaml")[0]["configMapGenerator"]
    settings, files = overlay["configMapGenerator"]
    assert settings["name"] == generated["name"]
    assert files["name"] in [volume["configMap"]["name"] for volume in POD["volumes"] if "configMap" in volume]
    assert [image["name"] for image in overlay["images"]] == [IMAGE.partition(":")[0]]
