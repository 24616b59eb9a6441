"""Dataverse's errors: status, code, message. Messages quote what was sent, as Dataverse's do."""


class DataverseError(Exception):
    """An error answer. `code` is unrelated to the HTTP status (Microsoft: "Compose HTTP requests and handle errors")."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


def bad_payload(entity_set: str, detail: str) -> DataverseError:
    return DataverseError(
        400, "0x80048d19", f"Error identified in Payload provided by the user for Entity :'{entity_set}', {detail}"
    )


def undeclared_property(entity_set: str, name: str, logical_name: str) -> DataverseError:
    return bad_payload(
        entity_set,
        f"For more information on this error please follow this help link. ----> InnerException : "
        f"Microsoft.OData.ODataException: An undeclared property '{name}' which only has property annotations in the "
        f"payload but no property value was found in the payload for type 'Microsoft.Dynamics.CRM.{logical_name}'.",
    )


def text_too_long(column: str, logical_name: str, length: int) -> DataverseError:
    return DataverseError(
        400,
        "0x80044331",
        f"A validation error occurred. The length of the '{column}' attribute of the '{logical_name}' entity exceeded "
        f"the maximum allowed length of '{length}'.",
    )


def not_an_option(column: str, logical_name: str, value: object, options: tuple[int, ...]) -> DataverseError:
    accepted = ",".join(str(option) for option in options)
    return DataverseError(
        400,
        "0x80044330",
        f"A validation error occurred. The value {value} of '{column}' on record of type '{logical_name}' is outside "
        f"the valid range. Accepted Values: {accepted}",
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


def invalid_key(logical_name: str) -> DataverseError:
    return DataverseError(
        400,
        "0x80060888",
        f"The key in the request URI is not valid for resource 'Microsoft.Dynamics.CRM.{logical_name}'. Ensure that "
        "the names and number of key properties match the declared or alternate key properties.",
    )


def version_mismatch() -> DataverseError:
    return DataverseError(
        412,
        "0x80060882",
        "The version of the existing record doesn't match the RowVersion property provided.",
    )


def record_exists() -> DataverseError:
    return DataverseError(412, "0x80040237", "A record with matching key values already exists.")


def key_violated(key: str, columns: str) -> DataverseError:
    return DataverseError(
        412,
        "0x80060892",
        f"Entity Key {key} violated. A record with the same value for {columns} already exists. A duplicate record "
        "cannot be created. Select one or more unique values and try again.",
    )


def duplicate_found() -> DataverseError:
    return DataverseError(412, "0x80040333", "A record was not created or updated because a duplicate already exists.")


def malformed(message: str) -> DataverseError:
    return DataverseError(400, "0x80060888", message)


def not_allowed(method: str) -> DataverseError:
    return DataverseError(405, "0x80060888", f"The requested resource does not support http method '{method}'.")


STATUS_ERRORS = {
    400: ("0x80040203", "Invalid argument."),
    401: ("0x80072560", "The user is not a member of the organization."),
    403: ("0x80040220", "Principal user is missing prvWrite privilege."),
    404: ("0x80060891", "A record with the specified key values does not exist."),
    412: ("0x80060882", "The version of the existing record doesn't match the RowVersion property provided."),
    413: ("0x80048d19", "The request is too large."),
    429: ("0x80072322", "Number of requests exceeded the limit of 6000 over time window of 300 seconds."),
    500: ("0x80040216", "An unexpected error occurred."),
}
"""What a fault with only a status says. Others come from in front of Dataverse and have an empty code."""
