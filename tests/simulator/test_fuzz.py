"""Whatever is sent, nothing goes wrong that Dataverse would not call the client's own mistake."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TypeVar

import aiohttp
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dynamics_sync.simulator import Simulator, SimulatorConfig
from dynamics_sync.simulator.batch import run_batch
from dynamics_sync.simulator.errors import DataverseError
from dynamics_sync.simulator.filters import parse_filter
from dynamics_sync.simulator.messages import Request
from dynamics_sync.simulator.multipart import split_parts
from dynamics_sync.simulator.store import Store
from dynamics_sync.simulator.webapi import answer

from .wire import ROOT, TABLES, Client

Result = TypeVar("Result")
A_GUID = "00000000-0000-0000-0000-0000000000a1"
ROW: Mapping[str, Any] = {"name": "Ann", "size": 3, "share": 1.5, "ok": True, "none": None}


@contextmanager
def only_clients_mistakes() -> Iterator[None]:
    try:
        yield
    except DataverseError as error:
        if not 400 <= error.status < 500:
            pytest.fail(f"{error.status} {error.message}")


# Filters

VALUES: dict[str, list[str]] = {
    "name": ["'Ann'", "'ann'", "'it''s'", "null", "name"],
    "size": ["3", "-1", "3.5", "null", "share"],
    "ok": ["true", "false", "null"],
    "none": ["null", "'x'"],
}


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[str, bool]:
    """An expression, and what Python says of it."""
    name = draw(st.sampled_from(sorted(VALUES)))
    operator = draw(st.sampled_from(["eq", "ne", "gt", "ge", "lt", "le"]))
    text = draw(st.sampled_from(VALUES[name]))
    literals = {"null": None, "true": True, "false": False, "name": "Ann", "share": 1.5}
    value = literals[text] if text in literals else (text[1:-1] if text[0] == "'" else float(text))
    left = ROW[name]
    if isinstance(left, str) and isinstance(value, str):
        left, value = left.lower(), value.lower()
    if left is None or value is None:
        return f"{name} {operator} {text}", {"eq": left is value, "ne": left is not value}.get(operator, False)
    table = {"eq": left == value, "ne": left != value, "gt": left > value}
    table |= {"ge": left >= value, "lt": left < value, "le": left <= value}
    return f"{name} {operator} {text}", table[operator]


def combined(inner: st.SearchStrategy[tuple[str, bool]]) -> st.SearchStrategy[tuple[str, bool]]:
    pairs = st.tuples(inner, inner)
    return (
        inner.map(lambda one: (f"not ({one[0]})", not one[1]))
        | pairs.map(lambda two: (f"({two[0][0]}) and ({two[1][0]})", two[0][1] and two[1][1]))
        | pairs.map(lambda two: (f"({two[0][0]} or {two[1][0]})", two[0][1] or two[1][1]))
    )


@given(st.recursive(comparisons(), combined, max_leaves=8))
def test_a_filter_means_what_it_says(case: tuple[str, bool]) -> None:
    expression, expected = case
    assert parse_filter(expression, {}, ROW.__contains__)(ROW) is expected


WORDS = [
    "name",
    "size",
    "eq",
    "gt",
    "and",
    "or",
    "not",
    "(",
    ")",
    "contains(",
    ",",
    "'x'",
    "''",
    "3",
    "null",
    "@p",
    "  ",
]


@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text(max_size=40), st.text(max_size=10))
@example("size eq " + "9" * 5000, "")
@example("name eq 9999-99-99T99:99:99Z", "")
@example("name eq 0001-01-01T00:00:00+23:59", "")
@example("@p eq @p", "@p")
def test_no_filter_breaks_the_parser(expression: str, alias: str) -> None:
    with only_clients_mistakes():
        parse_filter(expression, {"@p": alias}, ROW.__contains__)(ROW)


# Batches

bodies = st.binary(max_size=30).filter(lambda body: b"--b" not in body)


@given(st.lists(bodies, min_size=1, max_size=5), st.sampled_from(["\r\n", "\n"]), st.booleans(), st.booleans())
def test_a_multipart_body_is_split_at_its_boundaries(
    written: list[bytes], end: str, has_last_line_end: bool, is_quoted: bool
) -> None:
    line = end.encode()
    head = b"Content-Type: application/http" + line + line
    text = b"".join(b"--b" + line + head + body + line for body in written) + b"--b--" + line * has_last_line_end
    parts = split_parts('multipart/mixed; boundary="b"' if is_quoted else "multipart/mixed; boundary=b", text)
    assert [part.headers for part in parts] == [{"content-type": "application/http"}] * len(written)
    assert [part.body for part in parts] == [body.rstrip(b"\r") if end == "\n" else body for body in written]


PIECES = [
    "--b\n", "--b--", "--c\n", "--c--\n", "\n", "\r\n", "Content-Type: application/http\n", "Content-ID: 1\n", "$1",
    "Content-Type: multipart/mixed; boundary=c\n\n", "Content-Type: multipart/mixed\n\n",
    f"POST {ROOT}/tasks HTTP/1.1\n",
    '{"subject":"x"}', "PATCH http://[ HTTP/1.1\n", "GET $1/x HTTP/1.1\n", f"DELETE {ROOT}/tasks({A_GUID}) HTTP/1.1\n",
    '{"PrimaryContact@odata.bind":"$2"}', "\x00", "é", "POST $batch HTTP/1.1\n",
]  # fmt: skip


async def at_once(request: Request, work: Callable[[], Result]) -> Result:
    return work()


@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join), st.sampled_from(["", "odata.continue-on-error"]))
def test_no_batch_breaks_the_simulator(text: str, prefer: str) -> None:
    headers = {"content-type": "multipart/mixed; boundary=b", "prefer": prefer}
    request = Request("POST", "$batch", {}, headers, text.encode(), "http://localhost")
    with only_clients_mistakes():
        assert asyncio.run(run_batch(Store(TABLES, lambda: 0.0), request, answer, at_once)).status < 500


# The whole, over sockets

names = st.sampled_from(
    ["accounts", "contacts", "WhoAmI", "EntityDefinitions", "sdkmessagefilters", "$batch", "BulkDelete", "nothing", ""]
    + ["serviceendpoints", "asyncoperations", "sdkmessageprocessingsteps"]
)
keys = st.sampled_from(
    [
        "",
        f"({A_GUID})",
        "(accountnumber='A1')",
        "(accountnumber=1)",
        "(accountnumber=null)",
        "(number=1,region='x')",
        "(LogicalName='account')",
        "(",
        "()",
        "(a='%2F')",
        "(accountnumber='%0D%0Ax: y')",
        "(accountnumber='%F0%9F%98%80')",
    ]
)
rests = st.sampled_from(
    ["", "/$count", "/name", "/PrimaryContact/$ref", "/Keys", "/Attributes", "/a/b/c", "//", "/%ff", "/'", "/("]
    + [f"/Microsoft.Dynamics.CRM.{message}Multiple" for message in ("Create", "Update", "Upsert")]
)
queries = st.dictionaries(
    st.sampled_from(["$filter", "$select", "$top", "$orderby", "$count", "$skiptoken", "$deltatoken", "$expand", "@p"]),
    st.sampled_from(["name eq 'x'", "name", "name desc", "5", "-1", "²", "true", "", "*", "name eq @p", "9" * 30, ","]),
    max_size=3,
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
properties = st.sampled_from(
    [column.name for column in TABLES[0].columns]
    + ["accountid", "@odata.type", "@odata.id", "PrimaryContact@odata.bind", "statecode", "statuscode", "value", "x"]
)
fitting = st.sampled_from(
    [
        "Microsoft.Dynamics.CRM.account",
        "accounts(accountnumber='A1')",
        f"/contacts({A_GUID})",
        A_GUID,
        "2024-01-01",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "\ud800",
        "http://[",
        "contacts(",
        "\r\n",
        1,
    ]
)
rows = st.dictionaries(properties, values | fitting, max_size=5)
documents = rows | st.fixed_dictionaries({"Targets": st.lists(rows, max_size=3) | values}) | values
raw_bodies = documents.map(lambda document: json.dumps(document).encode()) | st.binary(max_size=60)
header_sets = st.fixed_dictionaries(
    {},
    optional={
        "Prefer": st.sampled_from(
            ["return=representation", "odata.maxpagesize=2", "odata.maxpagesize=²", "odata.track-changes", ",,=", "="]
        ),
        "If-Match": st.sampled_from(["*", 'W/"1"', "", "x"]),
        "If-None-Match": st.sampled_from(["*", "null", 'W/"1"']),
        "Content-Type": st.sampled_from(["multipart/mixed; boundary=b", "application/json", "multipart/mixed", "x"]),
        "Content-Encoding": st.sampled_from(["gzip", "deflate", "x"]),
        "MSCRM.SuppressDuplicateDetection": st.just("false"),
    },
)


@pytest.fixture(scope="module")
def loop_of_our_own() -> Iterator[asyncio.Runner]:
    """One simulator for all examples, so it needs a loop that outlives them."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def fuzzed(loop_of_our_own: asyncio.Runner) -> Iterator[tuple[Simulator, Client]]:
    open_ones = AsyncExitStack()

    async def started() -> tuple[Simulator, Client]:
        simulator = await open_ones.enter_async_context(Simulator(SimulatorConfig(TABLES)))
        client = Client(await open_ones.enter_async_context(aiohttp.ClientSession()), simulator.url)
        await client.sign_in()
        return simulator, client

    yield loop_of_our_own.run(started())
    loop_of_our_own.run(open_ones.aclose())


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.sampled_from(["GET", "POST", "PATCH", "PUT", "DELETE", "OPTIONS", "HEAD"]),
    st.tuples(names, keys, rests).map("".join),
    queries,
    raw_bodies,
    header_sets,
)
def test_no_request_breaks_the_simulator(
    loop_of_our_own: asyncio.Runner,
    fuzzed: tuple[Simulator, Client],
    method: str,
    path: str,
    query: dict[str, str],
    body: bytes,
    headers: dict[str, str],
) -> None:
    simulator, client = fuzzed
    address = f"{client.url}{ROOT}/{path}"

    async def send() -> int:
        named = {**headers, "Authorization": f"Bearer {client.token}"}
        async with client.session.request(method, address, params=query, data=body, headers=named) as response:
            await response.read()
            return response.status

    status = loop_of_our_own.run(send())
    assert simulator.unforeseen == []
    assert status < 500
    if status == 429:
        pytest.fail("the examples outran the limits")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE"]),
    st.sampled_from(
        ["_simulator/faults", "_simulator/credentials", "_simulator/records/x", "_simulator/", "t/oauth2/v2.0/token"]
        + ["_simulator/webhooks", "_simulator/records/accounts", "_simulator/records/accounts/A1"]
    ),
    values.map(lambda document: json.dumps(document).encode()) | st.binary(max_size=60),
)
def test_no_control_request_breaks_the_simulator(
    loop_of_our_own: asyncio.Runner, fuzzed: tuple[Simulator, Client], method: str, path: str, body: bytes
) -> None:
    simulator, client = fuzzed
    answer = loop_of_our_own.run(client.send_anything(method, f"{client.url}/{path}", data=body))
    assert simulator.unforeseen == []
    assert answer.status < 500
