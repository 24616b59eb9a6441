"""A portal's webhook API as a gateway: reads the record, sends one signed event, says what the answer means."""

import json
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from dynamics_sync.core.errors import ConfigurationError
from dynamics_sync.core.mapping import UnsendableError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import NothingToSend, NotReady, Outcome, Transient, Unsendable
from dynamics_sync.portal.answers import MAX_BYTES, meaning
from dynamics_sync.portal.contract import Contract
from dynamics_sync.portal.signing import Signer, webhook_id
from dynamics_sync.sync.ports import Clock, Records, Request
from dynamics_sync.transport.addresses import may_be_sent, may_carry_secrets, target_of
from dynamics_sync.transport.client import HttpClient
from dynamics_sync.transport.errors import NoAnswerError

HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "Accept-Encoding": "identity",
}


def portal_address(url: str, path: str) -> str:
    """Where events are sent.

    Raises:
        ConfigurationError: `url` is no https:// address, nor http:// on this machine.
    """
    parts = urlsplit(url) if may_carry_secrets(url) else None
    if parts is None or parts.query or parts.fragment or not may_be_sent(url):
        raise ConfigurationError(
            "DYNAMICS_SYNC_PORTAL_URL must look like https://portal.example.org, without a query. Plain http:// is "
            "taken only for this machine itself (127.0.0.1, ::1, localhost)."
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}{path}"


class PortalGateway:
    """Tells a portal the present state of records. The version of each event lets it keep the newest, whatever arrives
    late; the id lets it know what arrives twice."""

    def __init__(
        self,
        *,
        address: str,
        client: HttpClient,
        signer: Signer,
        records: Records,
        contract: Contract,
        clock: Clock,
    ) -> None:
        self._target = target_of(address)
        self._client = client
        self._signer = signer
        self._records = records
        self._contract = contract
        self._clock = clock

    async def prepare(self, operation: SyncOperation) -> Request | NothingToSend | Unsendable | NotReady:
        """Read the record's row, and hold the event against the contract. Raises only if the row cannot be read."""
        if not self._contract.knows(operation.source_table):
            return Unsendable("mapping.unknown_table", operation.source_table)
        (reading,) = await self._records.read([operation])
        try:
            if isinstance(reading.row, UnsendableError):
                raise reading.row
            event = self._contract.event(operation, reading.row, self._clock.now())
        except UnsendableError as error:
            return Unsendable(error.code, error.name)
        if event is None:
            return NothingToSend()
        if (place := self._contract.request.place_in(event)) is not None:
            return Unsendable("portal.request", place)
        return PortalRequest(self, webhook_id(operation), json.dumps(event))

    async def renew_token(self) -> None:
        """There is none: each request is signed anew."""

    async def exchange(self, delivery: str, body: str) -> Outcome:
        """Make one request, signed at this moment: a receiver takes no old signature.

        Raises:
            NoAnswerError: there was none.
        """
        now = self._clock.now()
        headers = HEADERS | self._signer.headers(delivery, body, now) | {"Idempotency-Key": delivery}
        response = await self._client.request(
            "POST", self._target, headers=headers, body=body.encode(), enough=MAX_BYTES
        )
        return meaning(response, self._contract, delivery, now)


@dataclass(frozen=True, slots=True)
class PortalRequest:
    """An event that is ready to leave."""

    gateway: PortalGateway
    delivery: str
    """The webhook's id."""
    body: str = field(repr=False)

    async def send(self) -> Outcome:
        """Send it, and say what the answer means."""
        try:
            return await self.gateway.exchange(self.delivery, self.body)
        except NoAnswerError as error:
            return Transient(error.code)
