"""The plot: how far each figure is from its bar, as SVG. It is light or dark as the reader's screen is, and says each
verdict in words, too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import log2

from benchmarks.bars import Bar, Verdict, Wanted

WIDTH = 960
LINE = 36
TOP = 64
LEFT, RIGHT = 400, 690
"""Where the bars begin and end; labels stand before, numbers behind."""
LEAST, MOST = -2.0, 3.0
"""From a quarter of the bar to eight times as good, in powers of two."""

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; } .quiet { fill: #59636e; } .number { font-variant-numeric: tabular-nums; }
.grid { stroke: #d1d9e0; } .bar { stroke: #1f2328; stroke-width: 2; } .wish { stroke: #59636e; stroke-dasharray: 3 2; }
.page { fill: #ffffff; } .met, .beyond { fill: #2b7de0; } .missed { fill: #d4622a; } .not-judged { fill: #8c959f; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .quiet { fill: #9198a1; } .grid { stroke: #3d444d; } .bar { stroke: #e6edf3; }
  .wish { stroke: #9198a1; } .page { fill: #0d1117; } .met, .beyond { fill: #4c9aff; } .missed { fill: #f0883e; }
  .not-judged { fill: #6e7681; }
}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A line: what is held against what, and how it stands."""

    what: str
    peer: str
    ratio: float | None
    bar: Bar
    verdict: Verdict


def plot(rows: Sequence[Row]) -> str:
    """The whole picture."""
    height = TOP + LINE * len(rows) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="How each figure stands to its bar">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        *_frame(height),
        *(part for number, row in enumerate(rows) for part in _line(row, TOP + LINE * number)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _frame(height: int) -> Iterator[str]:
    bottom = height - 30
    yield _text(16, 26, "How far from its bar, for better (right) or worse (left)", "title")
    yield _text(16, 45, "line: the bar · dashes: what lies beyond it · a step to the right: twice as good", "quiet")
    for power in range(int(LEAST), int(MOST) + 1):
        x = _across(power)
        yield f'<line class="{"bar" if power == 0 else "grid"}" x1="{x}" y1="{TOP - 6}" x2="{x}" y2="{bottom}"/>'
        yield _text(x, bottom + 18, f"×{2.0**power:g}", "quiet", "middle")


def _line(row: Row, y: int) -> Iterator[str]:
    yield _text(LEFT - 12, y + 13, row.what, "", "end")
    yield _text(LEFT - 12, y + 28, row.peer, "quiet", "end")
    if row.ratio is not None:
        at, from_bar = _across(_better(row.ratio, row.bar)), _across(0)
        yield (
            f'<rect class="{_kind(row.verdict)}" x="{min(at, from_bar)}" y="{y + 9}" '
            f'width="{max(abs(at - from_bar), 2):.1f}" height="14" rx="2"/>'
        )
    if row.bar.beyond is not None:
        x = _across(_better(row.bar.beyond, row.bar))
        yield f'<line class="wish" x1="{x}" y1="{y + 4}" x2="{x}" y2="{y + 28}"/>'
    number = "" if row.ratio is None else f"{row.ratio:.2f} "
    yield _text(RIGHT + 16, y + 21, f"{number}({row.bar.wanted} {row.bar.bar:g})  {row.verdict}", "number")


def _kind(verdict: Verdict) -> str:
    """The class of its colour."""
    return str(verdict).replace(" ", "-")


def _better(ratio: float, bar: Bar) -> float:
    """How many times twice as good as the bar."""
    return log2(ratio / bar.bar if bar.wanted is Wanted.AT_LEAST else bar.bar / ratio)


def _across(power: float) -> float:
    """Where that is, from left to right; what is off the scale ends at its edge."""
    return round(LEFT + (min(max(power, LEAST), MOST) - LEAST) * (RIGHT - LEFT) / (MOST - LEAST), 1)


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
