"""The contract of Dynamics: what the model in the simulation does is what the simulator does over sockets.

The two share no code. Programs of requests and faults are run on both in step; every answer, every aborted connection,
and all that is stored in the end must be alike.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics_sync.simulator import AlternateKey, Column, ColumnKind, Simulator, SimulatorConfig, Table
from simulation.dynamics_model import DynamicsModel, End, Fault, Method, Reaction, State
from support.search import search

PATIENCE_SECONDS = 15
"""After which what was awaited does not come."""

COLUMNS = ("level", "note", "statecode", "statuscode")
THINGS = Table(
    "thing",
    "things",
    "thingid",
    (Column("number"), Column("level", ColumnKind.INTEGER), Column("note")),
    (AlternateKey("number_key", ("number",)),),
)
ACTIVE, INACTIVE = {"statecode": 0, "statuscode": 1}, {"statecode": 1, "statuscode": 2}


@dataclass(frozen=True)
class Request:
    """What a client sends, and whether it stays to hear the answer where that does not come at once."""

    method: Method
    key: str
    body: State | None = None
    if_match: bool = False
    stays: bool = True


@dataclass(frozen=True)
class Declared:
    """A fault that is declared."""

    fields: Mapping[str, Any]


class Lifted:
    """All faults are lifted."""

    def __repr__(self) -> str:
        return "Lifted()"


Step = Request | Declared | Lifted

Seen = tuple[End, int | None, str | None, float | None]
"""What a client saw: how the request ended, and status, code and `Retry-After` of the answer if there was one."""


def seen(reaction: Reaction) -> Seen:
    return reaction.end, reaction.status, reaction.code, reaction.retry_after


async def only_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Where the connection is lost, aiohttp sends a DELETE once more, unasked; not if it sees another error."""
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientConnectionError from error


class OverSockets:
    """The simulator, as a client and an operator reach it."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session
        self._token = ""

    async def sign_in(self) -> None:
        form = {
            "grant_type": "client_credentials",
            "client_id": "demo",
            "client_secret": "demo",
            "scope": f"{self._url}/.default",
        }
        async with self._session.post(f"{self._url}/tenant/oauth2/v2.0/token", data=form) as response:
            self._token = (await response.json())["access_token"]

    async def send(self, request: Request) -> Seen:
        key = quote(request.key.replace("'", "''"), safe="")
        headers = {"Authorization": f"Bearer {self._token}"} | ({"If-Match": "*"} if request.if_match else {})
        address = f"{self._url}/api/data/v9.2/things(number='{key}')"
        try:
            async with self._session.request(
                request.method, address, json=request.body, headers=headers, allow_redirects=False
            ) as response:
                is_json = response.content_type == "application/json"
                document = await response.json() if is_json else {}
                after = response.headers.get("Retry-After")
                code = document.get("error", {}).get("code")
                return End.ANSWERED, response.status, code, None if after is None else float(after)
        except aiohttp.ClientError:
            return End.RESET, None, None, None

    async def control(self, method: str, path: str, document: object = None) -> Any:
        async with self._session.request(method, f"{self._url}/_simulator/{path}", json=document) as response:
            assert response.status < 300, await response.text()
            return await response.json() if response.content_type == "application/json" else None

    async def until_logged(self, count: int, *, done: bool) -> None:
        """Until so many requests have arrived, and are done with."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                logged = await self.control("GET", "requests")
                if len(logged) == count and not (done and logged[-1]["done_at"] is None):
                    return
                await asyncio.sleep(0.002)

    async def stored(self) -> dict[str, list[dict[str, object]]]:
        """Every version of each record that is there, by key."""
        records = await self.control("GET", "records/things")
        return {
            record["key"]: [{name: each["attributes"][name] for name in COLUMNS} for each in record["versions"]]
            for record in records
        }


@asynccontextmanager
async def simulated() -> AsyncIterator[OverSockets]:
    async with (
        Simulator(SimulatorConfig((THINGS,))) as simulator,
        aiohttp.ClientSession(middlewares=[only_once]) as session,
    ):
        sockets = OverSockets(simulator.url, session)
        await sockets.sign_in()
        yield sockets
        assert simulator.unforeseen == []


def stored_in(model: DynamicsModel) -> dict[str, list[dict[str, object]]]:
    """As `OverSockets.stored`: a record that came back after a deletion has only the versions since."""
    found: dict[str, list[dict[str, object]]] = {}
    for key in model.records():
        for version in model.versions(key):
            if version is None:
                found[key] = []
            else:
                found.setdefault(key, []).append({name: version.get(name) for name in COLUMNS})
    return found


class Pair:
    """The model and the simulator in step."""

    def __init__(self, sockets: OverSockets) -> None:
        self.model = DynamicsModel()
        self.sockets = sockets
        self._sent = 0
        self._hanging: list[asyncio.Task[Seen]] = []

    async def send(self, request: Request) -> Seen:
        """One request to both. What hangs while its client stays is compared when the faults are lifted."""
        self._sent += 1
        asked = request.method, request.key, request.body, request.if_match
        reaction = self.model.receive(*asked)
        if reaction.end in (End.ANSWERED, End.RESET):
            assert await self.sockets.send(request) == seen(reaction), request
            return seen(reaction)
        sending = asyncio.create_task(self.sockets.send(request))
        await self.sockets.until_logged(self._sent, done=False)
        if not request.stays:
            sending.cancel()
            await self.sockets.until_logged(self._sent, done=True)
            if reaction.end is End.LATER:
                self.model.apply(*asked)
        elif reaction.end is End.HANGS:
            self._hanging.append(sending)
        else:
            reaction = self.model.apply(*asked)
            assert await sending == seen(reaction), request
        return seen(reaction)

    async def declare(self, **fields: Any) -> None:
        self.model.fault(Fault(**fields))
        await self.sockets.control("POST", "faults", fields)

    async def lift(self) -> None:
        assert not any(sending.done() for sending in self._hanging)
        self.model.lift()
        await self.sockets.control("DELETE", "faults")
        for sending in self._hanging:
            assert (await sending)[0] is End.RESET
        self._hanging.clear()

    async def run(self, program: list[Step]) -> None:
        for step in program:
            match step:
                case Request():
                    await self.send(step)
                case Declared(fields):
                    await self.declare(**fields)
                case Lifted():
                    await self.lift()
        await self.lift()
        await self.compare()

    async def compare(self) -> None:
        assert await self.sockets.stored() == stored_in(self.model)


keys = st.sampled_from(["a", "A", "b", "Ø'1"])
bodies = st.fixed_dictionaries(
    {}, optional={"level": st.integers(0, 9), "note": st.none() | st.sampled_from(["", "x", "Ærlig"])}
).flatmap(lambda body: st.sampled_from([body, body | ACTIVE, body | INACTIVE]))
requests = st.builds(Request, st.just("PATCH"), keys, bodies, if_match=st.booleans(), stays=st.booleans()) | st.builds(
    Request, st.just("DELETE"), keys, if_match=st.booleans(), stays=st.booleans()
)
whom = {
    "count": st.integers(1, 3),
    "key": keys,
    "method": st.sampled_from(["PATCH", "DELETE"]),
}
statuses = st.sampled_from([204, 302, 400, 429, 503])
faults = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("status"), "status": statuses},
        optional={"retry_after": st.sampled_from([0, 2.5, 30, 900]), "code": st.sampled_from(["", "0x80044150"])}
        | whom,
    ),
    st.fixed_dictionaries({"kind": st.just("delay"), "seconds": st.sampled_from([0, 0.01])}, optional=whom),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["timeout", "reset", "reset_after_write", "garbled"])}, optional=whom
    ),
)
steps: st.SearchStrategy[Step] = st.one_of(requests, requests, requests, faults.map(Declared), st.builds(Lifted))


@search(100)
@given(st.lists(steps, max_size=12))
def test_programs_of_requests_and_faults_end_alike(program: list[Step]) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS), simulated() as sockets:
            await Pair(sockets).run(program)

    asyncio.run(run())


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """What a test does with it is done to both, and compared."""
    async with simulated() as sockets:
        both = Pair(sockets)
        yield both
        await both.lift()
        await both.compare()


DONE = (End.ANSWERED, 204, None, None)
ABSENT = (End.ANSWERED, 404, "0x80060891", None)


async def test_a_patch_creates_and_then_changes(pair: Pair) -> None:
    assert await pair.send(Request("PATCH", "a", {"level": 1, "note": "x"})) == DONE
    assert await pair.send(Request("PATCH", "A", {"level": 2})) == DONE
    assert pair.model.records() == {"a": {"level": 2, "note": "x"} | ACTIVE}


async def test_if_match_forbids_creation(pair: Pair) -> None:
    assert await pair.send(Request("PATCH", "a", INACTIVE, if_match=True)) == ABSENT
    assert await pair.send(Request("DELETE", "a", if_match=True)) == ABSENT
    assert pair.model.records() == {}


async def test_what_was_deleted_can_come_back_and_is_active(pair: Pair) -> None:
    await pair.send(Request("PATCH", "a", {"note": "x"} | INACTIVE))
    assert await pair.send(Request("DELETE", "a", if_match=True)) == DONE
    assert await pair.send(Request("PATCH", "A", {"level": 1})) == DONE
    assert pair.model.records() == {"A": {"level": 1} | ACTIVE}
    assert pair.model.versions("a") == [{"note": "x"} | INACTIVE, None, {"level": 1} | ACTIVE]


async def test_an_answer_can_be_lost_after_the_write_was_done(pair: Pair) -> None:
    await pair.declare(kind="reset_after_write", count=1)
    assert (await pair.send(Request("PATCH", "a", {"level": 1})))[0] is End.RESET
    assert pair.model.state("a") == {"level": 1} | ACTIVE


STATUSES = [200, 204, 302, 400, 401, 403, 404, 408, 409, 412, 413, 429, 500, 501, 502, 503, 504]


@pytest.mark.parametrize("status", STATUSES)
async def test_every_status_has_its_code(pair: Pair, status: int) -> None:
    await pair.declare(kind="status", status=status)
    _, answered, code, _ = await pair.send(Request("PATCH", "a", {}))
    assert answered == status
    assert (code is None) == (status < 400)


async def test_an_answer_can_lie(pair: Pair) -> None:
    await pair.declare(kind="status", status=204)
    assert await pair.send(Request("PATCH", "a", {"level": 1})) == DONE
    assert pair.model.state("a") is None


async def test_a_slow_write_is_done_late_over_what_was_written_meanwhile(pair: Pair) -> None:
    """And whether its client still waits or not."""
    await pair.declare(kind="delay", seconds=0.5, count=1)
    slow = Request("PATCH", "a", {"level": 1})
    assert pair.model.receive("PATCH", "a", slow.body).end is End.LATER
    sending = asyncio.create_task(pair.sockets.send(slow))
    await pair.sockets.until_logged(1, done=False)
    await pair.sockets.send(Request("PATCH", "a", {"level": 2}))
    pair.model.receive("PATCH", "a", {"level": 2})
    assert await sending == seen(pair.model.apply("PATCH", "a", slow.body))
    assert [version["level"] for version in (await pair.sockets.stored())["a"]] == [2, 1]


async def test_the_oldest_fault_that_meets_a_request_counts(pair: Pair) -> None:
    await pair.declare(kind="status", status=429, retry_after=30, key="a", count=1)
    await pair.declare(kind="status", status=503, method="PATCH")
    assert await pair.send(Request("PATCH", "b", {})) == (End.ANSWERED, 503, "", None)
    assert await pair.send(Request("PATCH", "a", {})) == (End.ANSWERED, 429, "0x80072322", 30)
    assert await pair.send(Request("PATCH", "a", {})) == (End.ANSWERED, 503, "", None)
    assert await pair.send(Request("DELETE", "a")) == ABSENT
