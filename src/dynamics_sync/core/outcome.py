"""What an answer of Dynamics, or of a portal, means (R1, R8, R27). The status decides; the code only explains.

Sources: Microsoft's pages "Compose HTTP requests and handle errors" and "Service protection API limits".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dynamics_sync.core.values import value

DEFAULT_PAUSE_SECONDS = 5.0
"""How long the target is left alone when Dynamics asks for patience without saying how long."""

CONTRACT_MISMATCH = "contract_mismatch"

UNANSWERED_CODES = frozenset({"timeout", "connection_reset", "http_502", "http_504"})
"""Failures that leave open whether Dynamics is still at work on the request. It may take effect late, even after a
newer state was written."""

LATE_SECONDS = 180.0
"""After so long, an unanswered request takes effect no more: Dataverse ends an operation after two minutes."""

RECORD_ABSENT_CODES = frozenset({"0x80040217", "0x80060891"})
"""404: the record is not there, by id and by alternate key. Other 404s mean that the address is wrong."""


@value
class Answer:
    """The parts of an HTTP answer that decide. Never its text: Dynamics' messages quote record data (R16)."""

    status: int
    error_code: str | None = None
    """Dataverse's code (`0x80040265`), if the body was a Dataverse error and had one."""
    is_known_error: bool = False
    """The body had the form in which the contract tells errors; Dataverse's is JSON, `{"error": {...}}`."""
    retry_after_seconds: float | None = None
    etag: str | None = None

    @property
    def code(self) -> str:
        return self.error_code or f"http_{self.status}"


@value
class Accepted:
    """Dynamics did what was asked, or there was nothing left to do."""

    etag: str | None = None
    payload_hash: bytes | None = None
    """A digest of what was written, by whoever made the request."""


@dataclass(frozen=True, slots=True)
class NothingToSend:
    """No request was made, and none is needed: the mapping ignores this change."""


@dataclass(frozen=True, slots=True)
class AlreadyThere:
    """No request was made, and none is needed: Dynamics holds this very state."""


@dataclass(frozen=True, slots=True)
class NotOurs:
    """No request was made: another worker has the record by now, or could have it before the answer."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """A request for many records was refused as a whole, and it is not known which of them is to blame. Nothing was
    written. Each has to be judged by itself."""


@dataclass(frozen=True, slots=True)
class TooMuch:
    """A request for many records could not be taken as a whole. Fewer go into the next one."""


@dataclass(frozen=True, slots=True)
class Transient:
    """Dynamics, or the way to it, is not well: worth another try."""

    error_code: str
    retry_after_seconds: float | None = None
    """For how long it asked to be left alone, if it did (RFC 9110, 10.2.3)."""
    may_be_written: bool = False
    """The request was for many records, some of which may have been written before it failed."""

    @property
    def is_answered(self) -> bool:
        """Dynamics itself said that it failed: the request has no effect, and will not take effect any more."""
        return self.error_code not in UNANSWERED_CODES and not self.may_be_written


@dataclass(frozen=True, slots=True)
class Throttled:
    """Flow control: neither a failure nor a try. Everybody leaves Dynamics alone for a while."""

    error_code: str
    retry_after_seconds: float


@dataclass(frozen=True, slots=True)
class Unauthorized:
    """The token was not accepted."""

    error_code: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """Somebody else wrote the record at the same moment: read it again and decide again."""

    error_code: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """Dynamics understood the request and refused it."""

    error_code: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Something answered, but not as the contract says: perhaps a log-in page, perhaps a proxy."""

    error_code: str = CONTRACT_MISMATCH
    place: str | None = None
    """Where the answer differs, in the contract's own words: never the answer's."""


@dataclass(frozen=True, slots=True)
class Unsendable:
    """No request was made: the record cannot be expressed in Dynamics' terms, or no mapping knows it."""

    error_code: str
    place: str | None = None
    """The name of the column or table in question."""


@dataclass(frozen=True, slots=True)
class NotReady:
    """No request was made: there is no access token for now."""

    error_code: str
    retry_after_seconds: float


NoRequest = NothingToSend | AlreadyThere | Unsendable | NotReady | NotOurs
"""Why a record does not go into a request."""

Outcome = (
    Accepted
    | NothingToSend
    | AlreadyThere
    | Transient
    | Throttled
    | Unauthorized
    | Conflict
    | Rejected
    | Mismatch
    | Undecided
    | TooMuch
    | Unsendable
    | NotReady
    | NotOurs
)
"""What one try came to."""

IsWell = Accepted | Rejected | Unauthorized | Conflict | Undecided | TooMuch
"""Such an answer comes from a Dynamics that works, a 4xx included (R8)."""


def classify_write(answer: Answer) -> Outcome:
    """What the answer to an upsert means. Success is 204 and nothing else: no body was asked for."""
    return Accepted(answer.etag) if answer.status == 204 else classify_failure(answer)


def classify_failure(answer: Answer) -> Outcome:
    """What an answer means that is no success."""
    match answer.status:
        case 408 | 429:
            wait = answer.retry_after_seconds
            return Throttled(answer.code, DEFAULT_PAUSE_SECONDS if wait is None else wait)
        case 401:
            return Unauthorized(answer.code)
        case status if 500 <= status <= 599:
            return Transient(answer.code, answer.retry_after_seconds)
        case 412 if answer.is_known_error:
            return Conflict(answer.code)
        case status if 400 <= status <= 499 and answer.is_known_error:
            return Rejected(answer.code)
        case _:
            return Mismatch()


def classify_bulk(answer: Answer) -> Outcome:
    """What the answer to an upsert of many records means: all are written or none, and an error names none of them
    (Microsoft: "Use bulk operation messages")."""
    if answer.status == 413:
        return TooMuch()
    outcome = classify_write(answer)
    return Undecided() if isinstance(outcome, Rejected | Conflict) else outcome


def shared_by_bulk(outcome: Outcome, count: int) -> Sequence[Outcome]:
    """What the outcome of an upsert of many records means for each. If what answered is not Dynamics, one record tells
    a person, and the others are tried by themselves."""
    others = Undecided() if isinstance(outcome, Mismatch) else outcome
    return [outcome, *[others] * (count - 1)]


def shared_by_batch(outcome: Outcome, count: int) -> Sequence[Outcome]:
    """What the failure of a batch as a whole means for each of its records: with few enough records it is none."""
    match outcome:
        case Mismatch():
            return [outcome, *[TooMuch()] * (count - 1)]
        case Undecided() | TooMuch():
            return [TooMuch()] * count
        case Transient():
            return [replace(outcome, may_be_written=True)] * count
    return [outcome] * count


def classify_removal(answer: Answer) -> Outcome:
    """What the answer to a deletion or deactivation means: a record that is not there needs none."""
    if answer.status == 404 and answer.error_code in RECORD_ABSENT_CODES:
        return Accepted()
    return classify_write(answer)
