"""Fixtures: real PostgreSQL servers. What a machine lacks is left out with one line that names it."""

import os
import signal
from collections.abc import AsyncIterator, Generator, Iterator

import pytest

from dynamics_sync.postgres.connections import Connection, connect
from support.database_clock import DatabaseClock
from support.postgres import SERVERS, Cluster, binaries, cluster

REQUIRE_ALL = os.environ.get("DYNAMICS_SYNC_TEST_REQUIRE_ALL") == "1"


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: nothing that a test has started is left behind. A shell's background job would
    ignore Ctrl-C, and so would all that it starts."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


@pytest.fixture(scope="session")
def clusters() -> Iterator[dict[str, Cluster]]:
    """Servers by name, started when first asked for."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        class Started(dict[str, Cluster]):
            def __missing__(self, name: str) -> Cluster:
                self[name] = stack.enter_context(cluster(binaries(name)))
                return self[name]

        yield Started()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        every = metafunc.definition.get_closest_marker("every_postgres")
        metafunc.parametrize("server", SERVERS if every else ["pg18"], indirect=True)


@pytest.fixture
def server(request: pytest.FixtureRequest, clusters: dict[str, Cluster]) -> Cluster:
    """The server that the test runs on."""
    return clusters[request.param]


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
