"""The study's plots as SVG files of their own: a light ground, text as text, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from segtailor.report.svg import Range as Point
from segtailor.report.svg import nice_ticks, share
from segtailor.results.formatting import compact, points
from segtailor.results.leaderboard import ArmResult, Leaderboard

WIDTH, LEFT, RIGHT, TOP, BOTTOM, ROW = 800, 14, 78, 74, 52, 30
LETTER = 7.3
REACH = 0.4
"""Share of the dots' span by which an interval may widen the axis; that of two seeds would push all dots together."""
COLORS, DASHES = ("#1f6fb2", "#b8561b", "#3d7d3d", "#7a4aa8"), ("none", "7 4", "2 3", "9 3 2 3")
STYLE = """text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2933}
.title{font-size:15px;font-weight:600}.soft{fill:#5b6875;font-size:12px}.end{text-anchor:end}.middle{text-anchor:middle}
.grid{stroke:#e3e7eb}.zero{stroke:#5b6875}.seed{fill:#1f6fb2;fill-opacity:.6}
.interval{stroke:#1f6fb2;stroke-width:2;fill:none}.mean{stroke:#1f6fb2;stroke-width:2;fill:#fff}.mean.differs{fill:#1f6fb2}
.curve{fill:none;stroke-width:2}"""


def difference_plot(board: Leaderboard, title: str) -> str | None:
    """Return the arms' differences to the student alone, best first; None where there is none."""
    arms = [result for result in board.arms if result.differences]
    if not arms:
        return None
    left = LEFT + 10 + LETTER * max(len(result.arm) for result in arms)
    height, bottom = TOP + ROW * len(arms) + BOTTOM, TOP + ROW * len(arms)
    ticks = nice_ticks(*_limits(arms), 8)
    span = (ticks[0], ticks[-1])

    def across(value: float) -> float:
        return left + (WIDTH - RIGHT - left) * share(min(max(value, span[0]), span[1]), span)

    key = "dot: a seed; diamond: the mean, filled where it differs (p < 0.05); line: 95 % interval over seeds"
    body = [_text(LEFT, 48, key, "soft"), _text(WIDTH - LEFT, TOP - 8, "mean", "soft end")]
    for tick in ticks:
        body.append(_line(across(tick), TOP, across(tick), bottom, "zero" if tick == 0 else "grid"))
        body.append(_text(across(tick), bottom + 17, compact(tick), "soft middle"))
    axis = f"difference to {board.comparison.baseline} in points of mIoU"
    body.append(_text((left + WIDTH - RIGHT) / 2, bottom + 38, axis, "soft middle"))
    for place, result in enumerate(arms):
        y = TOP + ROW * (place + 0.5)
        mean = _mean(result)
        body += [_text(LEFT, y + 4, result.arm), _text(WIDTH - LEFT, y + 4, points(mean), "end")]
        if result.over_seeds is not None:
            ends = [(100 * value, sign) for value, sign in ((result.over_seeds.low, -1), (result.over_seeds.high, 1))]
            path = f"M{across(ends[0][0]):.1f},{y - 4:.1f}H{across(ends[1][0]):.1f}"
            for value, sign in ends:  # a bar at the end, an arrow where the interval continues beyond the axis
                x, beyond = across(value), not span[0] <= value <= span[1]
                back = 6 * sign if beyond else 0
                path += f"M{x - back:.1f},{y - 8:.1f}L{x:.1f},{y - 4:.1f}L{x - back:.1f},{y:.1f}"
            body.append(f'<path class="interval" d="{path}"/>')
        for seed, value in result.differences.items():
            dot = f'cx="{across(100 * value):.1f}" cy="{y + 7:.1f}" r="3.5"'
            body.append(f'<circle class="seed" {dot}><title>seed {seed}: {points(value)}</title></circle>')
        kind = "mean differs" if result.verdict == "differs" else "mean"
        start = f"{across(100 * mean) - 5.5:.1f},{y - 4:.1f}"
        body.append(f'<path class="{kind}" d="M{start}l5.5,-5.5l5.5,5.5l-5.5,5.5Z"/>')
    described = "; ".join(f"{result.arm} {points(_mean(result))}" for result in arms)
    return _document(height, title, f"Mean differences to {board.comparison.baseline} in points: {described}", body)


def curve_plot(curves: Mapping[str, Sequence[Point]], title: str, axis: str) -> str:
    """Return one line a curve, each named at its end."""
    height, left, right, top = 300, 58, 112, 48
    values = [y for line in curves.values() for _, y in line]
    rows, steps = nice_ticks(min(values), max(values)), nice_ticks(0.0, max(line[-1][0] for line in curves.values()), 7)
    bottom = height - BOTTOM

    def place(point: Point) -> Point:
        x, y = share(point[0], (0.0, steps[-1])), share(point[1], (rows[0], rows[-1]))
        return left + (WIDTH - right - left) * x, bottom - (bottom - top) * y

    body = [_text((left + WIDTH - right) / 2, bottom + 38, axis, "soft middle")]
    for tick in rows:
        y = place((0, tick))[1]
        body += [_line(left, y, WIDTH - right, y, "grid"), _text(left - 8, y + 4, compact(tick), "soft end")]
    body += [_text(place((step, rows[0]))[0], bottom + 17, compact(step), "soft middle") for step in steps]
    for (name, line), color, dash in zip(curves.items(), COLORS, DASHES, strict=False):
        places = [place(point) for point in line]
        path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
        body.append(f'<path class="curve" d="{path}" stroke="{color}" stroke-dasharray="{dash}"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in places]
        body.append(_text(places[-1][0] + 12, places[-1][1] + 4, f"{name} {line[-1][1]:.2f}"))
    return _document(
        height, title, "; ".join(f"{name} ends at {line[-1][1]:.2f}" for name, line in curves.items()), body
    )


def _limits(arms: Sequence[ArmResult]) -> Point:
    """Return what the axis must hold: 0, every seed, and the intervals as far as they leave the dots room."""
    seen = [0.0, *(100 * value for result in arms for value in result.differences.values())]
    low, high = min(seen), max(seen)
    room = REACH * (high - low)
    intervals = [result.over_seeds for result in arms if result.over_seeds is not None]
    lowest = min([low, *(max(100 * interval.low, low - room) for interval in intervals)])
    return lowest, max([high, *(min(100 * interval.high, high + room) for interval in intervals)])


def _mean(result: ArmResult) -> float:
    return sum(result.differences.values()) / len(result.differences)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(text)}</text>'


def _document(height: float, title: str, described: str, body: Sequence[str]) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {height:.0f}" role="img">',
        *(f"<title>{escape(title)}</title>", f"<desc>{escape(described)}</desc>", f"<style>{STYLE}</style>"),
        *(f'<rect {size} rx="6" fill="#fff"/>', _text(LEFT, 25, title, "title"), *body, "</svg>"),
    ]
    return "\n".join(lines) + "\n"
