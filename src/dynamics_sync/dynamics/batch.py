"""`$batch`: many requests in one, each of which stands or falls by itself.

Source: Microsoft's page "Execute batch operations using the Web API". With `odata.continue-on-error` the answer is 200
and has a part for each request, in their order.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from http import HTTPStatus
from uuid import uuid4

from multidict import CIMultiDict

from dynamics_sync.core.outcome import Answer
from dynamics_sync.dynamics.answers import answer_from
from dynamics_sync.dynamics.calls import API_PATH, REQUEST_HEADERS, Call

ADDRESS = "$batch"
HEADERS = REQUEST_HEADERS | {"Prefer": "odata.continue-on-error"}
MAX_BYTES = 64 * 1024 * 1024
"""An answer is read no further than this: it has a part for each record, and an error in it is a few kilobytes long."""


def batch_body(calls: Sequence[Call]) -> tuple[str, bytes]:
    """The content type and the body of a batch."""
    boundary = f"batch_{uuid4()}"
    parts = [b"--%s\r\n%s\r\n" % (boundary.encode(), _part(call)) for call in calls]
    return f'multipart/mixed; boundary="{boundary}"', b"".join([*parts, b"--%s--\r\n" % boundary.encode()])


def batch_answers(headers: Mapping[str, str], body: bytes, count: int, now: datetime) -> Sequence[Answer] | None:
    """The answer to each request; None if it is not what a batch of so many is answered with."""
    content_type = headers.get("Content-Type", "").encode("latin-1", errors="replace")
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: %s\r\n\r\n" % content_type + body)
    parts = message.get_payload()
    if not message.is_multipart() or not isinstance(parts, list) or len(parts) != count or message.defects:
        return None
    answers = [_answer(part, now) for part in parts if isinstance(part, Message)]
    known = [answer for answer in answers if answer is not None]
    return known if len(known) == count else None


def _part(call: Call) -> bytes:
    named = (f"{name}: {value}" for name, value in call.headers.items())
    lines = [f"{call.method} {API_PATH}/{call.address} HTTP/1.1", *named]
    request = "\r\n".join([*lines, "", ""]).encode() + (call.body or b"")
    return b"Content-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n\r\n" + request


def _answer(part: Message, now: datetime) -> Answer | None:
    content = part.get_payload(decode=True)
    if not isinstance(content, bytes):
        return None
    line, _, rest = content.partition(b"\r\n")
    words = line.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return None
    status = int(words[1])
    if status not in _STATUSES:
        return None
    head = BytesParser(policy=HTTP).parsebytes(rest)
    body = head.get_payload(decode=True)
    return answer_from(status, CIMultiDict(head.items()), body if isinstance(body, bytes) else b"", now)


_STATUSES = frozenset(status.value for status in HTTPStatus)
