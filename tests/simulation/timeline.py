"""A history for people: its plan, and what happened, moment by moment."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulation.plan import Plan
from simulation.world import simulate

COLOURS = {
    "CHECK": "bold red",
    "plan": "magenta",
    "user": "green",
    "operator": "green",
    "Dynamics": "cyan",
    "log": "dim",
}


def show(plan: Plan, console: Console) -> list[str]:
    """Let a history happen once more and print its time line; give what it violates."""
    console.print(
        f"[bold]Seed {plan.seed}[/]: {plan.workers} worker(s), {plan.concurrency} request(s) each, the circuit opens "
        f"after {plan.failure_threshold} failure(s), {'with' if plan.notifies else 'without'} notifications, wall "
        f"clocks off by {', '.join(f'{skew:g} s' for skew in plan.skews)}"
    )
    for action in plan.actions:
        console.print(f"  {action}", highlight=False)
    lines = Table("s", "who", "what", box=None, padding=(0, 2, 0, 0))

    def tell(at: float, who: str, what: str) -> None:
        style = COLOURS.get(who, "")
        lines.add_row(f"{at:.3f}", Text(who, style), Text(what, style))

    violations = simulate(plan, tell).violations
    console.print(lines)
    for violation in violations:
        console.print(f"[bold red]{violation}[/]", highlight=False)
    return violations
