"""Requests that are ready to leave: for one record, for many as a whole, for many one by one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from dynamics_sync.core.mapping import TableMapping
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import (
    Accepted,
    Mismatch,
    Outcome,
    Transient,
    classify_bulk,
    shared_by_batch,
    shared_by_bulk,
)
from dynamics_sync.core.values import value
from dynamics_sync.dynamics import batch
from dynamics_sync.dynamics.bundling import Bundling, Form
from dynamics_sync.dynamics.calls import WRITE_HEADERS, Call
from dynamics_sync.dynamics.web_api import Exchanged, WebApi
from dynamics_sync.sync.ports import BulkRequest
from dynamics_sync.transport.errors import NoAnswerError

UPSERT_MULTIPLE = "Microsoft.Dynamics.CRM.UpsertMultiple"


@value
class Write:
    """What is written of one record."""

    call: Call
    payload_hash: bytes | None
    operation: SyncOperation


@value
class SingleRequest:
    """A request for one record."""

    api: WebApi
    write: Write
    token: str = field(repr=False)

    async def send(self) -> Sequence[Outcome]:
        """Make it, and say what the answer means."""
        call = self.write.call
        try:
            exchanged = await self.api.exchange(
                call.method,
                call.address,
                self.token,
                body=call.body,
                headers=call.headers,
                correlation_id=self.write.operation.correlation_id,
            )
        except NoAnswerError as error:
            return (Transient(error.code),)
        return (_written(call.outcome(exchanged.answer), self.write),)

    def alone(self) -> BulkRequest:
        """Itself."""
        return self


@dataclass(frozen=True, slots=True)
class BulkUpsert:
    """`UpsertMultiple`: all of them or none (Microsoft: "Use bulk operation messages")."""

    api: WebApi
    bundling: Bundling
    table: TableMapping
    writes: Sequence[Write]
    token: str = field(repr=False)

    @staticmethod
    def takes(call: Call) -> bool:
        """Whether a call may be a part. An address in which characters are encoded may not: it is not said anywhere
        whether they are to be encoded in `@odata.id`."""
        return call.is_upsert and "%" not in call.address

    async def send(self) -> Sequence[Outcome]:
        """Make it, and say what the answer means for each."""
        count = len(self.writes)
        try:
            exchanged = await self.api.exchange(
                "POST",
                f"{self.table.entity_set}/{UPSERT_MULTIPLE}",
                self.token,
                body=self._body(),
                headers=WRITE_HEADERS,
                correlation_id=str(uuid4()),
            )
            outcome, seconds = classify_bulk(exchanged.answer), exchanged.seconds
        except NoAnswerError as error:
            outcome, seconds = Transient(error.code), 0.0
        self.bundling.learn(self.table.source, Form.BULK, count, seconds, outcome)
        if isinstance(outcome, Accepted):
            return [_written(outcome, write) for write in self.writes]
        return shared_by_bulk(outcome, count)

    def alone(self) -> BulkRequest:
        """The first."""
        return SingleRequest(self.api, self.writes[0], self.token)

    def _body(self) -> bytes:
        kind = f'"Microsoft.Dynamics.CRM.{self.table.logical_name}"'
        targets = (
            b'%s, "@odata.type": %s, "@odata.id": "%s"}' % ((write.call.body or b"{}")[:-1], kind.encode(), address)
            for write in self.writes
            for address in [write.call.address.encode()]
        )
        return b'{"Targets": [%s]}' % b", ".join(targets)


@dataclass(frozen=True, slots=True)
class Batch:
    """`$batch`: each stands or falls by itself."""

    api: WebApi
    bundling: Bundling
    form: Form
    source: str
    writes: Sequence[Write]
    token: str = field(repr=False)

    async def send(self) -> Sequence[Outcome]:
        """Make it, and say what the answer means for each."""
        count = len(self.writes)
        content_type, body = batch.batch_body([write.call for write in self.writes])
        try:
            exchanged = await self.api.exchange(
                "POST",
                batch.ADDRESS,
                self.token,
                body=body,
                headers=batch.HEADERS | {"Content-Type": content_type},
                correlation_id=str(uuid4()),
                read_bytes=batch.MAX_BYTES,
            )
        except NoAnswerError as error:
            outcomes = shared_by_batch(Transient(error.code), count)
            seconds = 0.0
        else:
            outcomes, seconds = self._outcomes(exchanged), exchanged.seconds
        self.bundling.learn(self.source, self.form, count, seconds, outcomes[-1])
        return [_written(outcome, write) for outcome, write in zip(outcomes, self.writes, strict=True)]

    def alone(self) -> BulkRequest:
        """The first."""
        return SingleRequest(self.api, self.writes[0], self.token)

    def _outcomes(self, exchanged: Exchanged) -> Sequence[Outcome]:
        count = len(self.writes)
        if exchanged.answer.status != 200:
            return shared_by_batch(classify_bulk(exchanged.answer), count)
        answers = batch.batch_answers(exchanged.headers, exchanged.body, count, exchanged.at)
        if answers is None:
            return shared_by_batch(Mismatch(), count)
        return [write.call.outcome(answer) for write, answer in zip(self.writes, answers, strict=True)]


def _written(outcome: Outcome, write: Write) -> Outcome:
    """With the digest of what Dynamics accepted."""
    return Accepted(outcome.etag, write.payload_hash) if isinstance(outcome, Accepted) else outcome
