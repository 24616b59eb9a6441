"""The endpoint that Dataverse posts to: who gets in, what is kept, and what happens while nothing can be kept."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.postgres.connections import Connection, connect
from dynamics_sync.web.webhooks import MOST_BYTES
from support.commands import free_port, refused, start, worker_process
from support.engine import stage
from support.postgres import Cluster
from support.webhooks import PATH, SECRET, Dataverse, Event, receiving

OLD_SECRET = "the-one-before-0123456789"


async def stored(user: Connection) -> list[bytes]:
    cursor = await user.execute("select body from dynamics_sync.inbox order by id")
    return [bytes(body) for (body,) in await cursor.fetchall()]


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"X-Webhook-Secret": SECRET}, ""),
        ({}, f"?code={SECRET}"),
        ({}, f"?other=1&secret={SECRET}"),
        ({"x-webhook-secret": "stale"}, f"?code={SECRET}"),
        ({"x-webhook-secret": OLD_SECRET}, ""),
        ({}, f"?code={OLD_SECRET}"),
        ({}, f"?secret={OLD_SECRET}"),
    ],
    ids=["HttpHeader", "WebhookKey", "HttpQueryString", "one-of-two", "rotated", "rotated-key", "rotated-parameter"],
)
async def test_each_kind_of_authentication_and_both_secrets_let_a_delivery_in(
    database: str, user: Connection, headers: dict[str, str], query: str
) -> None:
    async with receiving(database, webhook_previous_secret=OLD_SECRET) as dataverse:
        assert await dataverse.deliver(b"{}", headers, query=query, secret=None) == 202
    assert await stored(user) == [b"{}"]


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({}, ""),
        ({"x-webhook-secret": ""}, "?code=&secret="),
        ({"x-webhook-secret": SECRET[:-1]}, ""),
        ({"x-webhook-secret": SECRET.upper()}, ""),
        ({"x-other": SECRET, "Authorization": SECRET}, f"?key={SECRET}"),
        ({}, f"?code={OLD_SECRET}"),
        ({"x-webhook-secret": "\u00e6\u00f8\u00e5"}, "?code=%ff%00"),
    ],
)
async def test_who_does_not_know_the_secret_is_refused_without_a_word_of_why(
    database: str, user: Connection, headers: dict[str, str], query: str
) -> None:
    async with receiving(database) as dataverse:
        async with dataverse.http.post(f"{dataverse.url}{PATH}{query}", data=b"{}", headers=headers) as response:
            assert (response.status, await response.read()) == (401, b'{"status":"refused"}')
            assert SECRET not in str(response.headers)
    assert await stored(user) == []


async def test_a_sender_without_the_secret_is_answered_before_its_body_is_read(database: str) -> None:
    async with receiving(database) as dataverse:
        host, port = dataverse.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n".encode())
        async with asyncio.timeout(5):
            assert b" 401 " in await reader.readline()
        writer.close()


NESTED = b"[" * 100_000
HOSTILE = {
    "nothing": b"",
    "no JSON": b"<html>log in</html>",
    "half of it": b'{"MessageName": "Upd',
    "deeply nested": NESTED,
    "nested within": b'{"InputParameters": ' + b'[{"key":"Target","value":' * 30_000,
    "NULs": b'{"PrimaryEntityName": "a\\u0000b", "MessageName": "\\u0000"}\0\0',
    "surrogates": b'{"PrimaryEntityName": "\\ud800", "CorrelationId": "\\udfff", "OperationId": "\\ud800"}',
    "bad UTF-8": b'{"MessageName": "\xff\xfe\xc3("}',
    "UTF-16": '{"MessageName": "Update"}'.encode("utf-16"),
    "a huge number": b'{"OperationCreatedOn": ' + b"9" * 10_000 + b"}",
    "an endless date": b'{"OperationCreatedOn": "/Date(999999999999999)/"}',
    "a tiny number": b'{"x": 1e-999999999, "y": 1e999999999999}',
    "no number": b'{"x": NaN, "y": -Infinity}',
    "a key twice": b'{"MessageName": "Update", "MessageName": "Delete"}',
    "a list": b"[]",
    "other types": b'{"OperationId": {}, "PrimaryEntityId": [], "MessageName": 7, "OwningExtension": 1}',
}


async def test_whatever_is_authentic_is_stored_as_it_came(database: str, user: Connection) -> None:
    async with receiving(database) as dataverse:
        for body in HOSTILE.values():
            assert await dataverse.deliver(body) == 202
    assert await stored(user) == list(HOSTILE.values())


async def test_a_body_that_is_too_long_is_refused_whether_or_not_it_says_so(database: str, user: Connection) -> None:
    async def in_pieces() -> Any:
        for _ in range(MOST_BYTES // 65536 + 1):
            yield b"x" * 65536

    async with receiving(database) as dataverse:
        assert await dataverse.deliver(b"x" * MOST_BYTES) == 202
        assert await dataverse.deliver(b"x" * (MOST_BYTES + 1)) == 413
        headers = {"x-webhook-secret": SECRET}
        async with dataverse.http.post(f"{dataverse.url}{PATH}", data=in_pieces(), headers=headers) as response:
            assert response.status == 413
    assert [len(body) for body in await stored(user)] == [MOST_BYTES]


async def test_a_delivery_is_stored_once_however_often_it_is_sent(database: str, user: Connection) -> None:
    event = Event()
    with_request = {"x-request-id": "5d7f1bb6"}
    synchronous = event.but(operation_id="00000000-0000-0000-0000-000000000000")
    async with receiving(database) as dataverse:
        for _ in range(3):
            assert await dataverse.tell(event) == 202
            assert await dataverse.deliver(synchronous.body().replace(b"Depth", b"depth")[:50], with_request) == 202
            assert await dataverse.deliver(b"neither") == 202
        assert set(await asyncio.gather(*(dataverse.deliver(b"at once") for _ in range(20)))) == {202}
    assert len(await stored(user)) == 4


async def test_what_a_sender_calls_by_one_id_by_mistake_is_stored_all_the_same(database: str, user: Connection) -> None:
    event = Event()
    same_request = {"x-request-id": "5d7f1bb6"}
    async with receiving(database) as dataverse:
        for other in (
            event,
            event.but(record_id=Event().record_id),
            event.but(message="Delete"),
            event.but(at=later(event)),
        ):
            assert await dataverse.tell(other) == 202
        assert await dataverse.deliver(b"one", same_request) == 202
        assert await dataverse.deliver(b"two", same_request) == 202
    assert len(await stored(user)) == 6


def later(event: Event) -> Any:
    return event.at.replace(year=event.at.year + 1)


async def test_a_locked_inbox_is_not_waited_for(database: str, user: Connection) -> None:
    async with receiving(database) as dataverse:
        assert await dataverse.deliver(b"before") == 202
        async with user.transaction():
            await user.execute("lock table dynamics_sync.inbox in access exclusive mode")
            began = time.monotonic()
            assert await dataverse.post(b"locked") == 503
            assert time.monotonic() - began < 0.5
        assert await dataverse.deliver(b"locked") == 202
    assert await stored(user) == [b"before", b"locked"]


async def test_a_database_that_is_gone_is_told_as_503_and_found_again(
    server: Cluster, database: str, user: Connection
) -> None:
    async with receiving(database) as dataverse, await connect(server.url) as admin:
        assert await dataverse.deliver(b"before") == 202
        name = user.info.dbname
        await admin.execute(f'alter database "{name}" allow_connections false'.encode())
        others = "from pg_stat_activity where datname = %s and pid <> %s"
        await admin.execute(f"select pg_terminate_backend(pid) {others}", [name, user.info.backend_pid])
        began = time.monotonic()
        assert await dataverse.post(b"down") == 503
        assert time.monotonic() - began < 3
        await admin.execute(f'alter database "{name}" allow_connections true'.encode())
        async with asyncio.timeout(20):
            while await dataverse.post(b"down") != 202:
                await asyncio.sleep(0.05)
    assert await stored(user) == [b"before", b"down"]


async def test_headers_that_may_be_kept_are_kept_and_the_secret_never_is(database: str, user: Connection) -> None:
    async with receiving(database, webhook_header="x-ms-dynamics-organization") as dataverse:
        headers = {"x-ms-dynamics-organization": SECRET, "x-request-id": "7", "Cookie": "c"}
        assert await dataverse.deliver(b"{}", headers, secret=None) == 202
    ((headers,),) = await (await user.execute("select headers from dynamics_sync.inbox")).fetchall()
    assert headers == {"x-request-id": "7"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"webhook_secret": None}, "WEBHOOK_SECRET must be set"),
        ({"webhook_secret": None, "webhook_previous_secret": SECRET}, "WEBHOOK_SECRET must be set"),
        ({"webhook_secret": "fifteen-letters"}, "at least 16 characters"),
        ({"webhook_previous_secret": "short"}, "at least 16 characters"),
        ({"webhook_secret": "with a blank in between"}, "without blanks"),
        ({"webhook_header": "x secret"}, "WEBHOOK_HEADER"),
        ({"webhook_parameter": ""}, "WEBHOOK_PARAMETER"),
    ],
)
async def test_webhooks_without_a_usable_secret_do_not_start(database: str, settings: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        async with receiving(database, **settings):
            pass


async def test_webhooks_that_are_off_are_not_there_and_on_need_a_secret(database: str, tmp_path: Path) -> None:
    async with stage(database, working=False) as on:
        async with worker_process(on, database, tmp_path, webhook_secret=SECRET) as worker:
            async with on.http.post(f"{worker.url}{PATH}?code={SECRET}", data=b"{}") as response:
                assert response.status == 404
        port = str(free_port())
        done = await start("run", cwd=tmp_path, database_url=database, webhooks="on", port=port)
        refused(done, "DYNAMICS_SYNC_WEBHOOK_SECRET must be set")


async def test_no_secret_gets_into_the_log(database: str, tmp_path: Path) -> None:
    wrong = "somebody-elses-secret"
    async with stage(database, working=False) as on:
        async with worker_process(
            on, database, tmp_path, webhooks="on", webhook_secret=SECRET, enabled="off"
        ) as worker:
            address = f"{worker.url}{PATH}"
            for query in (f"?code={SECRET}", f"?secret={wrong}"):
                status = await Dataverse(worker.url, on.http).deliver(b"{}", query=query, secret=None)
                assert status in (202, 401)
            async with on.http.get(f"{address}?code={SECRET}") as response:
                assert response.status == 405
            await raw(worker.url, f"POST {PATH}?code={SECRET} HTTP/1.1\r\n{SECRET}\r\n\r\n")
            await worker.says("inbox.refused")
            assert await on.rows("select status from dynamics_sync.inbox") == [("received",)]
            log = worker.log.read_text()
    assert SECRET not in log
    assert wrong not in log


async def raw(url: str, request: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request.encode())
    await asyncio.wait_for(reader.read(), 5)
    writer.close()
