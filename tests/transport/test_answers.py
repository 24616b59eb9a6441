"""Answers, however they arrive: h11, another implementation of HTTP, says what they mean."""

import asyncio
import gzip
import random
from collections.abc import Sequence

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics_sync.transport.connection import Response
from dynamics_sync.transport.errors import NoAnswerError
from transport.peers import Behaviour, Peer, client_of, saying, saying_once, serving

WHOLE = [
    (b"HTTP/1.1 204 No Content\r\nETag: W/1\r\n\r\n", 204, b""),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
    (b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi"),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n3\r\n yo\r\n0\r\nETag: x\r\n\r\n",
        200,
        b"hello yo",
    ),
    (b"HTTP/1.1 400 \r\ncontent-length:2\r\n\r\n{}", 400, b"{}"),
]
UNTIL_THE_END = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"
ENOUGH = 1000


async def answer_to(behaviour: Behaviour, enough: int = ENOUGH) -> Response | None:
    """What a client makes of it; None for no answer."""
    async with serving(behaviour) as server, client_of(server.url, seconds=5) as client:
        try:
            return await client.request("GET", "/", headers={}, enough=enough)
        except NoAnswerError as error:
            if error.code != "connection_reset":
                raise
            return None


@pytest.mark.parametrize(("said", "status", "body"), [*WHOLE, (UNTIL_THE_END, 200, b"hello")])
async def test_where_an_answer_is_divided_does_not_matter(said: bytes, status: int, body: bytes) -> None:
    """Over one connection, where it may be kept: an answer leaves nothing behind."""
    at = 0

    async def behaviour(peer: Peer) -> None:
        nonlocal at
        while await peer.read():
            await peer.say(said[:at], said[at:])
            at += 1
            if said is UNTIL_THE_END:
                return

    async with serving(behaviour) as server, client_of(server.url) as client:
        for _ in range(len(said)):
            answer = await client.request("GET", "/", headers={}, enough=ENOUGH)
            assert (answer.status, answer.body) == (status, body)
        assert server.connections == (len(said) if said is UNTIL_THE_END else 1)


@pytest.mark.parametrize(("said", "status", "body"), WHOLE)
async def test_byte_by_byte(said: bytes, status: int, body: bytes) -> None:
    answer = await answer_to(saying(*(bytes([each]) for each in said)))
    assert answer is not None
    assert (answer.status, answer.body) == (status, body)


tokens = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).filter(
    lambda name: name not in ("connection", "upgrade", "te", "trailer")
)
fields = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40)


@st.composite
def answers(draw: st.DrawFn) -> tuple[int, dict[str, str], bytes, bytes]:
    """A status, headers and a body, and how h11 writes them."""
    status = draw(st.sampled_from([200, 201, 204, 304, 400, 404, 412, 429, 500, 503]))
    headers = draw(st.dictionaries(tokens, fields, max_size=6))
    body = b"" if status in (204, 304) else draw(st.binary(max_size=300))
    writer = h11.Connection(h11.SERVER)
    writer.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    writer.next_event()
    writer.next_event()
    named = [(name, value) for name, value in headers.items()]
    if status not in (204, 304) and draw(st.booleans()):
        named.append(("Content-Length", str(len(body))))
    said = writer.send(h11.Response(status_code=status, headers=named)) or b""
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
    for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        said += writer.send(h11.Data(body[begin:end])) or b""
    return status, headers, body, said + (writer.send(h11.EndOfMessage()) or b"")


@st.composite
def pieces(draw: st.DrawFn, said: bytes) -> Sequence[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(said)), max_size=6)))
    return [said[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(said)], strict=True)]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_what_another_implementation_writes_is_read_as_it_was_meant(data: st.DataObject) -> None:
    status, headers, body, said = data.draw(answers())
    answer = asyncio.run(answer_to(saying(*data.draw(pieces(said)))))
    assert answer is not None
    assert (answer.status, answer.body) == (status, body)
    assert {name: answer.headers[name.upper()] for name in headers} == {
        name: value.strip() for name, value in headers.items()
    }


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([said for said, *_ in WHOLE]), st.randoms(use_true_random=False), st.binary(max_size=6))
def test_whatever_comes_there_is_an_answer_or_none(said: bytes, chance: random.Random, other: bytes) -> None:
    begin = chance.randrange(len(said))
    end = chance.randrange(begin, len(said) + 1)
    answer = asyncio.run(answer_to(saying_once(said[:begin] + other + said[end:])))
    assert answer is None or 200 <= answer.status <= 999


BOMB = gzip.compress(b"\0" * 10_000_000)


def compressed(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def test_a_compressed_answer() -> None:
    answer = await answer_to(saying(compressed(gzip.compress(b"hello"))))
    assert answer is not None
    assert answer.body == b"hello"


async def test_a_compressed_answer_is_taken_apart_no_further_than_wanted() -> None:
    answer = await answer_to(saying(compressed(BOMB)), enough=len(BOMB))
    assert answer is not None
    assert len(answer.body) == len(BOMB) + 1


async def test_half_a_compressed_answer_is_none() -> None:
    assert await answer_to(saying(compressed(gzip.compress(random.Random(1).randbytes(600))[:300]))) is None
