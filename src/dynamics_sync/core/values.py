"""What is made anew for each record, or for each request."""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """A dataclass with slots that is frozen for whoever checks types. `dataclass(frozen=True)` makes sure of it at run
    time, too; to make one takes three times as long then, and that was an eighth of all that a worker does."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
