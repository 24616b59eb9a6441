"""How webhooks are delivered: attempts, time-outs, size, order, and what goes wrong on purpose."""

import asyncio
from typing import Any

import pytest

from dynamics_sync.simulator import Simulator, SimulatorConfig
from dynamics_sync.simulator.records import Change, Message
from dynamics_sync.simulator.webhooks.background import Background
from dynamics_sync.simulator.webhooks.context import Event, Origin
from dynamics_sync.simulator.webhooks.deliveries import Delivery, Sender
from dynamics_sync.simulator.webhooks.registrations import registration

from .receiver import Receiver, deliveries, fault, register, rename, settled, told
from .wire import TABLES, Client, StartClient

GOOD: dict[str, Any] = {
    "url": "http://localhost/hook",
    "entity": "account",
    "authentication": {"kind": "WebhookKey", "values": {"code": "k"}},
}


# Attempts


@pytest.mark.parametrize(
    ("answers", "attempts", "outcome"),
    [
        ([200], 1, "delivered"),
        ([204], 1, "delivered"),
        *(([status, 200], 2, "delivered") for status in (502, 503, 504)),
        ([502, 503, 200], 2, "failed"),
        ([503, 429], 2, "failed"),
        *(([status], 1, "failed") for status in (302, 400, 401, 404, 408, 429, 500, 501, 505)),
    ],
)
async def test_one_more_attempt_after_some_answers_only(
    client: Client, receiver: Receiver, answers: list[int], attempts: int, outcome: str
) -> None:
    await register(client, receiver)
    receiver.answers = list(answers)
    assert await rename(client, "a") == [204]
    (delivery,) = await settled(client)
    assert (delivery["attempts"], delivery["status"], delivery["outcome"]) == (attempts, answers[attempts - 1], outcome)
    assert len(receiver.received) == attempts
    assert len({one.raw for one in receiver.received}) == 1
    assert receiver.answers == answers[attempts:]


async def test_a_receiver_that_does_not_answer_in_time(start: StartClient, receiver: Receiver) -> None:
    client = await start(webhook_timeout_seconds=0.05)
    await register(client, receiver)
    receiver.gate.clear()
    assert await rename(client, "a") == [204]
    (delivery,) = await settled(client)
    assert (delivery["attempts"], delivery["status"], delivery["outcome"]) == (1, None, "failed")
    assert len(receiver.received) == 1


def test_the_time_out_is_a_minute() -> None:
    assert SimulatorConfig(TABLES).webhook_timeout_seconds == 60


async def test_a_receiver_that_is_not_there(client: Client, receiver: Receiver, unused_tcp_port: int) -> None:
    await register(client, receiver, url=f"http://127.0.0.1:{unused_tcp_port}/")
    assert await rename(client, "a") == [204]
    (delivery,) = await settled(client)
    assert (delivery["attempts"], delivery["status"], delivery["outcome"]) == (1, None, "failed")


# Size


async def test_a_large_body_is_trimmed(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    for length in (127_000, 131_000):  # each is there twice: in the step's own context, and in its parent's
        await client("POST", "accounts", {"name": "a", "accountnumber": "x" * length})
    sent = {one.body["OperationId"]: one for one in await receiver.wait_for(2)}
    small, large = (sent[one["operation_id"]] for one in await settled(client))
    assert "x-ms-dynamics-msg-size-exceeded" not in small.headers
    assert "x-ms-dynamics-msg-size-exceeded" in large.headers
    assert 240 * 1024 < len(small.raw) <= 256 * 1024
    removed = {"InputParameters", "ParentContext", "PostEntityImages", "PreEntityImages"}
    assert set(small.body) - set(large.body) == removed
    assert (large.body["PrimaryEntityName"], large.body["MessageName"]) == ("account", "Create")
    assert large.body["OutputParameters"][0]["value"] == large.body["PrimaryEntityId"]


async def test_trimmed_on_purpose(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="oversized", count=1)
    await rename(client, "a")
    (sent,) = await receiver.wait_for(1)
    assert "x-ms-dynamics-msg-size-exceeded" in sent.headers
    assert "InputParameters" not in sent.body


# Faults


async def test_sent_twice(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="duplicate", count=1)
    await rename(client, "a")
    first, second = await receiver.wait_for(2)
    assert first.raw == second.raw
    assert [one["outcome"] for one in await settled(client)] == ["delivered", "delivered"]
    await rename(client, "b")
    assert len(await settled(client)) == 3


async def test_never_sent(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="lost", count=1)
    await rename(client, "a", "b")
    assert [(one["outcome"], one["attempts"]) for one in await settled(client)] == [("lost", 0), ("delivered", 1)]
    assert told(receiver) == ["b"]


async def test_out_of_order(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="out_of_order", count=2)
    await rename(client, "a", "b")
    assert receiver.received == []
    await rename(client, "c")
    await settled(client)
    assert told(receiver)[0] == "c"
    assert sorted(told(receiver)) == ["a", "b", "c"]


async def test_what_is_held_back_is_sent_when_faults_are_lifted(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="out_of_order")
    await rename(client, "a")
    await client.control("DELETE", "faults")
    await receiver.wait_for(1)


async def test_what_is_held_back_is_given_up_with_its_registration(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="out_of_order", count=1)
    await fault(client, kind="delay", path="webhooks", seconds=3600, count=1)
    await rename(client, "held", "delayed")
    await client.control("DELETE", "webhooks")
    await register(client, receiver)
    await rename(client, "new")
    assert [one["outcome"] for one in await settled(client)] == ["lost", "lost", "delivered"]
    assert told(receiver) == ["new"]


async def test_a_delay(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="delay", path="webhooks", seconds=0.1, count=1)
    await rename(client, "a", "b")
    delayed, other = await settled(client)
    assert sorted(told(receiver)) == ["a", "b"]
    assert delayed["done_at"] - delayed["at"] >= 0.1
    assert other["outcome"] == "delivered"


async def test_faults_meet_only_the_records_that_they_are_meant_for(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    await fault(client, kind="lost", entity_set="accounts", key="a2")
    for key in ("A1", "A2"):
        assert await rename(client, key, key=key) == [204], "the Web API is not met"
    assert [one["outcome"] for one in await settled(client)] == ["delivered", "lost"]


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"kind": "lost", "path": "token"}, "for webhooks only"),
        ({"kind": "status", "path": "webhooks"}, "webhooks cannot have status"),
        ({"kind": "lost", "method": "PATCH"}, "method"),
        ({"kind": "lost", "path": "elsewhere"}, "path"),
    ],
)
async def test_faults_that_cannot_be(client: Client, declared: dict[str, Any], says: str) -> None:
    answer = await client.control("POST", "faults", declared)
    assert (answer.status, says in answer.document["error"]) == (400, True)


# Beside the writes that they tell of


async def test_writes_do_not_wait_for_receivers(client: Client, receiver: Receiver) -> None:
    await register(client, receiver)
    receiver.gate.clear()
    assert set(await rename(client, *(f"n{n}" for n in range(30)))) == {204}
    await receiver.wait_for(2)
    assert {one["outcome"] for one in await deliveries(client)} == {"sending", "waiting"}
    receiver.gate.set()
    await receiver.wait_for(30)
    assert {one["outcome"] for one in await settled(client)} == {"delivered"}


async def test_what_waits_is_bounded(receiver: Receiver) -> None:
    (table,) = (one for one in TABLES if one.logical_name == "account")
    told_of = registration(GOOD | {"url": receiver.url}, {"account": table})
    after = {"modifiedon": "2024-01-01T00:00:00Z"}
    change = Change(Message.UPDATE, table, "6d81597f-0f9f-e711-8122-000d3aa2331c", {}, {}, after, 0.0)
    origin = Origin("user", "agent", "correlation", "request", None)
    made = [Delivery(Event(told_of, change, origin, f"operation {n}", {})) for n in range(4)]
    sender, unforeseen = Sender(now=lambda: 0.0, timeout_seconds=60), list[Exception]()
    background = Background(sender, unforeseen, at_once=1, most=2)
    receiver.gate.clear()
    background.send(made[0])
    await receiver.wait_for(1)
    for delivery in made[1:]:
        background.send(delivery)
    assert [one.outcome for one in made] == ["sending", "waiting", "waiting", "lost"]
    await background.stop()
    await sender.close()
    assert unforeseen == []


async def test_the_log_of_deliveries_is_bounded(start: StartClient, receiver: Receiver) -> None:
    client = await start(logged_deliveries=2)
    await register(client, receiver)
    await rename(client, "a", "b", "c")
    await receiver.wait_for(3)
    assert len(await deliveries(client)) == 2


async def test_stopping_interrupts_deliveries_and_starting_goes_on(receiver: Receiver) -> None:
    receiver.gate.clear()
    simulator = Simulator(SimulatorConfig(TABLES))
    async with Client.of(simulator) as client:
        await register(client, receiver)
        await fault(client, kind="delay", path="webhooks", seconds=3600, count=1)
        await rename(client, "delayed", "sending")
        await receiver.wait_for(1)
    before = {task for task in asyncio.all_tasks() if "webhooks" in repr(task)}
    assert before == set()
    receiver.gate.set()
    async with Client.of(simulator) as client:
        await receiver.wait_for(3)
        assert sorted(told(receiver)) == ["delayed", "sending", "sending"]
        assert {one["outcome"] for one in await settled(client)} == {"delivered"}
    assert simulator.unforeseen == []
