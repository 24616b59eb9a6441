"""What workers do with the records that they claim."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from dynamics_sync.core.operation import Applied, FailedAttempt, FailureReason, SyncOperation
from dynamics_sync.postgres.outbox import TAKEN_FROM
from dynamics_sync.sync.ports import Failure
from simulation.stores import EPOCH, Database
from support.acts.cast import PLACES, Act, Cast, Choice, Held
from support.orders import Step, Thread
from support.outbox import LEASE_SECONDS


@dataclass(frozen=True)
class Claim(Choice):
    worker: int
    limit: int = 100
    taken_from: int = TAKEN_FROM

    def act(self, cast: Cast, alone: bool) -> Act:
        claim_id = cast.name()
        claimed = (self.limit, claim_id, LEASE_SECONDS)

        async def claim() -> list[SyncOperation]:
            return list((await cast.real.outbox(self.taken_from).claim(self.limit)).operations)

        def conclude(real: list[SyncOperation], modelled: list[SyncOperation]) -> None:
            by_key = {operation.record_key: operation for operation in modelled}
            cast.held += [Held(self.worker, operation, by_key[operation.record_key]) for operation in real]

        whole = Step(lambda model, _: model.claim(*claimed, self.taken_from))
        thread = [whole] if alone else self._statements(claimed, bool(_left(cast.model)))
        keys = _left(cast.model) | _due(cast.model) | cast.model.changed | {PLACES}
        return Act(keys, claim, [thread], conclude)

    def _statements(self, claimed: tuple[int, str, float], some_left: bool) -> Thread:
        """One after the other, as somebody may come between. What is known after the first is whether to take, and
        whether to gather; then what was taken."""
        limit, *lease = claimed

        def look(model: Database, _: object) -> tuple[bool, bool]:
            is_flood = model.is_flood(self.taken_from)
            is_turn = not is_flood or model.is_turn()
            return is_flood and is_turn, is_turn

        def take(model: Database, found: tuple[bool, bool]) -> tuple[tuple[SyncOperation, ...], bool]:
            is_taking, is_turn = found
            return tuple(model.take(limit, self.taken_from, *lease) if is_taking else ()), is_turn

        def gather(model: Database, found: tuple[tuple[SyncOperation, ...], bool]) -> tuple[SyncOperation, ...]:
            taken, is_turn = found
            if is_turn and not taken:
                model.gather()
            return taken

        return [
            *([Step(lambda model, _: model.unfold_left(), skips=_left)] if some_left else []),
            Step(look),
            Step(take, skips=lambda model: frozenset({PLACES})),
            Step(gather, skips=lambda model: model.changed, all_or_none=True),  # or somebody else does meanwhile
            Step(lambda model, taken: list(taken) or model.lease(*claimed), skips=_due),
        ]


@dataclass(frozen=True)
class Renew(Choice):
    pick: int

    def act(self, cast: Cast, alone: bool) -> Act | None:
        held = cast.take(self.pick)
        if held is None:
            return None
        if alone and held.waits(cast.model):
            return None
        step = Step(lambda model, _: model.renew(held.modelled, LEASE_SECONDS), held.waits, held.skips)

        async def renew() -> bool:
            return bool(await cast.outbox(held.worker).renew([held.real]))

        return Act(frozenset({held.key}), renew, [[step]])


@dataclass(frozen=True)
class Release(Choice):
    pick: int
    attempts: int = 0
    unanswered: bool = False

    def act(self, cast: Cast, alone: bool) -> Act | None:
        held = cast.take(self.pick)
        if held is None:
            return None
        if alone and held.waits(cast.model):
            return None
        failures = [_failed(cast, self.attempts)] if self.attempts else []
        rest = (self.attempts, failures, self.unanswered)

        def once_more(model: Database, is_locked: Any) -> None:
            if is_locked and not alone:
                model.release(held.modelled, self.attempts, [], False)

        first = Step(lambda model, _: model.release(held.modelled, *rest), held.waits, held.skips)
        waits = Step(once_more, lambda model, is_locked: is_locked and not alone and held.key in model.locked)
        return Act(
            frozenset({held.key}),
            lambda: cast.outbox(held.worker).release(held.real, *rest),
            [[first, waits]],
            lambda real, modelled: cast.let_go(held),
        )


@dataclass(frozen=True)
class Settle(Choice):
    """One record, or several at once. Each is settled by itself: what becomes of one does not depend on the others."""

    pick: int
    more: int = 0
    unanswered: bool = False
    is_sent: bool = True

    def act(self, cast: Cast, alone: bool) -> Act | None:
        first = cast.take(self.pick)
        if first is None:
            return None
        taken = {first.key: first}
        for pick in range(self.more):
            held = cast.take(pick, first.worker)
            if held is not None:
                taken.setdefault(held.key, held)
        if alone and any(
            held.waits(cast.model) or (cast.would_wait(key) and not held.is_ours(cast.model))
            for key, held in taken.items()
        ):
            return None
        places = {PLACES} if any(held.may_be_lost(cast.model) for held in taken.values()) else set()
        name = cast.name()
        applied = Applied(1, f"W/{name}", self.unanswered, name.encode(), self.is_sent)
        thread = _settled_alone if alone else _settled
        return Act(
            frozenset(taken) | places,
            lambda: cast.outbox(first.worker).settle([(held.real, applied) for held in taken.values()]),
            [thread(held, applied) for held in taken.values()],
            lambda real, modelled: cast.let_go(*taken.values()),
        )


@dataclass(frozen=True)
class GiveUp(Choice):
    """A record goes into the queue."""

    pick: int
    reason: FailureReason = FailureReason.RETRIES_EXHAUSTED
    unanswered: bool = False

    def act(self, cast: Cast, alone: bool) -> Act | None:
        held = cast.take(self.pick)
        if held is None:
            return None
        if alone and held.waits(cast.model):
            return None
        real = Failure(held.real, self.reason, "http_503", 4, (_failed(cast, 4),), unanswered=self.unanswered)
        modelled = replace(real, operation=held.modelled)
        entry_id = cast.name()

        def conclude(real_id: str, model_id: str) -> None:
            cast.find_entry(real_id, model_id)
            cast.let_go(held)

        add = Step(lambda model, _: model.add(modelled, entry_id), skips=held.skips)
        give_back = [] if alone else [_gone(held, lambda model: None), _changed(held)]
        return Act(frozenset({held.key}), lambda: cast.real.queue.add(real), [[*give_back, add]], conclude)


@dataclass(frozen=True)
class Resend(Choice):
    """A worker looks whether unanswered requests are over. What is done to one record does not depend on the others."""

    def act(self, cast: Cast, alone: bool) -> Act:
        keys = frozenset(cast.model.unanswered)
        return Act(keys | {PLACES}, cast.outbox(0).resend_unanswered, [[_resent(key)] for key in sorted(keys)])


def _due(model: Database) -> frozenset[str]:
    """What can be claimed."""
    return frozenset(key for key, row in model.outbox.items() if row.is_free(model.clock()))


def _left(model: Database) -> frozenset[str]:
    """What is taken, by a worker whose lease ran out."""
    return frozenset(key for key, row in model.outbox.items() if row.is_taken and row.lease_until < model.clock())


def _failed(cast: Cast, attempt_number: int) -> FailedAttempt:
    return FailedAttempt(attempt_number, EPOCH + timedelta(seconds=cast.seconds), "http_503", 2000)


def _settled_alone(held: Held, applied: Applied) -> Thread:
    settle = Step(lambda model, _: model.settle([(held.modelled, applied)])[held.modelled.outbox_id])
    return [settle, _once_more(held)]


def _settled(held: Held, applied: Applied) -> Thread:
    """Statement by statement, as somebody may come between; where the row is locked, it is tried once more."""
    settle = _settled_alone(held, applied)[0].run
    waits = Step(
        lambda model, outcome: settle(model, None) if outcome == "locked" else outcome,
        lambda model, outcome: outcome == "locked" and held.is_ours(model) and held.key in model.locked,
    )
    note = Step(lambda model, _: _note(model, held, applied), held.waits)
    gone = _gone(held, lambda model: settle(model, None))
    return [note, gone, _changed(held, applied), waits, _once_more(held)]


def _note(model: Database, held: Held, applied: Applied) -> None:
    row = model.outbox.get(held.key)
    if applied.unanswered and held.is_ours(model):
        model.unfold(held.key)
    if applied.unanswered and row is not None and row.id == held.modelled.outbox_id:
        model.note_unanswered(held.key)


def _gone(held: Held, settle: Callable[[Database], object]) -> Step:
    """The first statement that gives a row back: what is unchanged goes."""

    def run(model: Database, _: Any) -> str | None:
        if not held.is_ours(model):
            return "lost"
        if held.key in model.locked or model.outbox[held.key].version != held.modelled.version:
            return None
        settle(model)
        model.outbox.pop(held.key, None)
        return "gone"

    return Step(run, held.waits, held.skips)


def _changed(held: Held, applied: Applied | None = None) -> Step:
    """The second one: what was changed is free for its next turn. What is unchanged was locked a moment ago."""

    def run(model: Database, outcome: Any) -> str:
        if outcome is not None:
            return str(outcome)
        if not held.is_ours(model):
            return "lost"
        row = model.outbox[held.key]
        if held.key in model.locked or row.version == held.modelled.version:
            return "locked"
        row.lease_owner = None
        if applied is not None and applied.is_sent:
            model.record_state[held.key] = (held.modelled.version, applied.etag, None)
        return "changed"

    return Step(run, skips=held.skips)


def _once_more(held: Held) -> Step:
    """A lease that was lost marks the record dirty."""
    return Step(
        lambda model, outcome: model.send_again(held.key, held.modelled.operation_type) if outcome == "lost" else None,
        lambda model, outcome: outcome == "lost" and held.key in model.locked,
    )


def _resent(key: str) -> Step:
    def run(model: Database, _: object) -> None:
        others = {other: until for other, until in model.unanswered.items() if other != key}
        model.unanswered = {key: model.unanswered[key]} if key in model.unanswered else {}
        model.resend_unanswered()
        model.unanswered |= others

    def skips(model: Database) -> frozenset[str]:
        return frozenset({key}) if model.unanswered.get(key, math.inf) <= model.clock() else frozenset()

    return Step(run, skips=skips)
