"""Requests: what leaves, over which connection, and what is said where no answer comes."""

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.transport import client as clients
from dynamics_sync.transport.client import HttpClient, open_client
from dynamics_sync.transport.connection import MOST_BESIDE_BODY, MOST_OF_ERROR
from dynamics_sync.transport.errors import NoAnswerError
from transport.peers import MANY_SECONDS, NO_CONTENT, Peer, client_of, saying, saying_once, serving

SOON_SECONDS = 0.2
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: W/1\r\n\r\nhello"


async def code_of(client: HttpClient, method: str = "GET") -> str:
    """What is said where there is no answer."""
    with pytest.raises(NoAnswerError) as caught:
        await client.request(method, "/", headers={}, enough=1000)
    return caught.value.code


async def test_a_request_as_it_leaves() -> None:
    async with serving(saying(HELLO)) as server, client_of(server.url) as client:
        headers = {"Accept": "application/json", "If-Match": "*"}
        answer = await client.request("PATCH", "/a(b='%20')?c=d", headers=headers, body=b'{"e":1}', enough=5)
        assert (answer.status, answer.headers["etag"], answer.body) == (200, "W/1", b"hello")
    lines = [
        b"PATCH /a(b='%20')?c=d HTTP/1.1",
        b"Host: " + server.url.removeprefix("http://").encode(),
        b"User-Agent: dynamics-sync",
        b"Accept: application/json",
        b"If-Match: *",
        b"Content-Length: 7",
    ]
    assert server.requests == [b"\r\n".join([*lines, b"", b'{"e":1}'])]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_without_a_body_there_is_no_length(method: str) -> None:
    async with serving(saying(NO_CONTENT)) as server, client_of(server.url) as client:
        await client.request(method, "/", headers={})
    assert b"Content-Length" not in server.requests[0]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://org.example.com", b"org.example.com"),
        ("http://org.example.com:80/path", b"org.example.com"),
        ("http://org.example.com:443", b"org.example.com:443"),
        ("https://ORG.example.com:443", b"org.example.com"),
        ("https://org.example.com:8443", b"org.example.com:8443"),
        ("http://[::1]:8081", b"[::1]:8081"),
        ("https://bücher.example", b"xn--bcher-kva.example"),
    ],
)
async def test_how_the_server_is_named(url: str, host: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(saying(NO_CONTENT)) as server:
        listening = int(server.url.rpartition(":")[2])

        async def here(*_: object, **__: object) -> socket.socket:
            connected = socket.create_connection(("127.0.0.1", listening))
            connected.setblocking(False)
            return connected

        async def found(*_: object, **__: object) -> list[object]:
            return []

        monkeypatch.setattr(clients, "start_connection", here)
        async with client_of(url) as client:  # without TLS, whatever the scheme
            client._loop = _Resolving(client._loop, found)  # type: ignore[assignment]
            await client.request("GET", "/", headers={})
    assert b"\r\nHost: " + host + b"\r\n" in server.requests[0]


class _Resolving:
    """A loop that finds every name."""

    def __init__(self, loop: asyncio.AbstractEventLoop, found: object) -> None:
        self._loop = loop
        self.getaddrinfo = found

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)


@pytest.mark.parametrize("text", ["a\r\nEvil: b", "a\nb", "a\rb", "a\0b", "a\x7fb", "ä", "a\u2028b"])
async def test_nothing_leaves_that_would_be_read_as_more_than_it_is(text: str) -> None:
    async with serving(saying(NO_CONTENT)) as server, client_of(server.url) as client:
        with pytest.raises(ValueError, match="printable ASCII"):
            await client.request("GET", "/", headers={"Authorization": text})
        with pytest.raises(ValueError, match="printable ASCII"):
            await client.request("GET", "/" + text, headers={})
        with pytest.raises(ValueError, match="printable ASCII"):
            await client.request("GET", "/a b", headers={})
    assert server.connections == 0


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with serving(saying(HELLO)) as server, client_of(server.url) as client:
        for _ in range(3):
            await client.request("GET", "/", headers={}, enough=5)
        await asyncio.gather(*(client.request("GET", "/", headers={}, enough=5) for _ in range(4)))
        assert server.connections == 4
        assert len(server.requests) == 7


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        b"HTTP/1.0 204 No Content\r\n\r\n",
        HELLO[:-2],  # a success whose body is not waited for, and never comes
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 4000,  # longer than wanted, and not yet whole
        NO_CONTENT + NO_CONTENT,  # one answer more than asked for
        NO_CONTENT + b"no answer",
    ],
    ids=["closes", "old", "unfinished", "too long", "two answers", "rubbish behind it"],
)
async def test_a_connection_in_doubt_is_not_used_again(answer: bytes) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.read()
        await peer.say(answer if peer.number == 0 else NO_CONTENT)
        await peer.is_left()

    async with serving(behaviour) as server, client_of(server.url) as client:
        first = await client.request("GET", "/1", headers={}, enough=1000 if b"5000" in answer else 0)
        assert first.status in (200, 204)
        assert (await client.request("GET", "/2", headers={})).status == 204
        assert server.connections == 2


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"], ids=["closed", "speaks"])
async def test_what_happens_to_a_connection_at_rest_is_not_taken_for_an_answer(says: bytes) -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.read()
        await peer.say(HELLO)
        await asyncio.sleep(SOON_SECONDS / 4)
        if peer.number == 0:
            await peer.say(says)
        else:
            await peer.is_left()

    async with serving(behaviour) as server, client_of(server.url) as client:
        for _ in range(2):
            assert (await client.request("GET", "/", headers={}, enough=9)).body == b"hello"
            await asyncio.sleep(SOON_SECONDS)
        assert server.connections == 2


async def test_a_connection_that_rested_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(saying(NO_CONTENT)) as server, client_of(server.url) as client:
        await asyncio.gather(*(client.request("GET", "/", headers={}) for _ in range(3)))
        monkeypatch.setattr(clients, "KEPT_SECONDS", 0.0)
        await client.request("GET", "/", headers={})
        assert server.connections == 4
        assert len(client._free) == 1


async def test_there_are_no_more_connections_than_allowed() -> None:
    async with serving(saying(NO_CONTENT)) as server, client_of(server.url, connections=2) as client:
        answers = await asyncio.gather(*(client.request("GET", "/", headers={}) for _ in range(50)))
        assert [answer.status for answer in answers] == [204] * 50
        assert server.most_at_once <= 2


async def test_who_waits_for_a_connection_in_vain_has_no_answer() -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.is_left()

    async with serving(behaviour) as server, client_of(server.url, connections=1) as client:
        holding = asyncio.create_task(client.request("GET", "/", headers={}))
        await asyncio.sleep(0)
        client._timeout_seconds = SOON_SECONDS
        assert await code_of(client) == "timeout"
        assert server.connections == 1
        holding.cancel()
        await asyncio.wait([holding])


@pytest.mark.parametrize("after", ["request", "head", "half the body"])
async def test_what_is_given_up_is_cut_off_at_once(after: str) -> None:
    gone = asyncio.Event()
    said = {"request": b"", "head": HELLO[:-5], "half the body": HELLO[:-2]}[after]

    async def behaviour(peer: Peer) -> None:
        await peer.read()
        await peer.say(said)
        arrived.set()
        await peer.is_left()
        gone.set()

    arrived = asyncio.Event()
    async with serving(behaviour) as server, client_of(server.url) as client:
        request = asyncio.create_task(client.request("GET", "/", headers={}, enough=5))
        await arrived.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.wait_for(gone.wait(), MANY_SECONDS / 4)


@pytest.mark.parametrize("said", [b"", HELLO[:10], HELLO[:-5], HELLO[:-2]], ids=["", "line", "head", "half the body"])
async def test_an_answer_that_takes_too_long(said: bytes) -> None:
    gone = asyncio.Event()

    async def behaviour(peer: Peer) -> None:
        await peer.read()
        await peer.say(said)
        await peer.is_left()
        gone.set()

    async with serving(behaviour) as server, client_of(server.url, seconds=SOON_SECONDS) as client:
        assert await code_of(client) == "timeout"
        await asyncio.wait_for(gone.wait(), MANY_SECONDS / 4)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        HELLO[:10],
        HELLO[:-5],
        HELLO[:-2],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * MOST_BESIDE_BODY,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MOST_BESIDE_BODY // 6 + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * (MOST_BESIDE_BODY // 6 + 100),
    ],
    ids=[
        "",
        "line",
        "head",
        "body",
        "chunk",
        "100",
        "101",
        "ssh",
        "lf",
        "lengths",
        "both",
        "gzip",
        "A",
        "As",
        "trailer",
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
async def test_what_is_no_answer(said: bytes, method: str) -> None:
    """And the request is not made a second time."""
    async with serving(saying_once(said)) as server, client_of(server.url) as client:
        assert await code_of(client, method) == "connection_reset"
        assert len(server.requests) == 1


async def test_a_connection_that_is_lost_before_the_second_request_is_no_leave_to_make_it_twice() -> None:
    async def behaviour(peer: Peer) -> None:
        await peer.read()
        await peer.say(NO_CONTENT)
        await peer.read()

    async with serving(behaviour) as server, client_of(server.url) as client:
        await client.request("DELETE", "/1", headers={})
        assert await code_of(client, "DELETE") == "connection_reset"
        assert len(server.requests) == 2


async def test_an_early_answer_is_taken_and_the_rest_of_the_request_cut_off() -> None:
    read = 0

    async def behaviour(peer: Peer) -> None:
        nonlocal read
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\n{}")
        await asyncio.sleep(SOON_SECONDS)
        while received := await peer.reader.read(1 << 20):
            read += len(received)

    body = b"x" * (64 << 20)
    async with serving(behaviour) as server, client_of(server.url) as client:
        answer = await client.request("POST", "/", headers={}, body=body)
        assert (answer.status, answer.body) == (413, b"{}")
        assert (await client.request("POST", "/", headers={}, body=b"")).status == 413
        assert server.connections == 2
    assert read < len(body)


@pytest.mark.parametrize("length", [MOST_OF_ERROR, MOST_OF_ERROR + 1, 50 * MOST_OF_ERROR])
async def test_an_error_is_read_so_far(length: int) -> None:
    said = b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % length + b"x" * length
    async with serving(saying_once(said)) as server, client_of(server.url) as client:
        body = (await client.request("PATCH", "/", headers={}, body=b"{}")).body
        assert len(body) == length if length <= MOST_OF_ERROR else MOST_OF_ERROR < len(body) < 10 * MOST_OF_ERROR


async def test_nobody_listens() -> None:
    async with serving(saying(NO_CONTENT)) as server:
        pass
    async with client_of(server.url) as client:
        assert await code_of(client) == "connection_refused"


async def test_a_name_that_means_nobody() -> None:
    async with client_of("http://nobody.invalid") as client:
        assert await code_of(client) == "dns"


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
async def test_a_name_that_nobody_can_have(host: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{host} is no name"):
        async with open_client(f"http://{host}", None, MANY_SECONDS, 1):
            pass


async def test_a_name_with_two_addresses_of_which_one_listens() -> None:
    """`localhost` is both here; the server listens on one."""
    async with serving(saying(NO_CONTENT)) as server:
        async with client_of(server.url.replace("127.0.0.1", "localhost")) as client:
            assert (await client.request("GET", "/", headers={})).status == 204


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusting(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")


async def test_over_tls(tls: ssl.SSLContext, trusting: str) -> None:
    async with serving(saying(HELLO), tls=tls) as server:
        async with open_client(server.url, trusting, MANY_SECONDS, 1) as client:
            for _ in range(2):
                assert (await client.request("GET", "/", headers={}, enough=5)).body == b"hello"
            assert server.connections == 1


async def test_whom_nobody_vouches_for(tls: ssl.SSLContext, trusting: str) -> None:
    async with serving(saying(HELLO), tls=tls) as server:
        async with open_client(server.url, None, MANY_SECONDS, 1) as client:
            assert await code_of(client) == "tls"
        another_name = server.url.replace("127.0.0.1", "localhost")
        async with open_client(another_name, trusting, MANY_SECONDS, 1) as client:
            assert await code_of(client) == "tls"
        assert server.requests == []


async def test_who_does_not_speak_tls(trusting: str) -> None:
    async with serving(saying_once(NO_CONTENT)) as server:
        url = server.url.replace("http:", "https:")
        async with open_client(url, trusting, SOON_SECONDS, 1) as client:
            assert await code_of(client) in ("tls", "timeout")  # nothing of the request leaves
        assert server.requests == []


async def test_over_tls_what_is_cut_off_is_no_answer(tls: ssl.SSLContext, trusting: str) -> None:
    async with serving(saying_once(HELLO[:-2]), tls=tls) as server:
        async with open_client(server.url, trusting, MANY_SECONDS, 1) as client:
            assert await code_of(client) == "connection_reset"


async def test_a_file_of_authorities_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "absent.pem"):
        with pytest.raises(ConfigurationError, match="DYNAMICS_SYNC_CA_FILE"):
            async with open_client("https://127.0.0.1", str(tmp_path / name), MANY_SECONDS, 1):
                pass
