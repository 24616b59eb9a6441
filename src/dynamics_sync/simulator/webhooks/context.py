"""The body: what `RemoteExecutionContext` says of one change, as .NET's DataContractJsonSerializer writes it.

Names stand in the order of the alphabet, a type in front of what it is the type of. Sources: "Use webhooks to create
external handlers for server events"; for deletions and synchronous steps, bodies that such steps were seen to send.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynamics_sync.simulator.organization import BUSINESS_UNIT_ID, ORGANIZATION_ID, ORGANIZATION_NAME
from dynamics_sync.simulator.records import Change, Message
from dynamics_sync.simulator.tables import JsonObject, Table
from dynamics_sync.simulator.webhooks.attributes import (
    ENTITY,
    attributes_of,
    date_text,
    entity,
    pair,
    reference,
    typed_reference,
)
from dynamics_sync.simulator.webhooks.registrations import Mode, Registration

MAX_BYTES = 256 * 1024
"""Of a body; a larger one goes without what `TRIMMED` names."""
TRIMMED = ("InputParameters", "ParentContext", "PostEntityImages", "PreEntityImages")
_NOBODY = "00000000-0000-0000-0000-000000000000"
_MAIN_OPERATION, _POST_OPERATION = 30, 40
_AUTOMATIC_IMAGE = "AsynchronousStepPrimaryName"
"""Every asynchronous step gets it, of what is left of the record or was there before."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asked for a change, and in which request. A batch is one root request with a request for each part."""

    user_id: str
    user_agent: str
    correlation_id: str
    request_id: str
    tag: str | None
    """What the request's `?tag=` says, for a step to recognise it by."""


@dataclass(frozen=True, slots=True)
class Event:
    """A change that a registration is told of. `tables` by entity set, for the names of what lookups refer to."""

    registration: Registration
    change: Change
    origin: Origin
    operation_id: str
    """Of the system job; a synchronous step has none, and shows the request instead."""
    tables: Mapping[str, Table]


def body(event: Event, oversized: bool) -> tuple[bytes, bool]:
    """What is sent, and whether it is trimmed: because it is too large, or because it is to be taken for that."""
    whole = _frame(event, _POST_OPERATION, _frame(event, _MAIN_OPERATION, None))
    written = _written(whole)
    if len(written) <= MAX_BYTES and not oversized:
        return written, False
    return _written({name: value for name, value in whole.items() if name not in TRIMMED}), True


def _written(document: JsonObject) -> bytes:
    """Slashes are escaped wherever they stand, which in JSON is only within texts."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).replace("/", "\\/").encode()


def _frame(event: Event, stage: int, parent: JsonObject | None) -> JsonObject:
    change, origin, is_step = event.change, event.origin, stage == _POST_OPERATION
    is_synchronous = event.registration.mode is Mode.SYNCHRONOUS
    return {
        "BusinessUnitId": BUSINESS_UNIT_ID,
        "CorrelationId": origin.correlation_id,
        "Depth": 1,
        "InitiatingUserAgent": origin.user_agent,
        "InitiatingUserAzureActiveDirectoryObjectId": _NOBODY,
        "InitiatingUserId": origin.user_id,
        "InputParameters": [pair("Target", _target(event, with_system_columns=is_step))],
        "IsExecutingOffline": False,
        "IsInTransaction": is_synchronous,
        "IsOfflinePlayback": False,
        "IsolationMode": 1,
        "MessageName": change.message,
        "Mode": 0 if is_synchronous else 1,
        "OperationCreatedOn": date_text(change.at, "" if is_synchronous else "+0000"),
        "OperationId": event.operation_id,
        "OrganizationId": ORGANIZATION_ID,
        "OrganizationName": ORGANIZATION_NAME,
        "OutputParameters": [pair("id", change.record_id)] if is_step and change.message is Message.CREATE else [],
        "OwningExtension": _step(event),
        "ParentContext": parent,
        "PostEntityImages": _post_images(event) if is_step else [],
        "PreEntityImages": _pre_images(event) if is_step else [],
        "PrimaryEntityId": change.record_id,
        "PrimaryEntityName": change.table.logical_name,
        "RequestId": origin.request_id,
        "SecondaryEntityName": "none",
        "SharedVariables": _shared_variables(event, with_changed_types=not is_step),
        "Stage": stage,
        "UserAzureActiveDirectoryObjectId": _NOBODY,
        "UserId": origin.user_id,
    }


def _target(event: Event, with_system_columns: bool) -> JsonObject:
    """What was given; the step itself also sees what Dataverse added. Of a deletion it is a reference."""
    change = event.change
    if change.message is Message.DELETE:
        return typed_reference(change.table.logical_name, change.record_id)
    attributes = _attributes(event, change.given)
    attributes.append(pair(change.table.primary_id, change.record_id))
    if with_system_columns:
        attributes += _system_columns(event)
    return {"__type": ENTITY, **entity(change.table, change.record_id, attributes)}


def _system_columns(event: Event) -> list[JsonObject]:
    change = event.change
    user = typed_reference("systemuser", event.origin.user_id)
    changed = [
        *_attributes(event, {"modifiedon": change.after["modifiedon"]}),
        pair("modifiedby", user),
        pair("modifiedonbehalfby", None),
    ]
    if change.message is Message.UPDATE:
        return changed
    fresh = {name: change.after[name] for name in ("statecode", "statuscode", "createdon") if name not in change.given}
    return [
        *_attributes(event, fresh),
        pair("createdby", user),
        pair("ownerid", user),
        pair("owninguser", user),
        pair("owningbusinessunit", typed_reference("businessunit", BUSINESS_UNIT_ID)),
        *changed,
    ]


def _post_images(event: Event) -> list[JsonObject]:
    """Of what is there afterwards: nothing after a deletion."""
    if event.change.message is Message.DELETE:
        return []
    asked_for = _image(event, "PostImage", event.change.after, event.registration.post_image)
    return asked_for + _automatic_image(event)


def _pre_images(event: Event) -> list[JsonObject]:
    """Of what was there before: nothing before a creation."""
    if event.change.message is Message.CREATE:
        return []
    asked_for = _image(event, "PreImage", event.change.before, event.registration.pre_image)
    return asked_for + (_automatic_image(event) if event.change.message is Message.DELETE else [])


def _image(event: Event, name: str, values: Mapping[str, Any], columns: tuple[str, ...]) -> list[JsonObject]:
    """The columns that the registration asks for, as far as they have a value, under a name of ours."""
    if not columns:
        return []
    change = event.change
    attributes = _attributes(event, {key: value for key, value in values.items() if value is not None}, columns)
    attributes.append(pair(change.table.primary_id, change.record_id))
    return [pair(name, entity(change.table, change.record_id, attributes))]


def _automatic_image(event: Event) -> list[JsonObject]:
    if event.registration.mode is Mode.SYNCHRONOUS:
        return []
    change = event.change
    id_alone = [pair(change.table.primary_id, change.record_id)]
    return [pair(_AUTOMATIC_IMAGE, entity(change.table, change.record_id, id_alone))]


def _shared_variables(event: Event, with_changed_types: bool) -> list[JsonObject]:
    variables = [pair("IsAutoTransact", True), pair("AcceptLang", "")]
    if event.origin.tag is not None:
        variables.append(pair("tag", event.origin.tag))
    if with_changed_types:
        kind = "KeyValuePairOfstringstring:#System.Collections.Generic"
        changed = {"__type": kind, **pair(event.change.table.logical_name, event.change.message)}
        variables.append(pair("ChangedEntityTypes", [changed]))
    return variables


def _step(event: Event) -> JsonObject:
    change, registration = event.change, event.registration
    name = f"{registration.name}: {change.message} of {change.table.logical_name}"
    return reference("sdkmessageprocessingstep", registration.steps[change.message], name)


def _attributes(event: Event, values: Mapping[str, Any], names: tuple[str, ...] | None = None) -> list[JsonObject]:
    return attributes_of(event.tables, event.change.table, values, names)
