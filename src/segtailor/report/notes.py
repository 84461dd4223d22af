"""What a reader must know to judge the numbers."""

from __future__ import annotations

from segtailor.report.read import Run
from segtailor.results.formatting import MISSING


def notes(run: Run) -> list[str]:
    """Return the sentences that keep a reader from concluding too much."""
    rows = run.rows
    said = [
        "mIoU is the mean over classes of summed intersection over summed union, all validation images counted "
        "together. A class absent from both prediction and target is left out; the all-classes figure counts it as 0.",
        "Scores are taken at the masks' own size. Void pixels are not counted, neither right nor wrong.",
        "The scores are those of the last checkpoint. The best score on the way stands beside it for information: it "
        "was chosen on these same images, so it is optimistic.",
    ]
    seed = (run.results.get("environment") or {}).get("seed") or run.recipe.get("train", {}).get("seed")
    which = f" (seed {seed})" if seed is not None else ""
    said.append(
        f"This is a single run{which}: there is no spread, and differences of a point or so may be chance. "
        "Compare several seeds before you rely on one."
    )
    if {"alone", "distilled"} <= set(rows):
        alone, distilled = rows["alone"].get("steps"), rows["distilled"].get("steps")
        if alone == distilled:
            said.append("Student alone and distilled student have had the same number of training steps.")
        else:
            said.append(
                f"Student alone and distilled student have had different numbers of steps ({alone or 'unknown'} and "
                f"{distilled or 'unknown'}), so their difference is not the method's alone."
            )
    elif "distilled" in rows:
        said.append("No student was trained alone, so this page cannot say what the method gained.")
    if rows and (size := run.results.get("size")):
        said.append(
            "Multiply-adds are counted by PyTorch's FLOP counter, two FLOPs to one, "
            f"for one {size[0]} × {size[1]} image."
        )
    for stage in run.results.get("stages") or []:
        spent = f" in {stage['seconds']:.0f} s" if stage.get("seconds") is not None else ""
        said.append(
            f"Before the student, {stage['about']} was trained for the method {stage['method']}{spent}; the student's "
            "own time does not contain it."
        )
    if "assisted" in rows:
        said.append(
            "The label-assisted teacher was scored with the labels as an input; that figure says nothing of images "
            "without labels, and no gap is measured against it."
        )
    said += [f"Alignment of {line}." for line in run.results.get("alignment") or []]
    absent = sum(value is None for value in (rows[run.main].iou if run.main in rows else []))
    if absent:
        said.append(
            f"{absent} of the {len(run.classes)} classes {'is' if absent == 1 else 'are'} absent from the targets and "
            f"from what the student predicted: no IoU, shown as {MISSING}."
        )
    return said
