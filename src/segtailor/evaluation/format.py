"""Scores as text: plain tables for the terminal, a small table for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from segtailor.evaluation.confusion import EvaluationResult


def format_result(result: EvaluationResult) -> str:
    """Return the scores as short plain tables for the terminal; percentages, ``-`` for a class that is absent."""
    parts = [_format_scores(result)]
    if result.boundary is not None:
        parts.append(_format_boundary(result.boundary, result.classes))
    if result.calibration is not None:
        bins, brier = len(result.calibration["bins"]), result.calibration["brier"]
        brier = "-" if brier is None else f"{brier:.4f}"
        parts.append(f"calibration error {_percent(result.calibration['ece'])} % ({bins} bins)   Brier score {brier}")
    return "\n\n".join(parts)


def html_result(result: EvaluationResult) -> str:
    """Return the scores as an HTML table, one row a class."""
    columns = zip(result.classes, result.iou, result.dice, result.accuracy, strict=True)
    body = [(name, *(_percent(value) for value in values)) for name, *values in columns]
    mean = ("mean", *map(_percent, (result.miou, result.mean_dice, result.mean_accuracy)))
    notes = [f"pixel accuracy {_percent(result.pixel_accuracy)} %, {result.images} images"]
    return html_table(
        f"mIoU {_percent(result.miou)} %", [("class", "IoU %", "Dice %", "accuracy %"), mean, *body], notes
    )


def html_table(title: str, lines: Sequence[Sequence[str]], notes: Sequence[str] = (), link: str = "") -> str:
    """Return ``lines``, of which the first is the head, as an HTML table with ``notes`` and a ``link`` below."""
    head, *body = lines

    def cells(line: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line)

    rows = "".join(f"<tr>{cells(line, 'td')}</tr>" for line in body)
    below = "".join(f"<div>{escape(note)}</div>" for note in notes)
    if link:
        below += f'<div><a href="{escape(link, quote=True)}">report</a></div>'
    table = f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<div><b>{escape(title)}</b>{table}{below}</div>"


def _format_scores(result: EvaluationResult) -> str:
    width = _name_width(result.classes)
    lines = [
        f"mIoU {_percent(result.miou)} %   all classes {_percent(result.miou_all)} %   "
        f"pixel accuracy {_percent(result.pixel_accuracy)} %",
        f"mean accuracy {_percent(result.mean_accuracy)} %   mean Dice {_percent(result.mean_dice)} %",
        "",
        f"{'class':{width}}  {'IoU %':>7}  {'Dice %':>7}  {'accuracy %':>10}",
    ]
    for name, iou, dice, accuracy in zip(result.classes, result.iou, result.dice, result.accuracy, strict=True):
        lines.append(f"{name:{width}}  {_percent(iou):>7}  {_percent(dice):>7}  {_percent(accuracy):>10}")
    speed = result.images / result.seconds if result.seconds > 0 else 0.0
    lines += ["", f"{result.images} images in {result.seconds:.1f} s ({speed:.1f} images/s), void pixels not counted"]
    absent = sum(value is None for value in result.iou)
    if absent:
        lines.append(f"mIoU leaves out {absent} absent from prediction and target (-); all classes counts them as 0")
    return "\n".join(lines)


def _format_boundary(boundary: dict[str, Any], classes: tuple[str, ...]) -> str:
    width = _name_width(classes)
    titles = ["Boundary IoU %", *(f"F1 at {row['tolerance']} px %" for row in boundary["f1"])]
    columns = [[boundary["miou"], *boundary["iou"]], *([row["mean_f1"], *row["f1"]] for row in boundary["f1"])]
    lines = [f"{'class':{width}}  " + "  ".join(titles)]
    for name, *values in zip(("mean", *classes), *columns, strict=True):
        cells = [f"{_percent(value):>{len(title)}}" for value, title in zip(values, titles, strict=True)]
        lines.append(f"{name:{width}}  " + "  ".join(cells))
    lines += ["", "pixels from a boundary of the target: mIoU %, share of pixels %"]
    scored = max(1, sum(row["pixels"] for row in boundary["distance"]))
    for row in boundary["distance"]:
        first, last = row["above"] + 1, row["up_to"]
        reach = f"from {first}" if last is None else f"{first} to {last}" if last > first else str(last)
        lines.append(f"{reach:{width}}  {_percent(row['miou']):>7}  {_percent(row['pixels'] / scored):>7}")
    return "\n".join(lines)


def _name_width(classes: tuple[str, ...]) -> int:
    return max(12, *(len(name) for name in classes))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
