"""`RemoteExecutionContext` as Dataverse 9 sends it, in JSON.

Sources: Microsoft's pages "Use webhooks to create external handlers for server events" (its samples, and what is left
out of messages over 256 KB) and "RemoteExecutionContext Class". Unknown parts are passed over: Microsoft adds some.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from dynamics_sync.core.incoming import Attributes, Message, RecordChange, Reference, UnknownForm, moment
from dynamics_sync.dynamics.webhooks.delivery import SIZE_EXCEEDED
from dynamics_sync.dynamics.webhooks.documents import document_from, guid, pairs

ENTITY_NAME, MESSAGE_NAME, RECORD_ID = "PrimaryEntityName", "MessageName", "PrimaryEntityId"


def read(headers: Mapping[str, str], body: bytes) -> RecordChange | None:
    """The change that a message tells of; None if it is not of this form. Never raises."""
    document = document_from(body)
    if document is None or document.get(MESSAGE_NAME) not in list(Message):
        return None
    entity, record_id = document.get(ENTITY_NAME), guid(document.get(RECORD_ID))
    made_at = moment(document.get("OperationCreatedOn"))
    if not isinstance(entity, str) or record_id is None or made_at is None:
        return None
    message = Message(document[MESSAGE_NAME])
    target = dict(pairs(document.get("InputParameters"))).get("Target")
    attributes = _attributes(target)
    if attributes is None and message is not Message.DELETE and SIZE_EXCEEDED not in headers:
        return None
    images = _images(document)
    changed = None if attributes is None else {name: images.get(name, value) for name, value in attributes.items()}
    return RecordChange(
        message=message,
        entity=entity.lower(),
        record_id=record_id,
        at=_modified_on(attributes or {}, images) or made_at,
        caused_by=guid(document.get("InitiatingUserId")) or guid(document.get("UserId")),
        attributes=changed,
        beside=_key_attributes(target) | images,
        before=_images(document, "PreEntityImages"),
    )


def _modified_on(attributes: Attributes, images: Attributes) -> Any:
    """When the record was changed. The step's own time, which is always there, may be a little later."""
    return moment(images.get("modifiedon")) or moment(attributes.get("modifiedon"))


def _images(document: Mapping[str, Any], of: str = "PostEntityImages") -> dict[str, object]:
    """What all images of a kind say; steps may register several, of different columns."""
    told: dict[str, object] = {}
    for _, image in pairs(document.get(of)):
        told |= _attributes(image) or {}
    return told


def _attributes(entity: object) -> dict[str, object] | None:
    """The attributes of an `Entity`; None for what has none, such as the EntityReference of a deletion."""
    if not isinstance(entity, dict) or not isinstance(entity.get("Attributes"), list):
        return None
    return {name.lower(): _value(value) for name, value in pairs(entity["Attributes"])}


def _key_attributes(target: object) -> dict[str, object]:
    told = target.get("KeyAttributes") if isinstance(target, dict) else None
    return {name.lower(): _value(value) for name, value in pairs(told)}


def _value(value: object) -> object:
    """A value as `core.incoming.Attributes` has it."""
    if value is None or isinstance(value, bool | int | Decimal | str):
        return value
    if isinstance(value, list):
        options = [_option(each) for each in value]
        return ",".join(str(each) for each in options) if options and None not in options else UnknownForm()
    if (option := _option(value)) is not None:
        return option
    match _type(value), value:
        case "Money", {"Value": int() | Decimal() as amount} if not isinstance(amount, bool):
            return amount
        case "EntityReference", {"Id": record_id} if (known := guid(record_id)) is not None:
            return Reference(known)
    return UnknownForm()


def _option(value: object) -> int | None:
    """A choice's number."""
    match _type(value), value:
        case "OptionSetValue", {"Value": int() as number} if not isinstance(number, bool):
            return number
    return None


def _type(value: object) -> str:
    """`Money` of `Money:http://schemas.microsoft.com/xrm/2011/Contracts`."""
    name = value.get("__type") if isinstance(value, dict) else None
    return name.partition(":")[0] if isinstance(name, str) else ""
