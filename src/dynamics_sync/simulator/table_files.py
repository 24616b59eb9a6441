"""Tables declared in a TOML file.

[[tables]]
logical_name = "account"
entity_set = "accounts"
primary_id = "accountid"            # the logical name and "id", if left out
duplicates_by = ["name"]            # a duplicate-detection rule, if any
bulk = true                         # CreateMultiple and its like
change_tracking = true

[tables.columns]
name = { kind = "text", required = true, max_length = 160 }
industrycode = { kind = "choice", options = [1, 2, 3] }
primarycontactid = { kind = "lookup", navigation_property = "primarycontactid", lookup_target = "contacts" }

[tables.alternate_keys]
account_number = ["accountnumber"]
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamics_sync.simulator.tables import AlternateKey, Column, ColumnKind, Table


def load_tables(path: Path) -> tuple[Table, ...]:
    """The tables of a file.

    Raises:
        ValueError: it does not declare tables; the message says what is wrong.
        OSError: it cannot be read.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return tuple(_table(declared) for declared in document["tables"])
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _table(declared: Mapping[str, Any]) -> Table:
    fields = dict(declared)
    logical_name = str(fields.pop("logical_name"))
    columns = tuple(_column(name, column) for name, column in fields.pop("columns").items())
    keys = fields.pop("alternate_keys", {})
    return Table(
        logical_name=logical_name,
        entity_set=str(fields.pop("entity_set")),
        primary_id=str(fields.pop("primary_id", f"{logical_name}id")),
        columns=columns,
        alternate_keys=tuple(AlternateKey(name, tuple(columns)) for name, columns in keys.items()),
        duplicates_by=tuple(fields.pop("duplicates_by", ())),
        **fields,
    )


def _column(name: str, declared: Mapping[str, Any]) -> Column:
    fields = dict(declared)
    kind = ColumnKind(fields.pop("kind", "text"))
    return Column(name, kind, options=tuple(fields.pop("options", ())), **fields)
