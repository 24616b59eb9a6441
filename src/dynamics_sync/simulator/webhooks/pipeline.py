"""From a change to its deliveries: who is told of it, before it holds or afterwards."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from dynamics_sync.simulator.errors import webhook_failed
from dynamics_sync.simulator.faults import OF_SYNCHRONOUS_WEBHOOKS, Fault, FaultKind, Faults
from dynamics_sync.simulator.records import Change
from dynamics_sync.simulator.store import Store, key_values
from dynamics_sync.simulator.webhooks.background import Background
from dynamics_sync.simulator.webhooks.context import Event, Origin
from dynamics_sync.simulator.webhooks.deliveries import Delivery, Outcome, Sender
from dynamics_sync.simulator.webhooks.registrations import Mode, Registration, registration

Result = TypeVar("Result")


class Webhooks:
    """What is registered, and every write that is to be told of."""

    def __init__(
        self,
        store: Store,
        faults: Faults,
        now: Callable[[], float],
        timeout_seconds: float,
        remembered: int,
        unforeseen: list[Exception],
    ) -> None:
        self.registrations: list[Registration] = []
        self.deliveries: deque[Delivery] = deque(maxlen=remembered)
        """The last ones, oldest first."""
        self._store = store
        self._faults = faults
        self._sender = Sender(now, timeout_seconds)
        self._background = Background(self._sender, unforeseen)
        self._one_at_a_time = asyncio.Lock()

    @property
    def is_idle(self) -> bool:
        """Whether nobody is to be told of anything, so that writes need not pass here."""
        return not self.registrations and not self._one_at_a_time.locked()

    def start(self, url: str) -> None:
        """Go on with what waits. `url` is the environment's."""
        self._sender.organization = urlsplit(url).netloc
        self._background.start()

    async def stop(self) -> None:
        """Interrupt what is under way, and keep what waits."""
        await self._background.stop()
        await self._sender.close()

    def register(self, declared: Mapping[str, Any]) -> Registration:
        """Tell somebody of changes from now on.

        Raises:
            ValueError: the declaration is malformed; the message says how.
        """
        tables = {table.logical_name: table for table in self._store.tables.values()}
        self.registrations.append(registration(declared, tables))
        return self.registrations[-1]

    def lift(self) -> None:
        """End all registrations, and what still waits for them."""
        self.registrations.clear()
        self._background.forget()

    def release_held(self) -> None:
        """Send what a fault of kind `out_of_order` holds back."""
        self._background.release()

    async def commit(self, origin: Origin, work: Callable[[], Result]) -> Result:
        """Do a piece of work, and tell of its changes.

        While somebody is told synchronously, writes wait for one another, and readers see what was there before.

        Raises:
            DataverseError: as the work does; or a synchronous receiver did not answer 2xx, and nothing was changed.
        """
        if not self._one_at_a_time.locked() and all(one.mode is Mode.ASYNCHRONOUS for one in self.registrations):
            with self._store.recording() as changes:
                result = work()
        else:
            async with self._one_at_a_time:
                with self._store.trial() as trial:
                    result = work()
                changes = trial.changes
                await self._ask(changes, origin)
                trial.redo()
        for event in self._events(changes, origin, Mode.ASYNCHRONOUS):
            self._tell(event)
        return result

    async def _ask(self, changes: Collection[Change], origin: Origin) -> None:
        for event in self._events(changes, origin, Mode.SYNCHRONOUS):
            fault = self._fault(event.change, OF_SYNCHRONOUS_WEBHOOKS)
            kind = None if fault is None else fault.kind
            if fault is not None and kind is FaultKind.DELAY:
                await asyncio.sleep(fault.seconds)
            for _ in range(2 if kind is FaultKind.DUPLICATE else 1):
                delivery = self._noted(event, kind)
                await self._sender.send(delivery)
                if delivery.outcome is not Outcome.DELIVERED:
                    raise webhook_failed(delivery.problem)

    def _tell(self, event: Event) -> None:
        fault = self._fault(event.change, frozenset(FaultKind))
        kind = None if fault is None else fault.kind
        delivery = self._noted(event, kind)
        match kind:
            case FaultKind.LOST:
                delivery.outcome, delivery.problem = Outcome.LOST, "Lost on purpose."
            case FaultKind.OUT_OF_ORDER:
                self._background.hold(delivery)
            case FaultKind.DELAY if fault is not None:
                self._background.delay(delivery, fault.seconds)
            case FaultKind.DUPLICATE:
                self._background.send(delivery)
                self._background.send(self._noted(event, kind))
            case _:
                self._background.send(delivery)

    def _events(self, changes: Collection[Change], origin: Origin, mode: Mode) -> Iterator[Event]:
        """One for each change and registration. An asynchronous one is a system job, which has an id of its own."""
        for change in changes:
            for one in self.registrations:
                if one.mode is mode and one.is_told_of(change):
                    operation_id = origin.request_id if mode is Mode.SYNCHRONOUS else str(uuid4())
                    yield Event(one, change, origin, operation_id, self._store.tables)

    def _noted(self, event: Event, kind: FaultKind | None) -> Delivery:
        delivery = Delivery(event, is_oversized=kind is FaultKind.OVERSIZED)
        self.deliveries.append(delivery)
        return delivery

    def _fault(self, change: Change, kinds: Collection[FaultKind]) -> Fault | None:
        if not self._faults.standing:
            return None
        keys = key_values(change.table, change.after or change.before)
        names = [change.record_id, *(",".join(str(part) for part in parts) for _, parts in keys)]
        return self._faults.take_for_webhook(change.table.entity_set, names, kinds)
