"""What the page says, gathered from a run: headline, tables, notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segtailor._version import __version__
from segtailor.report.curves import loss_charts, score_chart
from segtailor.report.notes import notes
from segtailor.report.pictures import sample_rows
from segtailor.report.read import Run
from segtailor.results.formatting import MISSING, duration, percent, points, ratio, scaled, unit_of
from segtailor.results.model import Row


@dataclass
class Card:
    """One headline number."""

    label: str
    value: str
    unit: str = ""
    note: str = ""
    tone: str = ""


def page(run: Run) -> dict[str, Any]:
    """Return everything that the template needs."""
    rows, classes = run.rows, run.classes
    samples, left_out = sample_rows(run)
    scores = score_chart(run)
    return {
        "version": __version__,
        "name": run.name,
        "method": run.method,
        "variant": run.results.get("variant"),
        "data": run.data,
        "size": run.results.get("size"),
        "description": str(run.recipe.get("description") or "").strip(),
        "going": None if run.finished else _progress(run),
        "cards": _cards(run),
        "scale": _scale(run),
        "models": _model_table(run),
        "classes": _class_table(run, classes),
        "class_map": [row for row in run.results.get("class_map") or [] if isinstance(row, dict)],
        "scores": scores,
        "score_table": _score_table(run),
        "losses": loss_charts(run),
        "samples": samples,
        "samples_left_out": left_out,
        "legend": list(zip(classes, map(_css_color, _palette(run, len(classes))), strict=False)),
        "recipe": run.recipe_text,
        "environment": {str(key): str(value) for key, value in (run.results.get("environment") or {}).items()},
        "notes": notes(run),
        "compared": "teacher" in rows and len(rows) > 1,
    }


def _progress(run: Run) -> str:
    steps = [record["step"] for records in run.curves.values() for record in records[-1:]]
    of = run.recipe.get("train", {}).get("steps")
    return f"step {max(steps, default=0):,}" + (f" of {of:,}" if of else "")


def _difference(rows: dict[str, Row], role: str, other: str, key: str = "miou") -> float | None:
    if role not in rows or other not in rows:
        return None
    return float(rows[role][key]) - float(rows[other][key])


def _cards(run: Run) -> list[Card]:
    rows = run.rows
    cards = []
    gain = _difference(rows, "distilled", "alone")
    for role in ("alone", "distilled", "teacher", "model"):
        if role not in rows:
            continue
        note = "validation mIoU"
        if role == "distilled" and gain is not None:
            note = f"{points(gain)} points over alone"
        cards.append(Card(run.label(role), percent(rows[role]["miou"]), "%", note, role))
    if not cards and (scores := score_chart(run)):
        for line in scores.lines:
            step, score = line.points[-1]
            cards.append(Card(line.label, f"{score:.2f}", "%", f"mIoU so far, step {step:,.0f}", line.role.split()[0]))
    if run.results.get("gap_closed") is not None:
        closed = float(run.results["gap_closed"])
        cards.append(Card("Gap closed", f"{100 * closed:.1f}".replace("-", "−"), "%", "alone 0 %, teacher 100 %"))
    if "teacher" in rows and run.main in rows:
        teacher, student = rows["teacher"], rows[run.main]
        fewer = ratio(teacher.get("multiply_adds"), student.get("multiply_adds"))
        note = f"and {fewer} fewer multiply-adds" if fewer != MISSING else ""
        cards.append(Card("Smaller by", ratio(teacher.get("parameters"), student.get("parameters")), "", note))
    elif "model" in rows:
        unit, name = unit_of([rows["model"].get("parameters")])
        cards.append(Card("Parameters", scaled(rows["model"].get("parameters"), unit), name))
    return cards


def _scale(run: Run) -> list[dict[str, Any]]:
    """Return the three scores as places on one line from the lowest to the highest, in percent."""
    rows = run.rows
    if not {"teacher", "alone", "distilled"} <= set(rows):
        return []
    scores = {role: float(rows[role]["miou"]) for role in ("alone", "distilled", "teacher")}
    low, high = min(scores.values()), max(scores.values())
    if high - low < 1e-6:
        return []
    places = {role: 100 * (score - low) / (high - low) for role, score in scores.items()}
    return [
        {"role": role, "label": run.label(role), "value": percent(scores[role]), "at": places[role]}
        for role in sorted(places, key=lambda role: places[role])
    ]


def _model_table(run: Run) -> dict[str, Any]:
    rows = run.rows
    parameter_unit, parameter_name = unit_of(row.get("parameters") for row in rows.values())
    cost_unit, cost_name = unit_of(row.get("multiply_adds") for row in rows.values())
    teacher: Any = rows.get("teacher", {})
    closed = run.results.gap_closed
    body: list[dict[str, str]] = []
    for role, row in rows.items():
        best = percent(row.get("best_miou"))
        body.append(
            {
                "role": role,
                "label": run.label(role),
                "model": row.get("model", ""),
                "parameters": scaled(row.get("parameters"), parameter_unit),
                "multiply_adds": scaled(row.get("multiply_adds"), cost_unit),
                "smaller": _times(teacher.get("parameters"), row.get("parameters"), "smaller"),
                "cheaper": _times(teacher.get("multiply_adds"), row.get("multiply_adds"), "fewer"),
                "closed": percent(closed, 1).replace("-", "−") if role == "distilled" else MISSING,
                "miou": percent(row.get("miou")),
                "miou_all": percent(row.get("miou_all")),
                "pixel_accuracy": percent(row.get("pixel_accuracy")),
                "mean_accuracy": percent(row.get("mean_accuracy")),
                "mean_dice": percent(row.get("mean_dice")),
                "best": best,
                "best_step": f"{row['best_step']:,}" if row.get("best_step") is not None else "",
                "steps": f"{row['steps']:,}" if row.get("steps") is not None else "",
                "time": duration(row.get("seconds")),
            }
        )
    return {"rows": body, "has_gap": closed is not None, "parameter_unit": parameter_name, "cost_unit": cost_name}


def _times(whole: float | None, part: float | None, word: str) -> str:
    """Return how many times smaller ``part`` is than the teacher's ``whole``; empty where it is not."""
    return f"{ratio(whole, part)} {word}" if whole and part and part < whole else ""


def _class_table(run: Run, classes: list[str]) -> dict[str, Any]:
    rows = {role: row for role, row in run.rows.items() if row.get("iou")}
    compared = {"alone", "distilled"} <= set(rows)
    colors = _palette(run, len(classes))
    body: list[dict[str, Any]] = []
    differences: list[float] = []
    for index, name in enumerate(classes if rows else []):
        iou = {role: row["iou"][index] for role, row in rows.items()}
        cells = [
            {
                "role": role,
                "text": percent(value, 1),
                "bar": 100 * (value or 0.0),
                "sort": -1 if value is None else value,
            }
            for role, value in iou.items()
        ]
        both = compared and iou["alone"] is not None and iou["distilled"] is not None
        difference = iou["distilled"] - iou["alone"] if both else None
        differences.append(abs(difference or 0.0))
        body.append({"name": name, "color": _css_color(colors[index]), "cells": cells, "difference": difference})
    most = max(differences, default=0.0) or 1.0
    for row in body:
        row["difference_text"] = points(row["difference"], 1)
        row["difference_bar"] = 50 * abs(row["difference"] or 0.0) / most
    return {"rows": body, "roles": [(role, run.label(role)) for role in rows], "compared": compared}


def _score_table(run: Run) -> dict[str, Any]:
    """Return the validation scores by step, one column a curve: the chart as text."""
    found: dict[int, dict[str, float]] = {}
    columns = []
    for role, records in run.curves.items():
        for record in records:
            if record.get("kind") == "evaluate" and record.get("miou") is not None:
                label = run.label(role) + (" (averaged weights)" if record.get("weights") == "ema" else "")
                found.setdefault(int(record["step"]), {})[label] = record["miou"]
                columns += [label] if label not in columns else []
    body = [(f"{step:,}", [percent(values.get(label)) for label in columns]) for step, values in sorted(found.items())]
    return {"columns": columns, "rows": body}


def _palette(run: Run, count: int) -> list[tuple[int, int, int]]:
    given = [tuple(color) for color in run.results.get("palette") or []]
    if len(given) >= count:
        return given
    # Late: it brings torch, which reading a report rarely needs.
    from segtailor.data.classes_file import distinct_colors

    return list(distinct_colors(count))


def _css_color(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
