"""Dataverse's errors: status, code, message. Messages quote what was sent, as Dataverse's do.

Sources: Microsoft's pages "Compose HTTP requests and handle errors", "Web service error codes" and "Troubleshoot
Dataverse Web API client errors". Where none of them shows a message, the wording is ours and the code is the nearest.
"""

from collections.abc import Collection


class DataverseError(Exception):
    """An error answer. `code` is unrelated to the HTTP status, and may be empty."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


def malformed(message: str) -> DataverseError:
    """A request whose address, query or multipart body cannot be understood."""
    return DataverseError(400, "0x80060888", message)


def bad_payload(entity_set: str, detail: str) -> DataverseError:
    """A body that does not fit its table."""
    return DataverseError(
        400,
        "0x80048d19",
        f"Error identified in Payload provided by the user for Entity :'{entity_set}', For more information on this "
        f"error please follow this help link https://go.microsoft.com/fwlink/?linkid=2195293  ---->  InnerException : "
        f"Microsoft.OData.ODataException: {detail}",
    )


def undeclared_property(entity_set: str, name: str, logical_name: str) -> DataverseError:
    """A value for a column that the table does not have."""
    return bad_payload(
        entity_set,
        f"Invalid property '{name}' was found in entity 'Microsoft.Dynamics.CRM.{logical_name}'. "
        "Does not support untyped value in non-open type.",
    )


def undeclared_navigation(entity_set: str, name: str) -> DataverseError:
    """A lookup's navigation property that the table does not have; its name is case-sensitive."""
    return bad_payload(
        entity_set,
        f"An undeclared property '{name}' which only has property annotations in the payload but no property value "
        "was found in the payload. In OData, only declared navigation properties and declared named streams can be "
        "represented as properties without values.",
    )


def wrong_type(entity_set: str, value: object, edm_type: str) -> DataverseError:
    """A value of another type than its column."""
    if isinstance(value, dict | list):
        return bad_payload(entity_set, f"A structured value was found where a primitive '{edm_type}' was expected.")
    return bad_payload(entity_set, f"Cannot convert the literal '{value}' to the expected type '{edm_type}'.")


def direct_lookup(name: str) -> DataverseError:
    """A lookup written by its column instead of its navigation property."""
    return malformed(
        "CRM do not support direct update of Entity Reference properties, Use Navigation properties instead. "
        f"Property: '{name}'."
    )


def text_too_long(column: str, logical_name: str, length: int) -> DataverseError:
    return DataverseError(
        400,
        "0x80044331",
        f"A validation error occurred. The length of the '{column}' attribute of the '{logical_name}' entity exceeded "
        f"the maximum allowed length of '{length}'.",
    )


def not_an_option(column: str, logical_name: str, value: object, options: Collection[int]) -> DataverseError:
    accepted = ",".join(str(option) for option in options)
    return DataverseError(
        400,
        "0x80044330",
        f"A validation error occurred. The value {value} of '{column}' on record of type '{logical_name}' is outside "
        f"the valid range. Accepted Values: {accepted}",
    )


def date_too_early(value: str) -> DataverseError:
    return DataverseError(
        400,
        "0x80040239",
        "DateTime is less than minimum value supported by CrmDateTime. "
        f"Actual value: {value}, Minimum value supported: 01/01/1753 00:00:00",
    )


def state_and_status(state: object, status: object, logical_name: str) -> DataverseError:
    return DataverseError(
        400,
        "0x80048408",
        f"{status} is not a valid status code for state code {state} on {logical_name}.",
    )


def required_missing(column: str, logical_name: str) -> DataverseError:
    return DataverseError(400, "0x80040203", f"The '{column}' attribute of the '{logical_name}' entity is required.")


def no_such_record(logical_name: str, record_id: str) -> DataverseError:
    return DataverseError(404, "0x80040217", f"{logical_name} With Id = {record_id} Does Not Exist")


def no_record_with_key(logical_name: str) -> DataverseError:
    return DataverseError(
        404, "0x80060891", f"A record with the specified key values does not exist in {logical_name} entity"
    )


def no_such_segment(segment: str) -> DataverseError:
    return DataverseError(404, "0x8006088a", f"Resource not found for the segment '{segment}'.")


def no_such_resource(path: str) -> DataverseError:
    """What stands in front of the Web API says of an address that is not one of its own."""
    return DataverseError(404, "", f"No HTTP resource was found that matches the request URI '{path}'.")


def no_such_property(name: str, logical_name: str) -> DataverseError:
    return DataverseError(
        400, "0x0", f"Could not find a property named '{name}' on type 'Microsoft.Dynamics.CRM.{logical_name}'."
    )


def invalid_key(logical_name: str) -> DataverseError:
    return malformed(
        f"The key in the request URI is not valid for resource 'Microsoft.Dynamics.CRM.{logical_name}'. Ensure that "
        "the names and number of key properties match the declared or alternate key properties."
    )


def forbidden_in_key(column: str, value: str) -> DataverseError:
    """Microsoft, "Define alternate keys": values with `/ < > * % & : \\ ? +` do not work in GET and PATCH."""
    return malformed(f"The value '{value}' of the key property '{column}' contains a character that is not allowed.")


def version_mismatch() -> DataverseError:
    return DataverseError(
        412, "0x80060882", "The version of the existing record doesn't match the RowVersion property provided."
    )


def record_exists() -> DataverseError:
    return DataverseError(412, "0x80040237", "A record with matching key values already exists.")


def id_exists() -> DataverseError:
    return DataverseError(412, "0x80040237", "Cannot insert duplicate key.")


def key_violated(key: str, columns: str) -> DataverseError:
    return DataverseError(
        412,
        "0x80060892",
        f"Entity Key {key} violated. A record with the same value for {columns} already exists. A duplicate record "
        "cannot be created. Select one or more unique values and try again.",
    )


def duplicate_found() -> DataverseError:
    return DataverseError(412, "0x80040333", "A record was not created or updated because a duplicate already exists.")


def webhook_failed(problem: str) -> DataverseError:
    """What a writer is told when a synchronous webhook fails; the code is the one of steps in general."""
    return DataverseError(400, "0x80040265", f"The webhook call failed, and nothing was changed. {problem}")


def too_large() -> DataverseError:
    return DataverseError(413, "", "The request entity is too large.")


def encoding_not_served(encoding: str) -> DataverseError:
    return DataverseError(415, "", f"The content encoding '{encoding}' is not supported.")


def not_allowed(method: str) -> DataverseError:
    return DataverseError(405, "", f"The requested resource does not support http method '{method}'.")


STATUS_ERRORS = {
    400: ("0x80040203", "Invalid argument."),
    401: ("0x80072560", "The user is not a member of the organization."),
    403: (
        "0x80040220",
        "Principal user (Id=3f6b2c1e-0000-4000-8000-000000000002, type=8) is missing prvWrite.",
    ),
    404: ("0x80060891", "A record with the specified key values does not exist."),
    412: ("0x80060882", "The version of the existing record doesn't match the RowVersion property provided."),
    413: ("", "The request entity is too large."),
    429: ("0x80072322", "Number of requests exceeded the limit of 6000 over time window of 300 seconds."),
    500: ("0x80040216", "An unexpected error occurred."),
    503: ("", "The service is unavailable."),
}
"""What a fault with only a status says. Others come from in front of Dataverse, and have an empty code."""
