"""The Dataverse Web API as a gateway: reads records, makes one request of as many as go together."""

from collections.abc import Sequence

from dynamics_sync.core.errors import CredentialsError
from dynamics_sync.core.mapping import Mapping, TableMapping, UnsendableError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import AlreadyThere, Answer, NoRequest, NothingToSend, NotReady, Unsendable
from dynamics_sync.dynamics.bundling import Bundling, Form
from dynamics_sync.dynamics.calls import call_for, digest_of
from dynamics_sync.dynamics.requests import Batch, BulkUpsert, SingleRequest, Write
from dynamics_sync.dynamics.tokens import Tokens
from dynamics_sync.dynamics.web_api import WebApi
from dynamics_sync.sync.ports import BulkRequest, Prepared, Reading, Records


class DataverseGateway:
    """Upserts, deactivates and deletes by alternate key: each may be sent again without harm after a lost answer."""

    def __init__(self, *, api: WebApi, tokens: Tokens, records: Records, mapping: Mapping, bundling: Bundling) -> None:
        self._api = api
        self._tokens = tokens
        self._records = records
        self._mapping = mapping
        self._bundling = bundling
        self._digest = digest_of(api.environment)

    def most_together(self, source_table: str) -> int:
        """How many records of a table are worth to be collected for one request."""
        return self._bundling.most_together(source_table)

    async def prepare(self, operations: Sequence[SyncOperation], *, one_by_one: bool = False) -> Prepared:
        """Read the records' rows, and have a token. Raises only if rows cannot be read."""
        source = operations[0].source_table
        table = self._mapping.table(source)
        if table is None:
            unknown = Unsendable("mapping.unknown_table", source)
            return Prepared(instead=dict.fromkeys(range(len(operations)), unknown))
        writes: dict[int, Write] = {}
        instead: dict[int, NoRequest] = {}
        for place, reading in enumerate(await self._records.read(operations)):
            write = self._write(table, operations[place], reading)
            if isinstance(write, Write):
                writes[place] = write
            else:
                instead[place] = write
        if not writes:
            return Prepared(instead=instead)
        try:
            token = await self._tokens.get()
        except CredentialsError:
            refused = NotReady("token", self._tokens.pause_seconds)
            return Prepared(instead=instead | dict.fromkeys(writes, refused))
        places, request = self._request(table, writes, token, one_by_one)
        return Prepared(request, places, instead)

    async def renew_token(self) -> None:
        """Forget the token that Dynamics refused."""
        if self._api.refused_token is not None:
            self._tokens.forget(self._api.refused_token)

    async def who_am_i(self) -> Answer:
        """Ask Dynamics whether it lets us in; changes nothing.

        Raises:
            CredentialsError: there is no token.
            NoAnswerError: there was none.
        """
        return (await self._api.exchange("GET", "WhoAmI", await self._tokens.get())).answer

    def _write(self, table: TableMapping, operation: SyncOperation, reading: Reading) -> Write | NoRequest:
        try:
            call = call_for(table, operation, reading.row)
        except UnsendableError as error:
            return Unsendable(error.code, error.name)
        if call is None:
            return NothingToSend()
        payload_hash = call.payload_hash(self._digest)
        if payload_hash is not None and payload_hash == reading.payload_hash:
            return AlreadyThere()
        return Write(call, payload_hash, operation)

    def _request(
        self, table: TableMapping, writes: dict[int, Write], token: str, one_by_one: bool
    ) -> tuple[Sequence[int], BulkRequest]:
        """The first request that has to be made for these, and for which of them it is."""
        form = None if len(writes) == 1 else self._bundling.form(table.source)
        if form is not None and one_by_one:
            form = Form.APART  # also where another answer has ended bulk messages meanwhile
        if form is Form.BULK:
            fitting = [place for place, write in writes.items() if BulkUpsert.takes(write.call)]
            if len(fitting) > 1:
                places = fitting[: self._bundling.size(table.source, Form.BULK)]
                parts = [writes[place] for place in places]
                return places, BulkUpsert(self._api, self._bundling, table, parts, token)
        if form is not None:
            form = Form.BATCH if form is Form.BULK else form  # these do not fit into a bulk message
            places = [*writes][: self._bundling.size(table.source, form)]
            if len(places) > 1:
                parts = [writes[place] for place in places]
                return places, Batch(self._api, self._bundling, form, table.source, parts, token)
        place = next(iter(writes))
        return (place,), SingleRequest(self._api, writes[place], token)
