"""JSON Schema, for what is sent and what is answered. Nothing that a schema refers to is ever fetched."""

from collections.abc import Callable, Iterator
from typing import Any

import referencing.exceptions
from jsonschema import FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import Draft202012Validator, validator_for
from referencing import Registry
from referencing.jsonschema import DRAFT202012

MOST_TOLD = 3
"""Places of one document that are told."""


class Schema:
    """One JSON Schema; of another draft than 2020-12 where it says so.

    Raises:
        ValueError: it is no JSON Schema, or refers to something that it does not hold.
    """

    def __init__(self, document: object) -> None:
        if not isinstance(document, dict):
            raise ValueError("a JSON Schema is wanted, which is an object")
        kind = validator_for(document, default=Draft202012Validator)
        try:
            kind.check_schema(document)
        except SchemaError as error:
            raise ValueError(f"no JSON Schema: {error.json_path} is not as it must be") from None
        _check_references(document)
        self._validator = kind(document, registry=Registry(), format_checker=FormatChecker())

    def place_in(self, document: object) -> str | None:
        """Where a document of ours does not fit, as paths in it (`$.data.key`); None where it fits."""
        return self._told(document, lambda error: error.json_path)

    def rule_against(self, document: object) -> str | None:
        """What a document does not fit, as paths in the schema (`/properties/accepted/const`); None where it fits.

        Of a document that somebody else wrote, no name may be told: it could be anything (R16).
        """
        return self._told(document, lambda error: "/" + "/".join(str(part) for part in error.absolute_schema_path))

    def _told(self, document: object, where: Callable[[ValidationError], str]) -> str | None:
        errors: Iterator[ValidationError] = self._validator.iter_errors(document)  # type: ignore[arg-type]
        told = dict.fromkeys(where(error) + _missing(error) for error in errors)
        return "; ".join(list(told)[:MOST_TOLD]) or None


def _missing(error: ValidationError) -> str:
    """The names that the schema wants and the document lacks."""
    if error.validator != "required":
        return ""
    wanted: Any = error.validator_value
    given: Any = error.instance
    return f" ({', '.join(name for name in wanted if name not in given)})"


def _check_references(document: dict[str, Any]) -> None:
    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(document))
    for reference in _references(document):
        try:
            resolver.lookup(reference)
        except (referencing.exceptions.Unresolvable, ValueError):
            raise ValueError(f"$ref {reference!r} leads nowhere in the schema itself; nothing else is read") from None


def _references(part: object) -> Iterator[str]:
    match part:
        case {"$ref": str() as reference}:
            yield reference
    match part:
        case dict():
            for value in part.values():
                yield from _references(value)
        case list():
            for value in part:
                yield from _references(value)
