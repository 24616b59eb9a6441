"""The service by itself, around a gateway of your own: what is retried, what is given up, and what the queue says."""

import asyncio
from dataclasses import dataclass

from dynamics_sync import (
    Accepted,
    Answer,
    Applied,
    DynamicsCircuitBreaker,
    HLFDynamicsSyncService,
    InMemoryRetryQueue,
    Outcome,
    Queued,
    RetryPolicy,
    SyncOperation,
    classify_write,
)


class MoodyDynamics:
    """Answers 503 twice, accepts what comes then, and always refuses one record."""

    def __init__(self) -> None:
        self._bad_moods = 2

    async def prepare(self, operation: SyncOperation) -> "MoodyRequest":
        """What must be done before the breaker is asked: read the record, have a token. Here there is nothing."""
        return MoodyRequest(self, operation)

    async def renew_token(self) -> None:
        """There is no token."""

    def answer(self, operation: SyncOperation) -> Outcome:
        if self._bad_moods:
            self._bad_moods -= 1
            return classify_write(Answer(503))
        if operation.record_key == "without-expiry":
            return classify_write(Answer(400, error_code="0x80040203", is_known_error=True))
        return Accepted()


@dataclass
class MoodyRequest:
    """Ready to leave: the service asks the breaker, then sends it."""

    dynamics: MoodyDynamics
    operation: SyncOperation

    async def send(self) -> Outcome:
        return self.dynamics.answer(self.operation)


async def main() -> None:
    queue = InMemoryRetryQueue()
    service = HLFDynamicsSyncService(
        breaker=DynamicsCircuitBreaker(),
        policy=RetryPolicy(max_retries=3, base_delay_ms=10),
        gateway=MoodyDynamics(),
        queue=queue,
    )
    for key in ("valid", "without-expiry"):
        match await service.sync(SyncOperation("public.certifications", key)):
            case Applied(attempts):
                print(f"{key}: applied, request {attempts} got through")
            case Queued(status=status, error_code=error_code):
                print(f"{key}: queued as {status}, Dynamics said {error_code}")
    print(f"The circuit is {await service.get_circuit_state()}; {len(queue.entries)} entry waits for a person.")


if __name__ == "__main__":
    asyncio.run(main())
