"""Dataverse as it sends webhooks: bodies after the samples of Microsoft's page "Use webhooks to create external
handlers for server events", with values of our own, and somebody who posts them."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import aiohttp
from fastapi import FastAPI

from dynamics_sync.inbox import open_webhooks
from dynamics_sync.settings import load_settings
from dynamics_sync.web.server import listening_socket, make_server
from dynamics_sync.web.webhooks import Webhooks, add_webhooks

PATH = "/webhooks/dynamics/v1"
SECRET = "only-for-the-tests-0123456789"
CONTRACTS = "http://schemas.microsoft.com/xrm/2011/Contracts"
SOMEBODY = "0f5a8b52-0000-4000-8000-000000000001"


def date(at: datetime, offset: str = "") -> str:
    return f"/Date({round(at.timestamp() * 1000)}{offset})/"


def option(number: int) -> dict[str, Any]:
    return {"__type": f"OptionSetValue:{CONTRACTS}", "Value": number}


def pairs(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": value} for name, value in values.items()]


def entity(logical_name: str, record_id: str, attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        "__type": f"Entity:{CONTRACTS}",
        "Attributes": pairs(attributes),
        "EntityState": None,
        "FormattedValues": [],
        "Id": record_id,
        "KeyAttributes": [],
        "LogicalName": logical_name,
        "RelatedEntities": [],
        "RowVersion": None,
    }


@dataclass(frozen=True)
class Event:
    """One execution of a step, told in the terms of the test."""

    attributes: dict[str, Any] = field(default_factory=dict)
    message: str = "Update"
    entity: str = "hlf_certification"
    record_id: str = field(default_factory=lambda: str(uuid4()))
    operation_id: str = field(default_factory=lambda: str(uuid4()))
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    by: str = SOMEBODY
    image: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> "Event":
        return replace(self, **changes)

    def document(self) -> dict[str, Any]:
        record = {"__type": f"EntityReference:{CONTRACTS}", "Id": self.record_id, "LogicalName": self.entity}
        target = record if self.message == "Delete" else entity(self.entity, self.record_id, self.attributes)
        images = {"AsynchronousStepPrimaryName": entity(self.entity, self.record_id, self.image)} if self.image else {}
        before = {"before": entity(self.entity, self.record_id, self.before)} if self.before else {}
        return {
            "BusinessUnitId": "e2b9dd65-da9e-e711-8122-000000000000",
            "CorrelationId": str(uuid4()),
            "Depth": 1,
            "InitiatingUserId": self.by,
            "InputParameters": pairs({"Target": target}),
            "IsExecutingOffline": False,
            "IsInTransaction": False,
            "IsolationMode": 1,
            "MessageName": self.message,
            "Mode": 1,
            "OperationCreatedOn": date(self.at, "+0200"),
            "OperationId": self.operation_id,
            "OrganizationId": "52dd0e43-0000-4000-8000-000000000000",
            "OrganizationName": "orghlf",
            "OutputParameters": [],
            "OwningExtension": {"Id": "75417616-0000-4000-8000-000000000000", "LogicalName": "serviceendpoint"},
            "ParentContext": None,
            "PostEntityImages": pairs(images),
            "PreEntityImages": pairs(before),
            "PrimaryEntityId": self.record_id,
            "PrimaryEntityName": self.entity,
            "RequestId": None,
            "SecondaryEntityName": "none",
            "SharedVariables": pairs({"IsAutoTransact": True}),
            "Stage": 40,
            "UserId": self.by,
        }

    def body(self) -> bytes:
        """With slashes escaped, as Dataverse writes them."""
        return json.dumps(self.document()).replace("/", r"\/").encode()

    def headers(self) -> dict[str, str]:
        return {
            "x-ms-dynamics-organization": "orghlf.crm4.dynamics.com",
            "x-ms-dynamics-entity-name": self.entity,
            "x-ms-dynamics-request-name": self.message,
            "x-ms-correlation-request-id": str(uuid4()),
        }


@dataclass
class Dataverse:
    """Posts what it has to tell."""

    url: str
    http: aiohttp.ClientSession

    async def tell(self, event: Event) -> int:
        return await self.deliver(event.body(), event.headers())

    async def deliver(
        self, body: bytes, headers: dict[str, str] | None = None, *, query: str = "", secret: str | None = SECRET
    ) -> int:
        """Post, and again after 503: a database that shares its machine with other tests may need more than 50 ms."""
        for _ in range(20):
            if (status := await self.post(body, headers, query=query, secret=secret)) != 503:
                break
        return status

    async def post(
        self, body: bytes, headers: dict[str, str] | None = None, *, query: str = "", secret: str | None = SECRET
    ) -> int:
        """The status of the answer."""
        given = {"Content-Type": "application/json"} | (headers or {})
        if secret is not None:
            given["x-webhook-secret"] = secret
        async with self.http.post(f"{self.url}{PATH}{query}", data=io.BytesIO(body), headers=given) as response:
            await response.read()
            return response.status


@asynccontextmanager
async def receiving(database: str, **settings: Any) -> AsyncIterator[Dataverse]:
    """The endpoint, on a socket of this process, with only a database behind it."""
    given = {"database_url": database, "webhooks": True, "webhook_secret": SECRET} | settings
    async with (
        open_webhooks(load_settings(**given), database, lambda: None) as webhooks,
        aiohttp.ClientSession() as http,
    ):
        assert webhooks is not None
        async with served(webhooks) as url:
            yield Dataverse(url, http)


@asynccontextmanager
async def served(webhooks: Webhooks) -> AsyncIterator[str]:
    app = FastAPI(title="dynamics-sync")
    add_webhooks(app, webhooks)
    server = make_server(app)
    with listening_socket("127.0.0.1", 0) as socket:
        serving = asyncio.create_task(server.serve([socket]))
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
