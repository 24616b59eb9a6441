"""`$batch`: what is written can be read by others, and what is read is what was answered, or nothing."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import HTTP

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics_sync.core.outcome import Answer
from dynamics_sync.dynamics.batch import batch_answers, batch_body
from dynamics_sync.dynamics.calls import API_PATH, Call

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
BOUNDARY = "batchresponse_1"
MULTIPART = {"Content-Type": f"multipart/mixed; boundary={BOUNDARY}"}
DONE = "HTTP/1.1 204 No Content\r\nOData-Version: 4.0\r\n\r\n"

addresses = st.text("abcXYZ019%._~-", min_size=1).map("hlf_certifications(hlf_externalid='{}')".format)
bodies = st.dictionaries(st.text(max_size=20), st.text(max_size=50) | st.integers() | st.none(), max_size=5)
calls = st.one_of(
    st.builds(lambda address, body: Call("PATCH", address, json.dumps(body).encode()), addresses, bodies),
    st.builds(lambda address, body: Call("PATCH", address, json.dumps(body).encode(), True), addresses, bodies),
    st.builds(lambda address: Call("DELETE", address, only_if_there=True), addresses),
)


def response(*parts: str, ends: str = "\r\n") -> bytes:
    """A batch's answer, as in Microsoft's examples."""
    head = f"--{BOUNDARY}\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n\r\n"
    whole = "".join(f"{head}{part}\r\n" for part in parts) + f"--{BOUNDARY}--\r\n"
    return whole.replace("\r\n", ends).encode()


def refusal(status: int, code: str, *headers: str) -> str:
    lines = [f"HTTP/1.1 {status} Refused", "Content-Type: application/json; odata.metadata=minimal", *headers, "", ""]
    return "\r\n".join(lines) + json.dumps({"error": {"code": code, "message": "x"}})


def read(body: bytes, count: int, headers: dict[str, str] = MULTIPART) -> Sequence[Answer] | None:
    return batch_answers(headers, body, count, NOON)


@settings(max_examples=200, deadline=None)
@given(st.lists(calls, min_size=1, max_size=6))
def test_what_is_written_reads_as_the_same_requests(made: Sequence[Call]) -> None:
    content_type, body = batch_body(made)
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: %s\r\n\r\n%s" % (content_type.encode(), body))
    parts = message.get_payload()
    assert isinstance(parts, list)
    assert message.defects == []
    assert len(parts) == len(made)
    for part, call in zip(parts, made, strict=True):
        assert part.get_content_type() == "application/http"
        line, _, rest = part.get_payload(decode=True).partition(b"\r\n")
        assert line.decode() == f"{call.method} {API_PATH}/{call.address} HTTP/1.1"
        request = BytesParser(policy=HTTP).parsebytes(rest)
        assert dict(request.items()) == call.headers
        assert request.get_payload(decode=True) == (call.body or b"")


def test_no_two_batches_have_one_boundary() -> None:
    call = Call("DELETE", "t(k='1')", only_if_there=True)
    assert batch_body([call])[0] != batch_body([call])[0]


def test_each_part_is_an_answer_in_its_order() -> None:
    parts = (
        DONE,
        refusal(400, "0x80044331"),
        refusal(429, "0x80072322", "Retry-After: 17"),
        'HTTP/1.1 204 No Content\r\nETag: W/"7"\r\n\r\n',
    )
    assert read(response(*parts), 4) == [
        Answer(204),
        Answer(400, "0x80044331", is_known_error=True),
        Answer(429, "0x80072322", is_known_error=True, retry_after_seconds=17.0),
        Answer(204, etag='W/"7"'),
    ]


def test_the_names_of_headers_have_no_case() -> None:
    assert read(response('HTTP/1.1 503 x\r\nretry-after: 5\r\netag: "1"\r\n\r\n'), 1) == [
        Answer(503, retry_after_seconds=5.0, etag='"1"')
    ]
    assert read(response(DONE), 1, {"Content-Type": f'MULTIPART/mixed; boundary="{BOUNDARY}"'}) == [Answer(204)]


@pytest.mark.parametrize("count", [1, 3])
def test_more_or_fewer_answers_than_requests_are_none(count: int) -> None:
    assert read(response(DONE, DONE), count) is None


@pytest.mark.parametrize(
    "part",
    [
        "",
        "204",
        "HTTP/1.1",
        "HTTP/1.1 \r\n\r\n",
        "HTTP/1.1 done\r\n\r\n",
        "HTTP/1.1 999 Unheard of\r\n\r\n",
        "HTTP/1.1 -204 No Content\r\n\r\n",
        "SMTP 204 No Content\r\n\r\n",
        "<html>Log in</html>",
    ],
)
def test_a_part_that_is_no_answer_spoils_the_whole(part: str) -> None:
    assert read(response(DONE, part), 2) is None


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (None, response(DONE)),
        ("", response(DONE)),
        ("text/html", b"<html>Log in</html>"),
        ("multipart/mixed", response(DONE)),
        ("multipart/mixed; boundary=another", response(DONE)),
        (f"multipart/mixed; boundary={BOUNDARY}", response(DONE).removesuffix(f"--{BOUNDARY}--\r\n".encode())),
        (f"multipart/mixed; boundary={BOUNDARY}", b""),
        ("multipart/mixed; boundary=\udcff", response(DONE)),
    ],
    ids=["untyped", "empty", "page", "no-boundary", "another-boundary", "cut-off", "nothing", "no-text"],
)
def test_what_is_no_answer_to_a_batch_is_none(content_type: str | None, body: bytes) -> None:
    assert read(body, 1, {} if content_type is None else {"Content-Type": content_type}) is None


def test_a_change_set_was_not_asked_for() -> None:
    inner = f"--c\r\nContent-Type: application/http\r\n\r\n{DONE}\r\n--c--\r\n"
    body = f"--{BOUNDARY}\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n{inner}\r\n--{BOUNDARY}--\r\n"
    assert read(body.encode(), 1) is None


FRAGMENTS = [
    *(b"--b", b"--b--", b"--c", b"\r\n", b"\n", b"\r", b":", b"\xff", b"HTTP/1.1 204 No Content", b"HTTP/1.1 \xb2"),
    *(b"Content-Type: application/http", b"Content-Type: multipart/mixed; boundary=c", b"Content-Type: message/rfc822"),
    *(b"Content-Type: x; a*0=", b"Content-Transfer-Encoding: base64", b"Content-Transfer-Encoding: quoted-printable"),
    *(b"Retry-After: 3", b"=?utf-8?q?=", b'{"error":{"code":"0x8"}}'),
]
nonsense = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=5), max_size=40).map(b"".join)
types = st.sampled_from(["multipart/mixed; boundary=b", "multipart/mixed; boundary*0=b", "message/rfc822"]) | st.text()


@settings(max_examples=500, deadline=None)
@given(types, nonsense, st.integers(1, 3))
def test_whatever_is_answered_it_is_that_many_answers_or_none(content_type: str, body: bytes, count: int) -> None:
    answers = read(body, count, {"Content-Type": content_type})
    assert answers is None or len(answers) == count
