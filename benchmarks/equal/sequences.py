"""Score rows of `dev` by the drive that its frames are from: what does an arm gain away from the frames of `val`?

    python benchmarks/equal/sequences.py kt-4 unlabelled     # needs the data, for the frames' names

`val` is a few seconds of one drive, and `dev` has frames of that drive and of two others. Images without masks that are
taken from `val` are near the former. Prints the mIoU, mean over seeds, of each arm on the frames of each drive, and
writes the same into the results, as `sequences.md`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from plan import STUDY, Comparison, Study, read_study
from tables import markdown

from segtailor.data import create_dataset
from segtailor.errors import SegtailorError
from segtailor.results.model import ImageCounts, read_comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", metavar="COMPARISON")
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--out", type=Path, help="default: sequences.md in the study's results")
    options = parser.parse_args()
    try:
        study = read_study(options.study)
        text = "\n\n".join(sequences(study, _named(study, name)) for name in options.comparisons)
    except SegtailorError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(text)
    (options.out or study.results / "sequences.md").write_text(text + "\n", encoding="utf-8")


def sequences(study: Study, comparison: Comparison) -> str:
    """Return a table: mIoU of each arm on the frames of each drive, on those of all but ``val``'s, and on all."""
    data = comparison.recipe.data
    drives = _drives(comparison, data.val_split)
    apart = set(drives) - set(_drives(comparison, "val"))
    groups = {f"{drive} ({drives.count(drive)} frames)": {drive} for drive in sorted(set(drives))}
    groups |= {
        f"apart from `val` ({sum(drive in apart for drive in drives)})": apart,
        f"all ({len(drives)})": set(drives),
    }
    rows = [["arm", "seeds", *groups]]
    found = read_comparison(study.results / comparison.name)
    for arm in comparison.arms:
        kept = [outcome.images for outcome in found.finished(arm).values() if outcome.images is not None]
        if kept and any(len(images.hits) != len(drives) for images in kept):
            raise SegtailorError(f"{comparison.name}/{arm}: not as many images as {data.val_split} has, {len(drives)}")
        scores = [
            np.mean([_miou(images, [drive in group for drive in drives]) for images in kept])
            for group in groups.values()
        ]
        rows.append([f"`{arm}`", str(len(kept)), *(f"{100 * score:.2f}" for score in scores)])
    return f"{comparison.name}, scored on `{data.val_split}`:\n\n{markdown(rows)}"


def _named(study: Study, name: str) -> Comparison:
    if name not in study.comparisons:
        raise SegtailorError(f"no comparison '{name}' in {study.path.name}; there are {', '.join(study.comparisons)}")
    return study.comparisons[name]


def _drives(comparison: Comparison, split: str) -> list[str]:
    """Return the drive of each frame, in the order in which a split is scored: the part of its name before _."""
    dataset = create_dataset(comparison.recipe.data, split, training=False)
    return [Path(dataset[index].name).stem.split("_")[0] for index in range(len(dataset))]


def _miou(images: ImageCounts, chosen: list[bool]) -> float:
    hits, unions = images.hits[chosen].sum(axis=0), images.unions[chosen].sum(axis=0)
    return float(np.mean(hits[unions > 0] / unions[unions > 0]))


if __name__ == "__main__":
    main()
