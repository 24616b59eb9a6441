"""Fixtures: real PostgreSQL servers. What a machine lacks is left out with one line that names it."""

import os
import signal
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import ExitStack

import pytest

from dynamics_sync.postgres.connections import Connection, connect
from support.database_clock import DatabaseClock
from support.pooler import engines_through, pgbouncer
from support.postgres import SERVERS, Cluster, binaries, cluster

REQUIRE_ALL = os.environ.get("DYNAMICS_SYNC_TEST_REQUIRE_ALL") == "1"
LONGEST = (
    "tests/simulation/test_simulation.py",
    "tests/chaos/test_chaos.py",
    "tests/packaging/test_wheel.py",
    "tests/simulation/test_long_outage.py",
    "tests/simulation/test_drain.py",
)
"""Files that begin first. Else one process is left with them at the end, and the others have nothing to do."""
POOLED = " pooled"
"""Behind a server's name: engines reach it through a pooler."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pooler", action="store_true", help="let all engines go through PgBouncer in transaction mode")


def pytest_configure(config: pytest.Config) -> None:
    """SIGTERM ends a run as Ctrl-C does: nothing that a test has started is left behind. A shell's background job would
    ignore Ctrl-C, and so would all that it starts."""
    config.addinivalue_line("markers", "pooled_too: runs a second time with engines behind a pooler")
    config.addinivalue_line("markers", "direct: no pooler stands before the database, whatever is asked for")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: files.get(item.nodeid.partition("::")[0], len(files)))


@pytest.fixture(scope="session")
def clusters() -> Iterator[dict[str, Cluster]]:
    """Servers by name, started when first asked for."""
    with ExitStack() as stack:

        class Started(dict[str, Cluster]):
            def __missing__(self, name: str) -> Cluster:
                self[name] = stack.enter_context(cluster(binaries(name)))
                return self[name]

        yield Started()


@pytest.fixture(scope="session")
def poolers(clusters: dict[str, Cluster]) -> Iterator[dict[str, int]]:
    """The ports of poolers before the servers, started when first asked for."""
    with ExitStack() as stack:

        class Started(dict[str, int]):
            def __missing__(self, name: str) -> int:
                self[name] = stack.enter_context(pgbouncer(clusters[name].url))
                return self[name]

        yield Started()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" not in metafunc.fixturenames:
        return
    marked = metafunc.definition.get_closest_marker
    servers = [*SERVERS] if marked("every_postgres") else ["pg18"]
    if metafunc.config.getoption("--pooler"):
        servers = servers if marked("direct") else [name + POOLED for name in servers]
    elif marked("pooled_too"):
        servers.append("pg18" + POOLED)
    metafunc.parametrize("server", servers, indirect=True)


@pytest.fixture
def server(request: pytest.FixtureRequest, clusters: dict[str, Cluster], poolers: dict[str, int]) -> Iterator[Cluster]:
    """The server that the test runs on."""
    name = request.param.removesuffix(POOLED)
    if name == request.param:
        yield clusters[name]
        return
    with engines_through(poolers[name], clusters[name].url):
        yield clusters[name]


@pytest.fixture
def database(server: Cluster) -> Iterator[str]:
    """The address of a fresh, migrated database."""
    with server.database() as url:
        yield url


@pytest.fixture
def empty_database(server: Cluster) -> Iterator[str]:
    """The address of a database without our schema."""
    with server.database(migrated=False) as url:
        yield url


@pytest.fixture
async def user(database: str) -> AsyncIterator[Connection]:
    """Somebody who changes records."""
    async with await connect(database) as connection:
        yield connection


@pytest.fixture
async def database_clock(user: Connection) -> DatabaseClock:
    """The clock of the database, for connections that are made from now on."""
    clock = DatabaseClock(user)
    await clock.install()
    return clock


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With DYNAMICS_SYNC_TEST_REQUIRE_ALL=1, what would be left out has failed, for whatever reason."""
    report = yield
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"left out, but everything is required: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = {report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])}
    for reason in sorted(reasons):
        terminalreporter.write_line(f"LEFT OUT: {reason.removeprefix('Skipped: ')}", yellow=True)
