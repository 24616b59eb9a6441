"""Webhooks as the Web API shows them: service endpoints, their steps, and system jobs.

Microsoft: "Register a webhook", on querying registrations, steps and failed asynchronous jobs.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

from dynamics_sync.simulator.tables import JsonObject, SystemTable
from dynamics_sync.simulator.webhooks.deliveries import Delivery, Outcome
from dynamics_sync.simulator.webhooks.pipeline import Webhooks
from dynamics_sync.simulator.webhooks.registrations import AuthenticationKind, Mode, Registration

_WEBHOOK = 8
_AUTH_TYPES = {
    AuthenticationKind.WEBHOOK_KEY: 4,
    AuthenticationKind.HTTP_HEADER: 5,
    AuthenticationKind.HTTP_QUERY_STRING: 6,
}
_POST_OPERATION = 40
_JOB_STATES = {
    Outcome.WAITING: (0, 0),
    Outcome.SENDING: (2, 20),
    Outcome.DELIVERED: (3, 30),
    Outcome.FAILED: (3, 31),
}
"""State and status reason of a system job. What is lost has none: it is a mistake that nobody notices."""


def system_tables(webhooks: Webhooks) -> dict[str, SystemTable]:
    """By entity set."""
    tables = (
        SystemTable(
            "serviceendpoints",
            "serviceendpointid",
            ("serviceendpointid", "name", "contract", "authtype", "url"),
            lambda: [_endpoint(one) for one in webhooks.registrations],
        ),
        SystemTable(
            "sdkmessageprocessingsteps",
            "sdkmessageprocessingstepid",
            (
                "sdkmessageprocessingstepid",
                "name",
                "_eventhandler_value",
                "mode",
                "stage",
                "filteringattributes",
                "statecode",
                "statuscode",
            ),
            lambda: [step for one in webhooks.registrations for step in _steps(one)],
        ),
        SystemTable(
            "asyncoperations",
            "asyncoperationid",
            (
                "asyncoperationid",
                "name",
                "_owningextensionid_value",
                "statecode",
                "statuscode",
                "createdon",
                "completedon",
                "errorcode",
                "message",
                "friendlymessage",
                "messagename",
                "primaryentitytype",
            ),
            lambda: list(_jobs(webhooks.deliveries)),
        ),
    )
    return {table.entity_set: table for table in tables}


def _endpoint(registration: Registration) -> JsonObject:
    """The secrets cannot be read."""
    return {
        "serviceendpointid": registration.id,
        "name": registration.name,
        "contract": _WEBHOOK,
        "authtype": _AUTH_TYPES[registration.kind],
        "url": str(registration.url),
    }


def _steps(registration: Registration) -> list[JsonObject]:
    return [
        {
            "sdkmessageprocessingstepid": step_id,
            "name": f"{registration.name}: {message} of {registration.table.logical_name}",
            "_eventhandler_value": registration.id,
            "mode": 0 if registration.mode is Mode.SYNCHRONOUS else 1,
            "stage": _POST_OPERATION,
            "filteringattributes": ",".join(registration.filtering_attributes) or None,
            "statecode": 0,
            "statuscode": 1,
        }
        for message, step_id in registration.steps.items()
    ]


def _jobs(deliveries: Iterable[Delivery]) -> Iterable[JsonObject]:
    """One for each asynchronous delivery; what is sent twice is one job."""
    jobs: dict[str, JsonObject] = {}
    for delivery in deliveries:
        event = delivery.event
        if event.registration.mode is Mode.SYNCHRONOUS or delivery.outcome is Outcome.LOST:
            continue
        state, status = _JOB_STATES[delivery.outcome]
        jobs[event.operation_id] = {
            "asyncoperationid": event.operation_id,
            "name": f"{event.registration.name}: {event.change.message} of {event.change.table.logical_name}",
            "_owningextensionid_value": event.registration.steps[event.change.message],
            "statecode": state,
            "statuscode": status,
            "createdon": _moment(event.change.at),
            "completedon": None if delivery.done_at is None else _moment(delivery.done_at),
            "errorcode": _FAILED if delivery.outcome is Outcome.FAILED else None,
            "message": delivery.problem or None,
            "friendlymessage": delivery.problem or None,
            "messagename": event.change.message,
            "primaryentitytype": event.change.table.logical_name,
        }
    return jobs.values()


_FAILED = -2147220891
"""0x80040265, as a signed number of 32 bits."""


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
