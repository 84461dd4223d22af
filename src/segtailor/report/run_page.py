"""The page of a run: headline, tables, curves, and notes on reading them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segtailor.report.pictures import sample_rows
from segtailor.report.read import Records, Run, class_colors, logged
from segtailor.report.svg import Line, Plot, draw, score_table, share, thinned
from segtailor.results.formatting import MISSING, duration, percent, points, ratio, scaled, tone, unit_of
from segtailor.results.model import Row

TERM_NAMES = {"task": "task: cross-entropy", "task_aux": "task_aux: auxiliary cross-entropy"}
RULES = (
    "mIoU is the mean over classes of summed intersection over summed union, all validation images counted "
    "together. A class absent from both prediction and target is left out; the all-classes figure counts it as 0.",
    "Scores are taken at the masks' own size. Void pixels are not counted, neither right nor wrong.",
    "The scores are those of the last checkpoint. The best score on the way is shown for information: it was chosen on "
    "these same images, so it is optimistic.",
)


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
    rows, results = run.rows, run.results
    classes, scores = class_colors(results.classes, results.palette), score_chart(run)
    samples, left_out = sample_rows(run)
    return {
        **dict(results),
        "name": run.name,
        "method": run.method,
        "data": run.data,
        "description": str(run.recipe.get("description") or "").strip(),
        "going": None if run.finished else _progress(run),
        "cards": _cards(run),
        "scale": _scale(run),
        "models": _model_table(run),
        "classes": _class_table(run, classes),
        "scores": scores,
        "score_table": score_table({line.label: line.points for line in scores.lines}) if scores else None,
        "losses": loss_charts(run),
        "samples": samples,
        "samples_left_out": left_out,
        "legend": classes,
        "recipe": run.recipe_text,
        "reading": _notes(run),
        "compared": "teacher" in rows and len(rows) > 1,
    }


def score_chart(run: Run) -> Plot | None:
    """Return validation mIoU against the step, with the teacher's final score as a level."""
    lines = []
    for role, records in run.curves.items():
        by_weights: dict[str, Records] = {}
        for record in records:
            if record.get("kind") == "evaluate":
                by_weights.setdefault(record.get("weights", "student"), []).append(record)
        for kind, evaluated in sorted(by_weights.items()):
            line = _line(run, role, evaluated, "miou", 100.0)
            if line is not None:
                if len(by_weights) > 1:
                    line.label += ", averaged weights" if kind == "ema" else ", raw weights"
                    line.role += "" if kind == "ema" else " faint"
                lines.append(line)
    if not lines:
        return None
    teacher = run.rows.get("teacher")
    levels = [] if teacher is None else [("teacher", run.label("teacher"), 100 * teacher.miou)]
    ends = [f"{line.label} ends at {percent(line.points[-1][1] / 100)} %" for line in lines]
    ends += [f"the teacher scores {at:.2f} %" for _, _, at in levels]
    return draw(Plot("Validation mIoU", "%", lines, "; ".join(ends)), (0.0, _last_step(run)), levels)


def loss_charts(run: Run) -> list[Plot]:
    """Return one chart for the whole loss and one for each weighted term, distilled and alone together."""
    trained = {role: [line for line in records if line.get("kind") == "train"] for role, records in run.curves.items()}
    names = dict.fromkeys(name for records in trained.values() for line in records for name in line.get("terms", {}))
    charts = []
    for name in ["", *(names if len(names) > 1 else [])]:
        found = [_line(run, role, records, name or "loss") for role, records in trained.items()]
        lines = [line for line in found if line is not None]
        if lines:
            ends = "; ".join(f"{line.label} ends at {line.points[-1][1]:.3g}" for line in lines)
            plot = Plot(TERM_NAMES.get(name, name) if name else "Loss, all terms", "", lines, ends)
            charts.append(draw(plot, (0.0, _last_step(run)), smooth=True, raw=True))
    return charts


def _line(run: Run, role: str, records: Records, key: str, scale: float = 1.0) -> Line | None:
    """Return the line of a figure or a term; None where it was not logged."""
    values = logged(records, lambda record: record.get(key, (record.get("terms") or {}).get(key)))
    if not values:
        return None
    line = thinned([(float(step), scale * value, scale * value, scale * value) for step, value in values])
    return Line(role, run.label(role), role, line)


def _last_step(run: Run) -> float:
    """Return the end of every chart's axis, the same for all so that they can be compared."""
    return float(max((record["step"] for records in run.curves.values() for record in records), default=0) or 1)


def _progress(run: Run) -> str:
    steps = [record["step"] for records in run.curves.values() for record in records[-1:]]
    of = run.recipe.get("train", {}).get("steps")
    return f"step {max(steps, default=0):,}" + (f" of {of:,}" if of else "")


def _cards(run: Run) -> list[Card]:
    rows, cards = run.rows, []
    for role in ("alone", "distilled", "teacher", "model"):
        if role not in rows:
            continue
        note = "validation mIoU"
        if role == "distilled" and "alone" in rows:
            note = f"{points(rows['distilled'].miou - rows['alone'].miou)} points over alone"
        cards.append(Card(run.label(role), percent(rows[role].miou), "%", note, role))
    if not cards and (scores := score_chart(run)):
        for line in scores.lines:
            step, score = line.points[-1][:2]
            cards.append(Card(line.label, f"{score:.2f}", "%", f"mIoU so far, step {step:,.0f}", line.role.split()[0]))
    if run.results.gap_closed is not None:
        cards.append(Card("Gap closed", percent(run.results.gap_closed, 1), "%", "alone 0 %, teacher 100 %"))
    if "teacher" in rows and run.main in rows:
        teacher, student = rows["teacher"], rows[run.main]
        fewer = ratio(teacher.multiply_adds, student.multiply_adds)
        note = f"and {fewer} fewer multiply-adds" if fewer != MISSING else ""
        cards.append(Card("Smaller by", ratio(teacher.parameters, student.parameters), "", note))
    elif "model" in rows:
        unit, name = unit_of([rows["model"].parameters])
        cards.append(Card("Parameters", scaled(rows["model"].parameters, unit), name))
    return cards


def _scale(run: Run) -> list[dict[str, Any]]:
    """Return the three scores as places on one line from the lowest to the highest, in percent."""
    scores = {role: row.miou for role, row in run.rows.items() if role in ("teacher", "alone", "distilled")}
    span = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    if len(scores) < 3 or span[1] - span[0] < 1e-6:
        return []
    return [
        {"role": role, "label": run.label(role), "value": percent(score), "at": 100 * share(score, span)}
        for role, score in sorted(scores.items(), key=lambda item: item[1])
    ]


def _model_table(run: Run) -> dict[str, Any]:
    """Return the heads (name, unit) and each model's cells (figure, small figure below)."""
    rows, closed = run.rows, run.results.gap_closed
    parameter_unit, parameter_name = unit_of(row.parameters for row in rows.values())
    cost_unit, cost_name = unit_of(row.multiply_adds for row in rows.values())
    teacher = rows.get("teacher", Row(miou=0.0))
    body = []
    for role, row in rows.items():
        smaller = _times(teacher.parameters, row.parameters, "smaller")
        cheaper = _times(teacher.multiply_adds, row.multiply_adds, "fewer")
        gap = {("Gap closed", "%"): (percent(closed, 1) if role == "distilled" else MISSING, "")}
        cells = {
            ("mIoU", "%"): (percent(row.miou), ""),
            **(gap if closed is not None else {}),
            ("mIoU, all classes", "%"): (percent(row.miou_all), ""),
            ("Best mIoU", "%, at step"): (percent(row.best_miou), _whole(row.best_step)),
            ("Pixel accuracy", "%"): (percent(row.pixel_accuracy), ""),
            ("Mean accuracy", "%"): (percent(row.mean_accuracy), ""),
            ("Mean Dice", "%"): (percent(row.mean_dice), ""),
            ("Parameters", parameter_name): (scaled(row.parameters, parameter_unit), smaller),
            ("Multiply-adds", cost_name): (scaled(row.multiply_adds, cost_unit), cheaper),
            ("Training time", "steps"): (duration(row.seconds), _whole(row.steps)),
        }
        body.append((role, run.label(role), row.model, cells))
    return {"rows": body, "heads": list(body[0][-1]) if body else []}


def _whole(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _times(whole: float | None, part: float | None, word: str) -> str:
    """Return how many times smaller ``part`` is than the teacher's ``whole``; empty where it is not."""
    return f"{ratio(whole, part)} {word}" if whole and part and part < whole else ""


def _class_table(run: Run, classes: list[tuple[str, str]]) -> dict[str, Any]:
    rows = {role: row.iou for role, row in run.rows.items() if row.iou}
    compared = {"alone", "distilled"} <= set(rows)
    body: list[dict[str, Any]] = []
    for index, (name, color) in enumerate(classes if rows else []):
        cells = [
            {"role": role, "text": percent(iou[index], 1), "bar": 100 * (iou[index] or 0.0),
             "sort": -1 if iou[index] is None else iou[index]}
            for role, iou in rows.items()
        ]  # fmt: skip
        alone, distilled = (rows[role][index] if compared else None for role in ("alone", "distilled"))
        difference = None if alone is None or distilled is None else distilled - alone
        body.append({"name": name, "color": color, "cells": cells, "difference": difference})
    most = max((abs(row["difference"] or 0.0) for row in body), default=0.0) or 1.0
    for row in body:
        row["difference_text"] = points(row["difference"], 1)
        row["difference_tone"] = tone(row["difference_text"])
        row["difference_bar"] = 50 * abs(row["difference"] or 0.0) / most
    return {"rows": body, "roles": [(role, run.label(role)) for role in rows], "compared": compared}


def _notes(run: Run) -> list[str]:
    """Return the sentences that keep a reader from concluding too much."""
    rows, results = run.rows, run.results
    seed = results.environment.get("seed") or run.recipe.get("train", {}).get("seed")
    which = f" (seed {seed})" if seed is not None else ""
    lines = [
        *RULES,
        f"This is a single run{which}: there is no spread, and differences of a point or so may be chance. "
        "Compare several seeds before you rely on one.",
    ]
    if {"alone", "distilled"} <= set(rows):
        alone, distilled = rows["alone"].steps, rows["distilled"].steps
        if alone == distilled:
            lines.append("Student alone and distilled student have had the same number of training steps.")
        else:
            lines.append(
                f"Student alone and distilled student have had different numbers of steps ({alone or 'unknown'} and "
                f"{distilled or 'unknown'}), so their difference is not the method's alone."
            )
    elif "distilled" in rows:
        lines.append("No student was trained alone, so the gain of the method is unknown.")
    if rows and results.size:
        lines.append(
            "Multiply-adds are counted by PyTorch's FLOP counter, two FLOPs to one, "
            f"for one {results.size[0]} × {results.size[1]} image."
        )
    for stage in results.stages:
        spent = f" in {duration(stage['seconds'])}" if stage.get("seconds") is not None else ""
        lines.append(
            f"Before the student, {stage['about']} was trained for the method {stage['method']}{spent}; the student's "
            "time does not contain it."
        )
    if "assisted" in rows:
        lines.append(
            "The label-assisted teacher was scored with the labels as an input; that score does not apply to images "
            "without labels, and no gap is measured against it."
        )
    lines += [f"Alignment of {line}." for line in results.alignment]
    absent = sum(value is None for value in (rows[run.main].iou if run.main in rows else []))
    if absent:
        lines.append(
            f"{absent} of the {len(results.classes)} classes {'is' if absent == 1 else 'are'} absent from the targets "
            f"and from what the student predicted: no IoU, shown as {MISSING}."
        )
    return lines
