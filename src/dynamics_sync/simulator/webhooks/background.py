"""Asynchronous deliveries: a few at once, beside the requests that they tell of."""

import asyncio
from collections import deque

from dynamics_sync.simulator.webhooks.deliveries import Delivery, Outcome, Sender
from dynamics_sync.simulator.webhooks.registrations import Registration


class Background:
    """Sends what it is given, several at once, so that they may well arrive in another order than they were made.

    More than `most` may not wait: what comes on top of that is lost. Mistakes of the simulator's own go to
    `unforeseen`.
    """

    def __init__(self, sender: Sender, unforeseen: list[Exception], at_once: int = 16, most: int = 10_000) -> None:
        self._sender = sender
        self._unforeseen = unforeseen
        self._at_once = at_once
        self._most = most
        self._waiting: deque[Delivery] = deque()
        self._held: list[Delivery] = []
        self._delayed: dict[str, tuple[Delivery, asyncio.TimerHandle]] = {}
        self._workers: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Send what waits, if anything does."""
        for _ in range(min(self._at_once - len(self._workers), len(self._waiting))):
            self._workers.add(asyncio.create_task(self._work()))

    def send(self, delivery: Delivery) -> None:
        """Send soon. Returns at once."""
        if len(self._waiting) + len(self._held) + len(self._delayed) >= self._most:
            _give_up(delivery, f"More than {self._most} are waiting.")
            return
        self._waiting.append(delivery)
        self.start()

    def hold(self, delivery: Delivery) -> None:
        """Send once a later one of the same registration was sent, or `release` is called."""
        self._held.append(delivery)

    def delay(self, delivery: Delivery, seconds: float) -> None:
        """Send after so many seconds."""
        timer = asyncio.get_running_loop().call_later(seconds, self._end_delay, delivery)
        self._delayed[delivery.id] = (delivery, timer)

    def release(self, registration: Registration | None = None) -> None:
        """Send what is held, of one registration or of all."""
        held, self._held = self._held, []
        for delivery in held:
            is_released = registration in (None, delivery.event.registration)
            (self._waiting if is_released else self._held).append(delivery)
        self.start()

    def forget(self) -> None:
        """Give up what waits; what is under way goes on."""
        self._end_delays()
        for delivery in (*self._waiting, *self._held):
            _give_up(delivery, "The webhook was lifted.")
        self._waiting.clear()
        self._held.clear()

    async def stop(self) -> None:
        """Interrupt what is under way. It waits again, as does what was delayed, until `start`."""
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        self._end_delays()

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._send(self._waiting.popleft())
        finally:
            # In the same step in which nothing was found to wait, so that what comes next gets a new worker.
            self._workers = {worker for worker in self._workers if worker is not asyncio.current_task()}

    async def _send(self, delivery: Delivery) -> None:
        try:
            await self._sender.send(delivery)
        except asyncio.CancelledError:
            delivery.outcome = Outcome.WAITING
            self._waiting.appendleft(delivery)
            raise
        except Exception as error:
            self._unforeseen.append(error)
        if self._held:
            self.release(delivery.event.registration)

    def _end_delay(self, delivery: Delivery) -> None:
        del self._delayed[delivery.id]
        self.send(delivery)

    def _end_delays(self) -> None:
        for delivery, timer in self._delayed.values():
            timer.cancel()
            self._waiting.append(delivery)
        self._delayed.clear()


def _give_up(delivery: Delivery, why: str) -> None:
    delivery.outcome, delivery.problem = Outcome.LOST, why
