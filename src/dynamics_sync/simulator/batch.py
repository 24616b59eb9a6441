"""`$batch`: many requests in one body (Microsoft: "Execute batch operations using the Web API")."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar
from uuid import uuid4

from dynamics_sync.simulator import errors
from dynamics_sync.simulator.addresses import ROOT
from dynamics_sync.simulator.messages import Reply, Request, error_reply, request_from, request_target
from dynamics_sync.simulator.multipart import Part, is_multipart, joined, split_head, split_parts, written
from dynamics_sync.simulator.store import Store

MAX_OPERATIONS = 1000

Answer = Callable[[Store, Request], Reply]
Result = TypeVar("Result")


class Commit(Protocol):
    """Does a piece of work that holds as a whole or not at all, on behalf of a request."""

    async def __call__(self, request: Request, work: Callable[[], Result]) -> Result: ...


_Done = tuple[int | None, tuple[str, bytes]]
"""The status of a failure, and what is answered."""
_BOUND_REFERENCE = re.compile(rb'(@odata\.bind"\s*:\s*")\$(\w+)(?=")')
_REFERENCE = re.compile(r"/?\$(\w+)")


@dataclass(frozen=True, slots=True)
class BatchReply:
    """A multipart answer."""

    status: int
    content_type: str
    body: bytes


async def run_batch(store: Store, request: Request, answer: Answer, commit: Commit) -> BatchReply:
    """Run the parts in order. Without `continue-on-error` the first failure ends it and gives the outer status.

    A part of its own, and a change set as a whole, is committed before the next one runs.

    Raises:
        DataverseError: the body is no batch.
    """
    if request.method != "POST":
        raise errors.no_such_resource(request.path)
    parts = _checked_parts(request)
    go_on = "odata.continue-on-error" in request.prefer
    replies: list[tuple[str, bytes]] = []
    status = 200
    for part in parts:
        run = _change_set if is_multipart(part) else _single
        failed, reply = await run(store, request, part, answer, commit)
        replies.append(reply)
        if failed is not None and not go_on:
            status = failed
            break
    boundary = f"batchresponse_{uuid4()}"
    return BatchReply(status, f"multipart/mixed; boundary={boundary}", joined(boundary, replies))


def batch_requests(request: Request) -> Iterator[Request]:
    """The requests that a batch holds, without running them; nothing for what cannot be understood."""
    try:
        parts = _checked_parts(request)
    except errors.DataverseError:
        return
    for part in parts:
        try:
            inner = split_parts(part.headers["content-type"], part.body) if is_multipart(part) else [part]
        except errors.DataverseError:
            continue
        for one in inner:
            try:
                yield _request(request, one, None)
            except errors.DataverseError:
                continue


def _checked_parts(request: Request) -> list[Part]:
    parts = split_parts(request.headers.get("content-type", ""), request.body)
    operations = sum(part.body.count(b"application/http") if is_multipart(part) else 1 for part in parts)
    if max(operations, len(parts)) > MAX_OPERATIONS:
        raise errors.malformed(f"The batch request has more than {MAX_OPERATIONS} operations.")
    return parts


async def _single(store: Store, outer: Request, part: Part, answer: Answer, commit: Commit) -> _Done:
    try:
        inner = _request(outer, part, {})
        reply = await commit(inner, lambda: answer(store, inner))
        outer.keys.extend(inner.keys)
    except errors.DataverseError as error:
        reply = error_reply(error, outer)
    failed = reply.status if reply.status >= 400 else None
    return failed, written(reply, part.headers.get("content-id"))


async def _change_set(store: Store, outer: Request, part: Part, answer: Answer, commit: Commit) -> _Done:
    """All of it or nothing; a failure is answered by one part for the whole set."""
    try:
        keys, replies = await commit(outer, lambda: _all_of(store, outer, part, answer))
    except errors.DataverseError as error:
        return error.status, written(error_reply(error, outer), None)
    outer.keys.extend(keys)
    boundary = f"changesetresponse_{uuid4()}"
    return None, (f"multipart/mixed; boundary={boundary}", joined(boundary, replies))


def _all_of(store: Store, outer: Request, part: Part, answer: Answer) -> tuple[list[str], list[tuple[str, bytes]]]:
    """The keys that a change set writes, and its replies."""
    replies: list[tuple[str, bytes]] = []
    made: dict[str, str] = {}
    keys: list[str] = []
    with store.transaction():
        for inner_part in split_parts(part.headers["content-type"], part.body):
            content_id = inner_part.headers.get("content-id")
            inner = _request(outer, inner_part, made)
            if inner.method == "GET":
                raise errors.malformed("A change set must not contain a GET request.")
            reply = answer(store, inner)
            if content_id is not None and reply.wrote is not None:
                made[content_id] = reply.wrote
            keys.extend(inner.keys)
            replies.append(written(reply, content_id))
    return keys, replies


def _request(outer: Request, part: Part, made: Mapping[str, str] | None) -> Request:
    """The HTTP request that a part holds. `$1` stands for what the part with Content-ID 1 made.

    With None for `made`, references stay as they are.
    """
    line, _, rest = part.body.lstrip(b"\r\n").partition(b"\n")
    words = line.decode("utf-8", "replace").split()
    if len(words) < 2 or not words[0].isalpha():
        raise errors.malformed("A part of the batch holds no HTTP request.")
    headers, body = split_head(b"\n" + rest)
    address = " ".join(words[1:-1] if words[-1].upper().startswith("HTTP/") else words[1:])
    content = body.strip(b"\r\n")
    if made is not None:
        address = _resolved_address(address, made)
        content = _BOUND_REFERENCE.sub(lambda found: found[1] + _resolved(found[2].decode(), made).encode(), content)
    target = request_target(address)
    if not target.startswith("/"):
        target = f"{ROOT}/{target}"
    inner = request_from(words[0], target, headers, content, outer.base)
    inner.user_id = outer.user_id
    if inner.path == "$batch":
        raise errors.malformed("A batch request must not contain a batch request.")
    return inner


def _resolved_address(address: str, made: Mapping[str, str]) -> str:
    match = _REFERENCE.match(address)
    return address if match is None else _resolved(match[1], made) + address[match.end() :]


def _resolved(content_id: str, made: Mapping[str, str]) -> str:
    if content_id not in made:
        raise errors.malformed(f"Content-ID Reference: '${content_id}' does not exist in the batch context.")
    return made[content_id]
