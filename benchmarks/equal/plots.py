"""The study's plots as SVG files of their own: a light ground, text as text, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from segtailor.report.svg import Range as Point
from segtailor.report.svg import nice_ticks, share
from segtailor.results.formatting import compact, points
from segtailor.results.leaderboard import ArmResult, Leaderboard

WIDTH = 800
TOP, BOTTOM, RIGHT, ROW = 74, 52, 78, 30
LETTER = 7.3
MOST_LETTERS = 36
REACH = 0.4
"""Share of the dots' span by which an interval may widen the axis; that of two seeds would push all dots together."""
COLORS = ("#1f6fb2", "#b8561b", "#3d7d3d", "#7a4aa8")
DASHES = ("", "7 4", "2 3", "9 3 2 3")
STYLE = """text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2933}
.title{font-size:15px;font-weight:600}.soft{fill:#5b6875;font-size:12px}.end{text-anchor:end}.middle{text-anchor:middle}
.grid{stroke:#e3e7eb}.zero{stroke:#5b6875}.seed,circle.key{fill:#1f6fb2;fill-opacity:.6}
.interval{stroke:#1f6fb2;stroke-width:2;fill:none}.mean{stroke:#1f6fb2;stroke-width:2;fill:#fff}.mean.differs{fill:#1f6fb2}
.curve{fill:none;stroke-width:2}"""


def difference_plot(board: Leaderboard, title: str) -> str | None:
    """Return the arms' differences to the student alone, best first; None where there is none yet."""
    arms = [result for result in board.arms if result.differences]
    if not arms:
        return None
    labels = [_label(result, len(board.comparison.seeds)) for result in arms]
    left = 24 + LETTER * max(map(len, labels))
    height = TOP + ROW * len(arms) + BOTTOM
    ticks = nice_ticks(*_limits(arms), 8)
    span = (ticks[0], ticks[-1])

    def across(difference: float) -> float:
        return left + (WIDTH - RIGHT - left) * share(difference, span)

    bottom = height - BOTTOM
    body = [_legend(arms, span)]
    body.append(_text(WIDTH - 14, TOP - 8, "mean", "soft end"))
    for tick in ticks:
        body.append(_line(across(tick), TOP, across(tick), bottom, "zero" if tick == 0 else "grid"))
        body.append(_text(across(tick), bottom + 17, compact(tick), "soft middle"))
    name = f"difference to {board.comparison.baseline} in points of mIoU"
    body.append(_text((left + WIDTH - RIGHT) / 2, bottom + 38, name, "soft middle"))
    for place, result in enumerate(arms):
        y = TOP + ROW * (place + 0.5)
        if place:
            body.append(_line(14, y - ROW / 2, WIDTH - 14, y - ROW / 2, "grid"))
        body += [_text(14, y + 4, labels[place]), *_row(result, y, left, span)]
    described = "; ".join(f"{result.arm} {_mean(result)}" for result in arms)
    return _document(height, title, f"Mean differences to {board.comparison.baseline} in points: {described}", body)


def teacher_plot(curves: Mapping[str, Sequence[Point]]) -> str | None:
    """Return the teachers' mIoU in percent by training step, one line a split; None without a point."""
    curves = {name: line for name, line in curves.items() if line}
    if not curves:
        return None
    height, left, right, top = 300, 58, 112, 48
    ticks = nice_ticks(
        min(y for line in curves.values() for _, y in line), max(y for line in curves.values() for _, y in line)
    )
    steps = nice_ticks(0.0, max(x for line in curves.values() for x, _ in line), 7)
    x_range, y_range, bottom = (0.0, steps[-1]), (ticks[0], ticks[-1]), height - BOTTOM

    def place(point: Point) -> Point:
        x, y = share(point[0], x_range), share(point[1], y_range)
        return left + (WIDTH - right - left) * x, bottom - (bottom - top) * y

    body = []
    for tick in ticks:
        y = place((0, tick))[1]
        body += [_line(left, y, WIDTH - right, y, "grid"), _text(left - 8, y + 4, compact(tick), "soft end")]
    body += [_text(place((step, ticks[0]))[0], bottom + 17, compact(step), "soft middle") for step in steps]
    body.append(_text((left + WIDTH - right) / 2, bottom + 38, "training step", "soft middle"))
    labels = _apart({name: place(line[-1])[1] for name, line in curves.items()})
    for index, (name, line) in enumerate(curves.items()):
        color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
        places = [place(point) for point in line]
        path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
        body.append(f'<path class="curve" d="{path}" stroke="{color}" stroke-dasharray="{dash or "none"}"/>')
        body += [f'<circle class="evaluation" cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in places]
        body.append(_text(places[-1][0] + 12, labels[name] + 4, f"{name} {line[-1][1]:.2f}", "", color))
    ends = "; ".join(f"{name} ends at {line[-1][1]:.2f}" for name, line in curves.items())
    return _document(height, "The teachers while they train: mIoU, %", ends, body)


def _row(result: ArmResult, y: float, left: float, span: Point) -> list[str]:
    """Return one arm: interval and mean, the seeds below them, and the mean as a number."""

    def across(difference: float) -> float:
        return left + (WIDTH - RIGHT - left) * share(difference, span)

    drawn: list[str] = []
    if result.over_seeds is not None:
        drawn += _interval(100 * result.over_seeds.low, 100 * result.over_seeds.high, y - 4, left, span)
    for seed, difference in result.differences.items():
        place = f'cx="{across(100 * difference):.1f}" cy="{y + 7:.1f}" r="3.5"'
        drawn.append(f'<circle class="seed" {place}><title>seed {seed}: {points(difference)}</title></circle>')
    mean = sum(result.differences.values()) / len(result.differences)
    drawn.append(_diamond(across(100 * mean), y - 4, result.verdict == "differs"))
    drawn.append(_text(WIDTH - 14, y + 4, _mean(result), "end"))
    return drawn


def _interval(low: float, high: float, y: float, left: float, span: Point) -> list[str]:
    """Return the interval's line; an arrow where it goes on beyond the axis."""
    ends = []
    path = ""
    for at, limit, outwards in ((low, span[0], -1), (high, span[1], 1)):
        beyond = at * outwards > limit * outwards
        x = left + (WIDTH - RIGHT - left) * share(limit if beyond else at, span)
        ends.append(x)
        if beyond:
            path += f"M{x - 6 * outwards:.1f},{y - 4:.1f}L{x:.1f},{y:.1f}L{x - 6 * outwards:.1f},{y + 4:.1f}"
        else:
            path += f"M{x:.1f},{y - 4:.1f}V{y + 4:.1f}"
    return [f'<path class="interval" d="M{ends[0]:.1f},{y:.1f}H{ends[1]:.1f}{path}"/>']


def _limits(arms: Sequence[ArmResult]) -> Point:
    """Return what the axis must hold: 0, every seed, and the intervals as far as they leave the dots room."""
    seen = [0.0, *(100 * difference for result in arms for difference in result.differences.values())]
    low, high = min(seen), max(seen)
    room = REACH * (high - low)
    intervals = [result.over_seeds for result in arms if result.over_seeds is not None]
    low = min([low, *(max(100 * interval.low, low - room) for interval in intervals)])
    return low, max([high, *(min(100 * interval.high, high + room) for interval in intervals)])


def _legend(arms: Sequence[ArmResult], span: Point) -> str:
    """Return the key, with only what is drawn."""
    y, x = 48, 172
    parts = [f'<circle class="key" cx="20" cy="{y - 4}" r="3.5"/>', _text(30, y, "one seed", "soft")]
    parts += [_diamond(106, y - 4, False, "key"), _text(118, y, "mean", "soft")]
    if any(result.verdict == "differs" for result in arms):
        parts += [_diamond(x, y - 4, True, "key"), _text(x + 12, y, "mean, differs (p < 0.05)", "soft")]
        x += 184
    intervals = [result.over_seeds for result in arms if result.over_seeds is not None]
    if intervals:
        parts.append(f'<path class="interval" d="M{x},{y - 4}H{x + 26}M{x},{y - 8}v8M{x + 26},{y - 8}v8"/>')
        beyond = any(100 * interval.low < span[0] or 100 * interval.high > span[1] for interval in intervals)
        text = "95 % interval over seeds" + ("; an arrow: it goes on" if beyond else "")
        parts.append(_text(x + 36, y, text, "soft"))
    return "".join(parts)


def _diamond(x: float, y: float, differs: bool, kind: str = "") -> str:
    name = " ".join(word for word in ("mean", "differs" if differs else "", kind) if word)
    return f'<path class="{name}" d="M{x - 5.5:.1f},{y:.1f}l5.5,-5.5l5.5,5.5l-5.5,5.5Z"/>'


def _apart(heights: Mapping[str, float], least: float = 16) -> dict[str, float]:
    """Move labels down until none covers the one above."""
    moved: dict[str, float] = {}
    last = float("-inf")
    for name, y in sorted(heights.items(), key=lambda item: item[1]):
        last = moved[name] = max(y, last + least)
    return moved


def _mean(result: ArmResult) -> str:
    return points(result.difference.mean if result.difference else None)


def _label(result: ArmResult, planned: int) -> str:
    """Return the arm's name, and of how many seeds its mean is where that is not all."""
    there = len(result.differences)
    name = result.arm if len(result.arm) <= MOST_LETTERS else result.arm[: MOST_LETTERS - 1] + "…"
    return name if there == planned else f"{name} ({there} of {planned})"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str = "", color: str = "") -> str:
    extra = (f' class="{kind}"' if kind else "") + (f' style="fill:{color}"' if color else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{escape(text)}</text>'


def _document(height: float, title: str, described: str, body: Sequence[str]) -> str:
    most = 92
    size = f'width="{WIDTH}" height="{height:.0f}"'
    head = title if len(title) <= most else title[: most - 1] + "…"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {height:.0f}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(described)}</desc>",
        f"<style>{STYLE}</style>",
        f'<rect {size} rx="6" fill="#fff"/>',
        _text(14, 25, head, "title"),
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
