"""`multipart/mixed` bodies, read as leniently as Dataverse reads them.

Clients write bare line feeds, quoted and unquoted boundaries, a blank line before the first boundary, and leave out the
last line's end.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from uuid import uuid4

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.messages import Reply

_BOUNDARY = re.compile(r'boundary=(?:"([^"]+)"|([^;\s"]+))', re.IGNORECASE)
_END_OF_HEAD = re.compile(rb"\r?\n[ \t]*\r?\n")


@dataclass(frozen=True, slots=True)
class Part:
    """One part; header names are in lower case."""

    headers: Mapping[str, str]
    body: bytes


def is_multipart(part: Part) -> bool:
    """Whether a part holds parts itself: a change set."""
    return part.headers.get("content-type", "").lower().startswith("multipart/mixed")


def split_parts(content_type: str, body: bytes) -> list[Part]:
    """The parts of a multipart body.

    Raises:
        DataverseError: there is no boundary, or nothing in it.
    """
    match = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith("multipart/mixed") or match is None:
        raise errors.malformed("The content type of a batch request must be multipart/mixed with a boundary.")
    boundary = re.escape((match[1] or match[2]).encode())
    pieces = re.split(rb"(?:^|\r?\n)--" + boundary + rb"(?:--)?[ \t]*(?=\r?\n|$)", body)
    parts = [Part(*split_head(piece)) for piece in pieces[1:] if piece.strip()]
    if not parts:
        raise errors.malformed("The batch request has no operations.")
    return parts


def split_head(text: bytes) -> tuple[Mapping[str, str], bytes]:
    """Headers and what follows the blank line after them."""
    match = _END_OF_HEAD.search(text)
    head, body = (text, b"") if match is None else (text[: match.start()], text[match.end() :])
    pairs = (line.partition(":") for line in head.decode("utf-8", "replace").splitlines())
    return {name.strip().lower(): value.strip() for name, colon, value in pairs if colon}, body


def written(reply: Reply, content_id: str | None) -> tuple[str, bytes]:
    """A reply as a part: its content type and its text."""
    lines = ["Content-Transfer-Encoding: binary"]
    if content_id is not None:
        lines.append(f"Content-ID: {content_id}")
    lines += ["", f"HTTP/1.1 {reply.status} {_reason(reply.status)}"]
    if reply.status >= 400:
        lines.append(f"REQ_ID: {uuid4()}")
    if reply.content_type is not None:
        lines.append(f"Content-Type: {reply.content_type}")
    lines += [f"{name}: {value}" for name, value in {"OData-Version": "4.0", **reply.headers}.items()]
    return "application/http", "\r\n".join([*lines, "", ""]).encode() + reply.body


def joined(boundary: str, parts: list[tuple[str, bytes]]) -> bytes:
    """A multipart body."""
    pieces = []
    for content_type, body in parts:
        between = b"\r\n\r\n" if content_type.startswith("multipart/") else b"\r\n"
        pieces.append(f"--{boundary}\r\nContent-Type: {content_type}".encode() + between + body + b"\r\n")
    return b"".join(pieces) + f"--{boundary}--\r\n".encode()


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
