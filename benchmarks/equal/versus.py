"""One arm of a comparison against every other, seed by seed: the block ``versus:COMPARISON:ARM`` of the page."""

from __future__ import annotations

import copy

from kept import Kept
from tables import boundary_iou, markdown, paired, verdict

from segtailor.errors import SegtailorError
from segtailor.results.formatting import MISSING, points
from segtailor.results.leaderboard import summarise

KIND = "versus"


def versus_table(kept: Kept, arm: str) -> str:
    """Return by how much ``arm`` is above each other one, best first; raises SegtailorError for an unknown arm."""
    if arm not in kept.planned.arms:
        raise SegtailorError(f"no arm '{arm}' in {kept.planned.name}; there are {', '.join(kept.planned.arms)}")
    if kept.found is None or not kept.found.finished(arm):
        return "Not run."
    found = copy.copy(kept.found)
    found.baseline = arm
    ours = found.finished(arm)
    rows = [["arm", "seeds", f"`{arm}` above it (95 %)", "each seed", "boundary IoU", "verdict"]]
    for result in summarise(found, resamples=1).arms:
        if result.arm == arm or result.difference is None:
            continue
        mean, interval = points(-result.difference.mean), result.over_seeds
        rows.append(
            [
                f"`{result.arm}`",
                str(len(result.differences)),
                mean if interval is None else f"{mean} ({points(-interval.high)} to {points(-interval.low)})",
                ", ".join(points(-value) for value in result.differences.values()) or MISSING,
                paired(ours, found.finished(result.arm), boundary_iou),
                verdict(result),
            ]
        )
    text = f"{markdown(rows)}\n\nPoints, seed by seed; the verdicts are corrected by Holm for the arms of this table."
    return text + _by_class(kept, arm)


def _by_class(kept: Kept, arm: str) -> str:
    """Return a line with each class's mean difference to the student alone, the largest first."""
    if kept.found is None or kept.alone is None or kept.alone.arm == arm:
        return ""
    ours, alone = kept.found.finished(arm), kept.found.finished(kept.alone.arm)
    seeds, gains = sorted(ours.keys() & alone.keys()), []
    for index, name in enumerate(kept.found.classes):
        pairs = [(ours[seed].iou[index], alone[seed].iou[index]) for seed in seeds]
        known = [first - second for first, second in pairs if first is not None and second is not None]
        if known:
            gains.append((sum(known) / len(known), name))
    listed = ", ".join(f"{name} {points(gain)}" for gain, name in sorted(gains, reverse=True))
    return f" By class, `{arm}` above `{kept.alone.arm}`, means over seeds: {listed}."
