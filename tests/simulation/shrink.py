"""A failing history, made as short as it can be: what is left out of its plan is not needed for the failure."""

from collections.abc import Iterator
from dataclasses import replace

from simulation.plan import Plan
from simulation.world import simulate


def shrink(plan: Plan) -> Plan:
    """The plan without whatever it fails without, too. It fails in the same way: by the same letter and number."""
    wanted = kind_of(plan)
    if wanted is None:
        return plan
    while (smaller := next((each for each in _smaller(plan) if kind_of(each) == wanted), None)) is not None:
        plan = smaller
    return plan


def kind_of(plan: Plan) -> str | None:
    """What is violated first: `I1`, `I2` …; None if nothing is."""
    violations = simulate(plan).violations
    return violations[0].split(" s: ")[1].split()[0] if violations else None


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Plans with less in them, the most promising first."""
    actions = plan.actions
    size = len(actions) // 2
    while size:
        for start in range(0, len(actions), size):
            yield replace(plan, actions=actions[:start] + actions[start + size :])
        size //= 2
    if plan.workers > 1 and all(action.worker < plan.workers - 1 for action in actions):
        yield replace(plan, workers=plan.workers - 1, skews=plan.skews[:-1])
    if plan.concurrency > 1:
        yield replace(plan, concurrency=plan.concurrency - 1)
    if any(plan.skews):
        yield replace(plan, skews=(0.0,) * plan.workers)
