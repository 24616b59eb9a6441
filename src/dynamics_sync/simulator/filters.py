"""`$filter`: a small OData expression language, parsed into a predicate over a record's attributes.

expression := conjunction ("or" conjunction)*     conjunction := negation ("and" negation)*
negation   := "not" negation | "(" expression ")" | call | comparison
comparison := operand ("eq" | "ne" | "gt" | "ge" | "lt" | "le") operand
call       := ("contains" | "startswith" | "endswith") "(" operand "," operand ")"
            | "Microsoft.Dynamics.CRM.In(PropertyName=" alias ",PropertyValues=" alias ")"
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from dynamics_sync.simulator.errors import DataverseError, malformed
from dynamics_sync.simulator.values import moment

Row = Mapping[str, Any]
Predicate = Callable[[Row], bool]
Operand = Callable[[Row], Any]

MAX_DEPTH = 100

_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')"
    r"|(?P<guid>[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"
    r"|(?P<moment>\d{4}-\d\d-\d\d(?:T[0-9:.]{1,20}(?:Z|[+-]\d\d:\d\d))?)"
    r"|(?P<number>-?\d{1,30}(?:\.\d{1,30})?)(?![\w.])"
    r"|(?P<name>@?[A-Za-z_][A-Za-z0-9_/.]*)"
    r"|(?P<mark>[(),=]))",
    re.ASCII,
)

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda left, right: bool(left == right),
    "ne": lambda left, right: bool(left != right),
    "gt": lambda left, right: bool(left > right),
    "ge": lambda left, right: bool(left >= right),
    "lt": lambda left, right: bool(left < right),
    "le": lambda left, right: bool(left <= right),
}

_CALLS: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda text, part: part.lower() in text.lower(),
    "startswith": lambda text, part: text.lower().startswith(part.lower()),
    "endswith": lambda text, part: text.lower().endswith(part.lower()),
}


_IN = "Microsoft.Dynamics.CRM.In"


def parse_filter(text: str, aliases: Mapping[str, str], knows: Callable[[str], bool]) -> Predicate:
    """A predicate for a `$filter`. `aliases` are the query's `@p` parameters, `knows` tells a table's properties.

    Raises:
        DataverseError: the expression is malformed, or names an unknown property.
    """
    parser = _Parser(_tokens(text), aliases, knows)
    predicate = parser.expression(0)
    if parser.here is not None:
        raise _syntax(text)
    return predicate


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, position = [], 0
    stripped = text.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None or match.lastgroup is None:
            raise _syntax(text)
        tokens.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return tokens


def _syntax(text: str) -> DataverseError:
    return malformed(f"Syntax error in the expression '{text}'.")


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]], aliases: Mapping[str, str], knows: Callable[[str], bool]) -> None:
        self._tokens = tokens
        self._aliases = aliases
        self._knows = knows
        self._at = 0

    @property
    def here(self) -> tuple[str, str] | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def expression(self, depth: int) -> Predicate:
        terms = [self._conjunction(depth)]
        while self._take("name", "or"):
            terms.append(self._conjunction(depth))
        return terms[0] if len(terms) == 1 else lambda row: any(term(row) for term in terms)

    def _conjunction(self, depth: int) -> Predicate:
        terms = [self._negation(depth)]
        while self._take("name", "and"):
            terms.append(self._negation(depth))
        return terms[0] if len(terms) == 1 else lambda row: all(term(row) for term in terms)

    def _negation(self, depth: int) -> Predicate:
        if depth > MAX_DEPTH:
            raise malformed("The node count limit of the filter expression has been exceeded.")
        if self._take("name", "not"):
            inner = self._negation(depth + 1)
            return lambda row: not inner(row)
        if self._take("mark", "("):
            grouped = self.expression(depth + 1)
            self._expect("mark", ")")
            return grouped
        if self.here is not None and self.here[1] in _CALLS:
            return self._call(_CALLS[self._next()[1]])
        if self._take("name", _IN):
            return self._in()
        return self._comparison()

    def _in(self) -> Predicate:
        """Microsoft: "Filter rows", on query functions: the values are a JSON array of texts."""
        self._expect("mark", "(")
        name = self._argument("PropertyName")
        self._expect("mark", ",")
        values = self._argument("PropertyValues")
        self._expect("mark", ")")
        name = name.strip("'")
        if not self._knows(name):
            raise malformed(f"Could not find a property named '{name}'.")
        try:
            wanted = {str(value).lower() for value in list(json.loads(values))}
        except (ValueError, TypeError, RecursionError):
            raise malformed(f"Invalid JSON: {values}") from None
        return lambda row: str(row.get(name)).lower() in wanted

    def _argument(self, name: str) -> str:
        """The value of the parameter alias that is given for an argument."""
        self._expect("name", name)
        self._expect("mark", "=")
        _, alias = self._next()
        if alias not in self._aliases:
            raise malformed(f"The parameter alias '{alias}' has no value.")
        return self._aliases[alias]

    def _call(self, function: Callable[[str, str], bool]) -> Predicate:
        self._expect("mark", "(")
        text = self._operand()
        self._expect("mark", ",")
        part = self._operand()
        self._expect("mark", ")")
        return lambda row: function(str(text(row) or ""), str(part(row) or ""))

    def _comparison(self) -> Predicate:
        left = self._operand()
        _, operator = self._next()
        if operator not in _COMPARISONS:
            raise malformed(f"Unknown operator '{operator}' in the filter expression.")
        compare, right = _COMPARISONS[operator], self._operand()
        return lambda row: _compared(compare, operator, left(row), right(row))

    def _operand(self) -> Operand:
        kind, text = self._next()
        if kind == "name" and text.startswith("@"):
            if text not in self._aliases:
                raise malformed(f"The parameter alias '{text}' has no value.")
            return _Parser(_tokens(self._aliases[text]), {}, self._knows)._operand()
        if kind == "name" and text not in _LITERALS:
            if not self._knows(text):
                raise malformed(f"Could not find a property named '{text}'.")
            return lambda row: row.get(text)
        value = _literal(kind, text)
        return lambda row: value

    def _next(self) -> tuple[str, str]:
        if self.here is None:
            raise malformed("The filter expression ends too early.")
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, kind: str, text: str) -> bool:
        if self.here != (kind, text):
            return False
        self._at += 1
        return True

    def _expect(self, kind: str, text: str) -> None:
        if not self._take(kind, text):
            raise malformed(f"'{text}' expected in the filter expression.")


_LITERALS = {"null": None, "true": True, "false": False}


def _literal(kind: str, text: str) -> Any:
    match kind:
        case "text":
            return text[1:-1].replace("''", "'")
        case "guid":
            return text.lower()
        case "number":
            return float(text) if "." in text else int(text)
        case "moment":
            return _moment(text)
        case "name":
            return _LITERALS[text]
    raise malformed(f"'{text}' is no value.")


def _moment(text: str) -> str:
    """A date as it is, a moment in the form in which moments are kept."""
    try:
        return moment(text) if "T" in text else date.fromisoformat(text).isoformat()
    except (ValueError, OverflowError):
        raise malformed(f"'{text}' is no valid date.") from None


def _compared(compare: Callable[[Any, Any], bool], operator: str, left: Any, right: Any) -> bool:
    if left is None or right is None:
        return compare(left, right) if operator in ("eq", "ne") else False
    if isinstance(left, str) and isinstance(right, str):
        left, right = left.lower(), right.lower()  # Dataverse compares text without regard to case
    try:
        return compare(left, right)
    except TypeError:
        raise malformed("A comparison in the filter expression mixes types.") from None
