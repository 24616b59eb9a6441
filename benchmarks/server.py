"""The target, in a process of its own: answers at once as Dataverse would, and counts. `python -m benchmarks.server`.

No more than everybody who sends here needs: single and bulk upserts, a token, and the few questions that our worker
and Microsoft's client ask first. Whatever it did besides would be time taken from those who are measured.

What it counted is asked of it below `/bench/`. Times are of the monotonic clock, which all processes share.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
TOKEN = {"token_type": "Bearer", "expires_in": 3599, "access_token": "x"}
TABLE = {
    "LogicalName": "bench_certificate",
    "EntitySetName": "bench_certificates",
    "PrimaryIdAttribute": "bench_certificateid",
}
FIRST_ARRIVALS = 1000
"""So many times are kept."""


@dataclass
class Counted:
    """Writes since the last reset."""

    requests: int = 0
    records: int = 0
    arrivals: list[float] = field(default_factory=list)
    """When each of the first records was here."""
    awaited: dict[int, Callable[[], None]] = field(default_factory=dict)
    """Who is told at how many records."""

    def add(self, records: int) -> None:
        """A write is here."""
        if len(self.arrivals) < FIRST_ARRIVALS:
            self.arrivals += [time.monotonic()] * records
        self.requests += 1
        self.records += records
        if self.awaited:
            self.tell()

    def tell(self) -> None:
        """Tell those who have waited long enough."""
        for records in [each for each in self.awaited if each <= self.records]:
            self.awaited.pop(records)()


class Answers(asyncio.Protocol):
    """One connection."""

    counted = Counted()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end])
            at = head.lower().find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._received) < end + 4 + length:
                return
            body = bytes(self._received[end + 4 : end + 4 + length])
            del self._received[: end + 4 + length]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        method, address, _ = head.split(b" ", 2)
        if method == b"PATCH":
            self.counted.add(1)
            self._transport.write(NO_CONTENT)
        elif address.endswith(b"UpsertMultiple"):
            self.counted.add(body.count(b'"@odata.id"'))
            self._transport.write(NO_CONTENT)
        elif address.startswith(b"/bench/"):
            self._tell(address.decode())
        else:
            self._write(_document(address))

    def _tell(self, address: str) -> None:
        parts = urlsplit(address)
        match parts.path:
            case "/bench/reset":
                Answers.counted = Counted()
                self._write({})
            case "/bench/arrivals":
                self._write({"arrivals": self.counted.arrivals})
            case "/bench/until":
                self.counted.awaited[int(parse_qs(parts.query)["records"][0])] = self._tell_reached
                self.counted.tell()

    def _tell_reached(self) -> None:
        counted = self.counted
        first, now = counted.arrivals[0], time.monotonic()
        self._write({"requests": counted.requests, "records": counted.records, "first": first, "at": now})

    def _write(self, document: object) -> None:
        text = json.dumps(document).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % len(text) + text)


def _document(address: bytes) -> object:
    """What is answered to a question."""
    match address:
        case _ if b"/token" in address:
            return TOKEN
        case _ if b"sdkmessagefilters" in address:
            # UpsertMultiple has no row of its own: it is there where its two parts are.
            return {"value": [] if b"UpsertMultiple" in address else [{"sdkmessagefilterid": n} for n in ("1", "2")]}
        case _ if b"PicklistAttributeMetadata" in address:
            return {"value": []}
        case _ if b"EntityDefinitions" in address:
            return {"value": [TABLE]}
        case _:
            return {"UserId": "00000000-0000-0000-0000-000000000001"}


async def main() -> None:
    """Serve on a free port, which is printed, until this is ended."""
    server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
