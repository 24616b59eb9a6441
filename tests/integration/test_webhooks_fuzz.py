"""The endpoint under schemathesis and bytes of any kind: never a 500, and what was answered with 202 is stored."""

import asyncio
import random
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamics_sync.dynamics.webhooks.delivery import delivery_from
from dynamics_sync.postgres.connections import Connection
from support.webhooks import PATH, SECRET, Dataverse, Event, option, receiving

ANSWERS = {202, 400, 401, 413, 503}


async def bodies(user: Connection) -> set[bytes]:
    cursor = await user.execute("select body from dynamics_sync.inbox")
    return {bytes(body) for (body,) in await cursor.fetchall()}


def put_questions(url: str) -> set[bytes]:
    """All that schemathesis makes of the description, with the secret or without; what was taken."""
    taken: set[bytes] = set()
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    (operation,) = (found.ok() for found in schema.get_all_operations())

    @given(case=operation.as_strategy(), with_secret=st.booleans())
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    def ask(case: Any, with_secret: bool) -> None:
        response = case.call(headers={"x-webhook-secret": SECRET} if with_secret else {})
        assert response.status_code in ({202, 503} if with_secret else {401})
        case.validate_response(response, excluded_checks=[schemathesis.checks.not_a_server_error])
        if response.status_code == 202:
            taken.add(response.request.body or b"")

    ask()
    return taken


async def test_every_question_of_schemathesis_is_answered_as_described(database: str, user: Connection) -> None:
    async with receiving(database) as dataverse:
        taken = await asyncio.to_thread(put_questions, dataverse.url)
    assert len(taken) > 10
    assert taken <= await bodies(user)


def mutated(chance: random.Random, body: bytes) -> bytes:
    """A genuine body with some bytes changed, cut out, doubled or put in."""
    broken = bytearray(body)
    for _ in range(chance.randrange(1, 8)):
        at = chance.randrange(len(broken) + 1)
        match chance.randrange(4):
            case 0:
                broken[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 1:
                del broken[at : at + chance.randrange(1, 200)]
            case 2:
                broken[at:at] = broken[at : at + chance.randrange(1, 200)]
            case _:
                broken[at : at + 1] = chance.randbytes(1)
    return bytes(broken)


async def test_an_authentic_body_of_any_bytes_is_never_lost(database: str, user: Connection) -> None:
    chance = random.Random(20261125)
    genuine = Event({"hlf_status": option(1), "hlf_name": "Åse"}, image={"hlf_externalid": "K"}).body()
    sent = [mutated(chance, genuine) for _ in range(300)]
    async with receiving(database) as dataverse:
        for start in range(0, len(sent), 20):
            answers = await asyncio.gather(*(dataverse.deliver(body) for body in sent[start : start + 20]))
            assert set(answers) == {202}
    kept = await bodies(user)
    # Two of which the parts agree that tell deliveries apart are one delivery, whichever came first.
    assert kept <= set(sent)
    ids = await (await user.execute("select count(distinct delivery_id), count(*) from dynamics_sync.inbox")).fetchone()
    assert ids is not None
    assert ids[0] == ids[1] == len({delivery_from({}, body).delivery_id for body in sent})


async def test_requests_of_any_bytes_end_in_an_answer_or_in_silence_and_never_in_a_500(
    database: str, user: Connection
) -> None:
    chance = random.Random(7)
    async with receiving(database) as dataverse:
        for _ in range(120):
            status = await raw(dataverse, mutated(chance, request_of(b'{"n": %d}' % chance.randrange(10**9))))
            assert status is None or status in ANSWERS | {404, 405}, status
        assert await dataverse.deliver(b"still there") == 202
    assert b"still there" in await bodies(user)


def request_of(body: bytes) -> bytes:
    lines = [f"POST {PATH}?code={SECRET} HTTP/1.1", "Host: here", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def raw(dataverse: Dataverse, request: bytes) -> int | None:
    """The status of the answer; None where the connection was closed without one."""
    host, port = dataverse.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        writer.write_eof()
        line = await asyncio.wait_for(reader.readline(), 30)
        return int(line.split()[1]) if line.startswith(b"HTTP/") else None
    except ConnectionError:
        return None
    finally:
        writer.close()
