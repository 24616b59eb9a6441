"""What all send of a record. Imports nothing but the standard library, as the peers' scripts use it, too."""

from collections.abc import Mapping
from uuid import uuid4

ROOT = "/api/data/v9.2/"
ENTITY_SET = "bench_certificates"
LOGICAL_NAME = "bench_certificate"
KEY = "bench_externalid"
CHOICES = {"active": 100000001, "expired": 100000003}

IN_FLIGHT = 48
"""Requests under way at once, for all: our default, just below the 52 that Dataverse takes from one user."""


def body(status: str, issued_on: str, expires_on: str) -> dict[str, object]:
    """A record, as our mapping writes it."""
    return {"bench_issuedon": issued_on, "bench_expireson": expires_on, "bench_status": CHOICES[status]}


def address(key: object) -> str:
    """A record's, below the Web API's root."""
    return f"{ENTITY_SET}({KEY}='{key}')"


def headers() -> Mapping[str, str]:
    """Those of a write, with an id of its own."""
    return {
        "Accept": "application/json",
        "OData-Version": "4.0",
        "OData-MaxVersion": "4.0",
        "If-None-Match": "null",
        "Content-Type": "application/json",
        "Authorization": "Bearer x",
        "x-ms-client-request-id": str(uuid4()),
    }
