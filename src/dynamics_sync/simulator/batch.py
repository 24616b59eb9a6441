"""`$batch`: many requests in one body (Microsoft: "Execute batch operations using the Web API").

Clients in the wild write bare line feeds, quoted and unquoted boundaries, absolute and relative addresses, and leave
out the last line's end; Dataverse takes all of it, so this does.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.messages import Reply, Request, error_reply, request_from
from dynamics_sync.simulator.store import Store

MAX_PARTS = 1000

Answer = Callable[[Store, Request], Reply]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart body."""

    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class BatchReply:
    """A multipart answer."""

    status: int
    content_type: str
    body: bytes


def run_batch(store: Store, request: Request, answer: Answer) -> BatchReply:
    """Run the parts in order. Without `continue-on-error` the first failure ends it and gives the outer status.

    Raises:
        DataverseError: the body is no batch.
    """
    parts = split_parts(request.headers.get("content-type", ""), request.body)
    if len(parts) > MAX_PARTS:
        raise errors.malformed(f"The batch request has more than {MAX_PARTS} operations.")
    go_on = "odata.continue-on-error" in request.prefer
    replies: list[tuple[str, bytes]] = []
    status = 200
    for part in parts:
        if part.headers.get("content-type", "").startswith("multipart/mixed"):
            failed, written = _change_set(store, request, part, answer)
        else:
            failed, written = _single(store, request, part, answer)
        replies.append(written)
        if failed is not None and not go_on:
            status = failed
            break
    boundary = f"batchresponse_{uuid4()}"
    return BatchReply(status, f"multipart/mixed; boundary={boundary}", _joined(boundary, replies))


def split_parts(content_type: str, body: bytes) -> list[Part]:
    """The parts of a multipart body.

    Raises:
        DataverseError: there is no boundary, or a part has no headers.
    """
    match = re.search(r'boundary=(?:"([^"]+)"|([^;\s]+))', content_type)
    if not content_type.startswith("multipart/mixed") or match is None:
        raise errors.malformed("The content type of a batch request must be multipart/mixed with a boundary.")
    boundary = re.escape((match[1] or match[2]).encode())
    pieces = re.split(rb"(?:^|\r?\n)--" + boundary + rb"(?:--)?[ \t]*(?:\r?\n|$)", body)
    parts = [_part(piece) for piece in pieces[1:] if piece.strip()]
    if not parts:
        raise errors.malformed("The batch request has no operations.")
    return parts


def _part(piece: bytes) -> Part:
    head, _, body = _split_head(piece)
    return Part(_headers(head), body)


def _split_head(text: bytes) -> tuple[bytes, bytes, bytes]:
    match = re.search(rb"\r?\n\r?\n", text)
    return (text, b"", b"") if match is None else (text[: match.start()], match[0], text[match.end() :])


def _headers(head: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in head.decode("utf-8", "replace").splitlines())
    return {name.strip().lower(): value.strip() for name, colon, value in pairs if colon}


def _single(store: Store, outer: Request, part: Part, answer: Answer) -> tuple[int | None, tuple[str, bytes]]:
    try:
        inner = _inner(outer, part, {})
        reply = answer(store, inner)
        outer.keys.extend(inner.keys)
    except errors.DataverseError as error:
        reply = error_reply(error)
    failed = reply.status if reply.status >= 400 else None
    return failed, ("application/http", _written(reply, part.headers.get("content-id")))


def _change_set(store: Store, outer: Request, part: Part, answer: Answer) -> tuple[int | None, tuple[str, bytes]]:
    """All of it or nothing; a failure is answered by one part for the whole set."""
    replies: list[tuple[str, bytes]] = []
    made: dict[str, str] = {}
    keys: list[str] = []
    try:
        inner_parts = split_parts(part.headers["content-type"], part.body)
        with store.transaction():
            for inner_part in inner_parts:
                content_id = inner_part.headers.get("content-id")
                inner = _inner(outer, inner_part, made)
                if inner.method == "GET":
                    raise errors.malformed("A change set must not contain a GET request.")
                reply = answer(store, inner)
                if content_id is not None and "OData-EntityId" in reply.headers:
                    made[content_id] = reply.headers["OData-EntityId"]
                keys.extend(inner.keys)
                replies.append(("application/http", _written(reply, content_id)))
    except errors.DataverseError as error:
        return error.status, ("application/http", _written(error_reply(error), None))
    outer.keys.extend(keys)
    boundary = f"changesetresponse_{uuid4()}"
    return None, (f"multipart/mixed; boundary={boundary}", _joined(boundary, replies))


def _inner(outer: Request, part: Part, made: dict[str, str]) -> Request:
    """The HTTP request that a part holds; `$1` stands for what the part with Content-ID 1 made."""
    text = part.body.lstrip(b"\r\n")
    line, _, rest = text.partition(b"\n")
    words = line.decode("utf-8", "replace").split()
    if len(words) < 2 or not words[0].isalpha():
        raise errors.malformed("A part of the batch holds no HTTP request.")
    head, _, body = _split_head(b"\n" + rest)
    address = _with_references(" ".join(words[1:-1]) if words[-1].startswith("HTTP/") else " ".join(words[1:]), made)
    content = body.strip(b"\r\n")
    for content_id, entity in made.items():
        content = content.replace(f'"${content_id}"'.encode(), f'"{entity}"'.encode())
    if (forward := re.search(rb'@odata\.bind"\s*:\s*"\$(\w+)"', content)) is not None:
        raise _unknown_reference(forward[1].decode())
    if not address.startswith(("http://", "https://", "/")):
        address = f"/api/data/v9.2/{address}"
    return request_from(words[0], address, _headers(head), content, outer.base)


def _with_references(address: str, made: dict[str, str]) -> str:
    match = re.match(r"/?\$(\w+)", address)
    if match is None or match[1] in ("metadata",):
        return address
    if match[1] not in made:
        raise _unknown_reference(match[1])
    return made[match[1]] + address[match.end() :]


def _unknown_reference(content_id: str) -> errors.DataverseError:
    return errors.malformed(f"Content-ID Reference: '${content_id}' does not exist in the batch context.")


def _written(reply: Reply, content_id: str | None) -> bytes:
    lines = ["Content-Type: application/http", "Content-Transfer-Encoding: binary"]
    if content_id is not None:
        lines.append(f"Content-ID: {content_id}")
    lines += ["", f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Error')}"]
    lines += [f"{name}: {value}" for name, value in {"OData-Version": "4.0", **reply.headers}.items()]
    if reply.document is not None:
        lines.append("Content-Type: application/json; odata.metadata=minimal")
    return "\r\n".join([*lines, "", ""]).encode() + reply.body


def _joined(boundary: str, parts: list[tuple[str, bytes]]) -> bytes:
    joined = b""
    for content_type, body in parts:
        head = b"" if content_type == "application/http" else f"Content-Type: {content_type}\r\n\r\n".encode()
        joined += f"--{boundary}\r\n".encode() + head + body + b"\r\n"
    return joined + f"--{boundary}--\r\n".encode()


REASONS = {
    200: "OK",
    201: "Created",
    204: "No Content",
    304: "Not Modified",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    412: "Precondition Failed",
}
