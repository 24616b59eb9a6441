"""Service protection limits (Microsoft: "Service protection API limits"), with small numbers and a clock of our own."""

import asyncio

from dynamics_sync.simulator import Limits

from .wire import Clock, StartClient


async def test_requests_in_a_sliding_window(start: StartClient, clock: Clock) -> None:
    client = await start(now=clock, limits=Limits(requests=3))
    for left in ("2", "1", "0"):
        answer = await client("GET", "WhoAmI")
        assert answer.headers["x-ms-ratelimit-burst-remaining-xrm-requests"] == left
        clock.seconds += 10
    answer = await client("GET", "WhoAmI")
    assert (answer.status, answer.code, answer.retry_after) == (429, "0x80072322", 270)
    assert answer.message == "Number of requests exceeded the limit of 3 over time window of 300 seconds."
    clock.seconds += 270
    assert (await client("GET", "WhoAmI")).status == 200
    assert (await client("GET", "WhoAmI")).status == 429, "only the first one has left the window"


async def test_pushing_on_makes_the_wait_longer(start: StartClient, clock: Clock) -> None:
    client = await start(now=clock, limits=Limits(requests=1))
    await client("GET", "WhoAmI")
    waits = [(await client("GET", "WhoAmI")).retry_after for _ in range(4)]
    assert waits == [300, 301, 302, 303]
    clock.seconds += 302
    assert (await client("GET", "WhoAmI")).status == 429, "the longer wait is meant"
    clock.seconds += 10
    assert (await client("GET", "WhoAmI")).status == 200


async def test_execution_time(start: StartClient, clock: Clock) -> None:
    client = await start(now=clock, limits=Limits(execution_seconds=0.02))
    await client.control("POST", "faults", {"kind": "delay", "seconds": 0.03, "count": 1})
    assert (await client("GET", "WhoAmI")).status == 200
    answer = await client("GET", "WhoAmI")
    assert (answer.status, answer.code, answer.retry_after) == (429, "0x80072321", 300)
    assert answer.message.startswith("Combined execution time of incoming requests exceeded limit of 20 milliseconds")
    clock.seconds += 300
    assert (await client("GET", "WhoAmI")).status == 200


async def test_concurrency_is_refused_at_once_and_leaves_no_wait_behind(start: StartClient, clock: Clock) -> None:
    client = await start(now=clock, limits=Limits(concurrent=2))
    await client.control("POST", "faults", {"kind": "delay", "seconds": 0.1, "count": 2})
    answers = await asyncio.gather(*[client("GET", "WhoAmI") for _ in range(4)])
    refused = [answer for answer in answers if answer.status == 429]
    assert sorted(answer.status for answer in answers) == [200, 200, 429, 429]
    assert {answer.code for answer in refused} == {"0x80072326"}
    assert sorted(answer.retry_after for answer in refused) == [1, 2]
    assert refused[0].message == "Number of concurrent requests exceeded the limit of 2."
    assert (await client("GET", "WhoAmI")).status == 200


async def test_limits_are_per_user(start: StartClient) -> None:
    client = await start(limits=Limits(requests=1), clients={"demo": "demo", "other": "demo"})
    await client("GET", "WhoAmI")
    assert (await client("GET", "WhoAmI")).status == 429
    form = {"grant_type": "client_credentials", "client_id": "other", "client_secret": "demo", "scope": "x/.default"}
    token = await client.send_anything("POST", f"{client.url}/t/oauth2/v2.0/token", data=form)
    client.token = token.document["access_token"]
    assert (await client("GET", "WhoAmI")).status == 200


async def test_a_batch_counts_once(start: StartClient) -> None:
    client = await start(limits=Limits(requests=10))
    part = "--b\nContent-Type: application/http\n\nGET accounts HTTP/1.1\n\n\n"
    answer = await client.batch(part * 20 + "--b--")
    assert answer.status == 200
    assert answer.headers["x-ms-ratelimit-burst-remaining-xrm-requests"] == "9"
