"""Reading Dynamics, gently: one request at a time, behind the breaker that all workers share."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from dynamics_sync.core.circuit import Blocked, Permit
from dynamics_sync.core.errors import DynamicsSyncError
from dynamics_sync.core.explanations import explain
from dynamics_sync.core.outcome import Mismatch, Throttled, Transient, Unauthorized
from dynamics_sync.core.retry import RetryPolicy
from dynamics_sync.sync.breaker import DynamicsCircuitBreaker
from dynamics_sync.sync.ports import Clock

T = TypeVar("T")

LOOK_SECONDS = 5.0
"""While Dynamics is to be left alone: how long until the next look at the circuit."""


class ReadingError(DynamicsSyncError):
    """Dynamics could not be read."""


class RefusedReadingError(ReadingError):
    """Dynamics works, and refuses this question."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.is_about_rights = status in (401, 403)


@dataclass(frozen=True, slots=True)
class Held:
    """One record as Dynamics holds it."""

    id: str
    key: str | None
    """The alternate key's value; None for a record that has none, and so is none of ours."""
    etag: str
    attributes: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a table."""

    held: Sequence[Held]
    deleted: Sequence[str] = ()
    """Ids of records that went, where changes were asked for."""
    next_link: str | None = None
    delta_link: str | None = None
    """Leads to what changes from now on."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What Dynamics says of a table."""

    logical_name: str
    primary_id: str
    tracks_changes: bool


@dataclass(frozen=True, slots=True)
class View:
    """What is read of each record of a table."""

    entity_set: str
    primary_id: str
    key: str
    """The alternate key's column."""
    properties: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """An answer."""

    value: T


@dataclass(frozen=True, slots=True)
class Refused:
    """Dynamics understood the question and refuses it."""

    status: int
    error_code: str


Failed = Transient | Throttled | Unauthorized | Refused | Mismatch


class Question(Protocol[T]):
    """One request that reads."""

    @property
    def about(self) -> str:
        """The name of the table in question."""
        ...

    async def ask(self, token: str) -> Found[T] | Failed:
        """Make it, leaving at once."""
        ...


class Reader(Protocol):
    """The questions that a Dynamics answers."""

    @property
    def environment(self) -> str:
        """Which Dynamics: links of one mean nothing to another."""
        ...

    async def token(self) -> str:
        """An access token; CredentialsError if there is none."""
        ...

    def forget(self, token: str) -> None:
        """Dynamics refused this token."""
        ...

    def definition(self, entity_set: str) -> Question[Definition | None]:
        """What Dynamics says of a table; None if it has no such table."""
        ...

    def who_am_i(self) -> Question[str]:
        """The id of the user that we are there."""
        ...

    def has_messages(self, logical_name: str, names: Sequence[str]) -> Question[bool]:
        """Whether a table has all of these messages."""
        ...

    def lookups(self, logical_name: str) -> Question[Mapping[str, str]]:
        """The property that each lookup of a table reads back as, by navigation property."""
        ...

    def first_page(self, view: View, size: int, *, tracked: bool) -> Question[Page]:
        """The first page of all records; with `tracked` the last one has a delta link."""
        ...

    def following(self, view: View, link: str, size: int, *, tracked: bool) -> Question[Page]:
        """The page that a next link or delta link leads to. It has to be asked for as the page that gave the link."""
        ...

    def with_keys(self, view: View, keys: Sequence[str]) -> Question[Page]:
        """The records that have one of these keys: not more than `batches` puts together."""
        ...

    def batches(self, keys: Sequence[str]) -> Sequence[Sequence[str]]:
        """Keys, divided into what one question can carry."""
        ...

    def with_id(self, view: View, record_id: str) -> Question[Page]:
        """The record with this id, if there is one."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """What is done meanwhile: both are called before each request and, while none may leave, every few seconds."""

    keep: Callable[[], Awaitable[None]]
    """Stay the only one who reads; raises if somebody else is now."""
    told: Callable[[datetime | None], None]
    """Until when there is silence; None once there is none."""


class GentleReader:
    """Asks until it has an answer, and waits as long as Dynamics is to be left alone."""

    def __init__(self, reader: Reader, breaker: DynamicsCircuitBreaker, policy: RetryPolicy, clock: Clock) -> None:
        self._reader = reader
        self._breaker = breaker
        self._policy = policy
        self._clock = clock

    async def ask(self, question: Question[T], patience: Patience) -> T:
        """The answer.

        Raises:
            RefusedReadingError: Dynamics refuses the question.
            ReadingError: it failed as often as the retry policy allows.
            CredentialsError: there is no access token.
        """
        failures, renewed = 0, False
        while True:
            await patience.keep()
            token = await self._reader.token()
            verdict = await self._breaker.admit()
            if isinstance(verdict, Blocked):
                await self._wait(verdict, patience)
                continue
            patience.told(None)
            match await self._ask_once(question, token, verdict):
                case Found(value):
                    return value
                case Throttled():
                    pass  # everybody is paused now
                case Unauthorized() if not renewed:
                    renewed = True
                    self._reader.forget(token)
                case Refused(status, code):
                    raise _refusal(question.about, status, code)
                case Unauthorized(code):
                    raise _refusal(question.about, 401, code)
                case Transient(code) | Mismatch(code):
                    failures += 1
                    if failures >= self._policy.max_requests:
                        raise ReadingError(
                            f"Dynamics could not be read in {failures} tries ({code}): {explain(code)} What was "
                            "compared is kept; `dynamics-sync reconcile` goes on from there."
                        )
                    await self._clock.sleep(self._policy.delay_ms(failures) / 1000)

    async def _ask_once(self, question: Question[T], token: str, permit: Permit) -> Found[T] | Failed:
        try:
            answer = await question.ask(token)
            match answer:
                case Transient(code) | Mismatch(code):
                    await self._breaker.record_failure(permit, code)
                    if isinstance(answer, Transient) and answer.retry_after_seconds:
                        await self._breaker.pause(answer.retry_after_seconds)
                case Throttled(_, seconds):
                    await self._breaker.pause(seconds)
                    await self._breaker.release(permit)
                case _:
                    await self._breaker.record_success(permit)
        except BaseException:
            await self._breaker.release(permit)
            raise
        return answer

    async def _wait(self, blocked: Blocked, patience: Patience) -> None:
        patience.told(blocked.retry_at)
        seconds = (blocked.retry_at - self._clock.now()).total_seconds()
        await self._clock.sleep(min(max(seconds, 0.05), LOOK_SECONDS))


def _refusal(about: str, status: int, code: str) -> RefusedReadingError:
    if status in (401, 403):
        advice = (
            "Reconciling needs a right that sending does not: the application user's security role must let it read "
            "the table, all records of the organisation."
        )
    elif status >= 400:
        advice = (
            "A name in the mapping may be another one there: compare `entity_set`, `alternate_key` and the columns' "
            "`to` with the table in Dynamics."
        )
    else:
        advice = explain(code)
    return RefusedReadingError(f"Dynamics did not let {about} be read ({code}). {advice}", status)
