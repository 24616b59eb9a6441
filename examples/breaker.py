"""The circuit breaker by itself, around any call: four failures, and only three of them are made."""

import asyncio

from dynamics_sync import CircuitOpenError, CircuitSettings, DynamicsCircuitBreaker


async def call_that_fails() -> None:
    raise ConnectionError


async def main() -> None:
    breaker = DynamicsCircuitBreaker(CircuitSettings(failure_threshold=3, cool_down_seconds=60))
    for number in range(1, 5):
        try:
            await breaker.call(call_that_fails)
        except ConnectionError:
            print(f"call {number}: failed, the circuit is {await breaker.state()}")
        except CircuitOpenError:
            print(f"call {number}: not made, the circuit is {await breaker.state()}")


if __name__ == "__main__":
    asyncio.run(main())
