"""What one record needs of the Web API: an upsert by alternate key, a deletion or a deactivation.

Each may be sent again without harm after a lost answer.
"""

from collections.abc import Mapping as MappingOf
from dataclasses import field
from hashlib import blake2b

from pydantic_core import to_json

from dynamics_sync.core.mapping import DeleteRule, TableMapping, UnsendableError
from dynamics_sync.core.operation import SyncOperation
from dynamics_sync.core.outcome import Answer, Outcome, classify_removal, classify_write
from dynamics_sync.core.values import value

API_PATH = "/api/data/v9.2"

REQUEST_HEADERS = {
    "Accept": "application/json",
    "OData-Version": "4.0",
    "OData-MaxVersion": "4.0",
    "If-None-Match": "null",
}
"""On every request (Microsoft: "Compose HTTP requests and handle errors")."""

CONTENT_TYPE = {"Content-Type": "application/json"}
WRITE_HEADERS = REQUEST_HEADERS | CONTENT_TYPE
REMOVAL_HEADERS = {name: value for name, value in REQUEST_HEADERS.items() if name != "If-None-Match"} | {
    "If-Match": "*"
}


@value
class Call:
    """One request for one record, without what all requests have in common."""

    method: str
    address: str
    """Below the Web API's root."""
    body: bytes | None = field(default=None, repr=False)
    """JSON."""
    only_if_there: bool = False
    """A record that is to go must not be created first."""

    @property
    def is_upsert(self) -> bool:
        return self.body is not None and not self.only_if_there

    @property
    def headers(self) -> MappingOf[str, str]:
        """Those of its request."""
        if not self.only_if_there:
            return WRITE_HEADERS
        return REMOVAL_HEADERS if self.body is None else REMOVAL_HEADERS | CONTENT_TYPE

    def payload_hash(self, of_environment: blake2b) -> bytes | None:
        """A digest of what an upsert writes, and where; None for what is no upsert.

        Args:
            of_environment: as `digest_of` gives it.
        """
        if self.body is None or self.only_if_there:
            return None
        digest = of_environment.copy()
        digest.update(b"%b\0%b" % (self.address.encode(), self.body))
        return digest.digest()

    def outcome(self, answer: Answer) -> Outcome:
        """What an answer means for the record."""
        return classify_removal(answer) if self.only_if_there else classify_write(answer)


def digest_of(environment: str) -> blake2b:
    """The beginning of all digests of what an environment holds."""
    return blake2b(environment.encode() + b"\0", digest_size=16)


def call_for(
    table: TableMapping, operation: SyncOperation, row: MappingOf[str, object] | UnsendableError | None
) -> Call | None:
    """What brings Dynamics to the row's state; None where nothing is to be done.

    Raises:
        UnsendableError: the row cannot be read, or it or its key has no form in Dynamics.
    """
    if isinstance(row, UnsendableError):
        raise row
    address = table.address(operation.record_key)
    if row is not None:
        return Call("PATCH", address, to_json(table.body(row)))
    match table.on_delete:
        case DeleteRule.IGNORE:
            return None
        case DeleteRule.DELETE:
            return Call("DELETE", address, only_if_there=True)
        case DeleteRule.DEACTIVATE:
            return Call("PATCH", address, to_json(table.inactive), only_if_there=True)
