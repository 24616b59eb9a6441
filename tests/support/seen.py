"""What can be compared of two stores that number and name things differently."""

from dataclasses import dataclass, field, replace
from typing import Any

from dynamics_sync.core.operation import SyncOperation
from support.stores import Picture


@dataclass
class Names:
    """Numbers and ids in the order in which they were first seen: which are the same, and which is newer."""

    known: dict[tuple[str, str], list[Any]] = field(default_factory=dict)

    def __call__(self, what: str, key: str, name: Any) -> int:
        return self.known[what, key].index(name)

    def fork(self) -> "Names":
        return Names({what: names.copy() for what, names in self.known.items()})

    def learn(self, results: list[Any], picture: Picture) -> None:
        """Note what is new. Versions and rows of a record only grow."""
        for result in results:
            if isinstance(result, str):
                self._learn("entry", result)
            for operation in result if isinstance(result, list) else ():
                self._learn("claim", operation.claim_id)
        operations = [each for result in results if isinstance(result, list) for each in result]
        for key in {operation.record_key for operation in operations} | set(picture.waiting) | set(picture.applied):
            claimed = [operation for operation in operations if operation.record_key == key]
            waiting = [picture.waiting[key]] if key in picture.waiting else []
            applied = [picture.applied[key][0]] if key in picture.applied else []
            self._learn_numbers("version", key, [each.version for each in [*claimed, *waiting]] + applied)
            self._learn_numbers("row", key, [each.outbox_id for each in claimed] + [each.id for each in waiting])

    def _learn(self, what: str, name: Any) -> None:
        known = self.known.setdefault((what, ""), [])
        if name not in known:
            known.append(name)

    def _learn_numbers(self, what: str, key: str, numbers: list[int]) -> None:
        known = self.known.setdefault((what, key), [])
        for number in sorted(set(numbers) - set(known)):
            assert not known or number > known[-1], f"{key} got an old {what} again"
            known.append(number)


def seen(names: Names, results: list[Any], picture: Picture) -> dict[str, Any]:
    """All of it, by names in common."""
    names = names.fork()
    names.learn(results, picture)
    entries = [replace(entry, id=str(names("entry", "", entry.id))) for entry in picture.entries]
    return {
        "results": [_result(names, each) for each in results],
        "changes": [(keys, kind, columns) for keys, kind, columns, _ in picture.changes],
        "waiting": {
            key: replace(
                row,
                id=names("row", key, row.id),
                version=names("version", key, row.version),
                enqueued_at=0,
                lease_owner=None if row.lease_owner is None else str(names("claim", "", row.lease_owner)),
                lease_until=None if row.lease_until is None else round(row.lease_until, 6),
            )
            for key, row in picture.waiting.items()
        },
        "taken together": _together(picture),
        "oldest first": _by_age(picture),
        "entries": sorted(entries, key=lambda entry: int(entry.id)),
        "attempts": sorted((replace(each, at=round(each.at, 6)) for each in picture.attempts), key=str),
        "unanswered": {key: round(until, 6) for key, until in picture.unanswered.items()},
        "applied": {key: (names("version", key, version), *rest) for key, (version, *rest) in picture.applied.items()},
        "circuit": picture.circuit,
        "is sending": picture.is_sending,
    }


def _together(picture: Picture) -> list[list[str]]:
    taken: dict[int, list[str]] = {}
    for key, row in sorted(picture.waiting.items()):
        if row.is_taken:
            taken.setdefault(row.version, []).append(key)
    return sorted(taken.values())


def _by_age(picture: Picture) -> list[str]:
    """The order in which records were changed, whether that is gathered or not."""
    waiting = [(row.enqueued_at, 1, row.id, key) for key, row in picture.waiting.items()]
    changes = [(at, 0, place, f"{keys}, not gathered") for place, (keys, _, _, at) in enumerate(picture.changes)]
    return [what for *_, what in sorted(waiting + changes)]


def _result(names: Names, given: Any) -> Any:
    if isinstance(given, str):
        return names("entry", "", given)
    if not isinstance(given, list):
        return given
    return sorted(_claimed(names, operation) for operation in given)


def _claimed(names: Names, operation: SyncOperation) -> tuple[object, ...]:
    key = operation.record_key
    return (
        key,
        names("row", key, operation.outbox_id),
        names("version", key, operation.version),
        names("claim", "", operation.claim_id),
        operation.operation_type,
        operation.attempts,
        operation.changed_columns,
    )
