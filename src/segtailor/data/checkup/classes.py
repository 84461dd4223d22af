"""How often each class occurs in each split, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segtailor.data.base import SegmentationDataset, some
from segtailor.data.checkup.examine import Examined
from segtailor.data.checkup.finding import Finding, Place, count
from segtailor.data.paired import MaskDataset
from segtailor.files import VOID

MOSTLY_VOID = 0.5


@dataclass
class Tally:
    """Counts of one split: ``pixels`` and ``masks`` (K) of each class, pixels of void and of values without a meaning.

    ``empty`` are the masks that are void throughout, ``first`` a mask of each class that occurs.
    """

    split: str
    samples: int
    pixels: NDArray[np.int64]
    masks: NDArray[np.int64]
    void: int
    unknown: int
    empty: list[str]
    first: dict[int, list[str]]

    @property
    def labelled(self) -> int:
        """The number of pixels that have a class."""
        return int(self.pixels.sum())


def tally(dataset: SegmentationDataset, split: str, samples: Iterable[Examined]) -> Tally:
    """Count the classes in ``samples`` of ``dataset``, which is called ``split``."""
    number = dataset.num_classes
    found = Tally(split, len(dataset), np.zeros(number, np.int64), np.zeros(number, np.int64), 0, 0, [], {})
    if isinstance(dataset, MaskDataset):
        target, known = dataset.values.target, dataset.values.known
    else:
        target, known = np.arange(256, dtype=np.uint8), np.arange(256) < number
        known[VOID] = True
    for sample in samples:
        labels = 0
        seen = set()
        for value, pixels in sample.values.items():
            if not (0 <= value <= VOID and known[value]):
                found.unknown += pixels
                labels += pixels
            elif target[value] == VOID:
                found.void += pixels
            else:
                index = int(target[value])
                found.pixels[index] += pixels
                seen.add(index)
                labels += pixels
        for index in seen:
            found.masks[index] += 1
            if len(places := found.first.setdefault(index, [])) < 3:
                places.append(sample.mask)
        if sample.values and not labels:
            found.empty.append(sample.mask)
    return found


def find_classes(tallies: Sequence[Tally], classes: Sequence[str], train_split: str) -> list[Finding]:
    """Return the masks without any label, and the classes that are absent from a split."""
    findings = []
    void = [(found, mask) for found in tallies if found.labelled or found.unknown for mask in found.empty]
    if void:
        text = f"{count(len(void), 'mask')} void throughout: nothing there is learnt or scored"
        places = [Place(mask) for _, mask in void]
        findings.append(Finding("all-void", "warning", text, places, {}, "label them, or remove them"))
    for found in tallies:
        if found.empty and not (found.labelled or found.unknown):
            text = (
                f"the split {found.split} has no labels: all its {count(len(found.empty), 'mask')} are void throughout"
            )
            findings.append(Finding("split-without-labels", "warning", text, [Place(path) for path in found.empty]))
        elif found.labelled and found.void > MOSTLY_VOID * (found.void + found.labelled):
            share = found.void / (found.void + found.labelled)
            text = f"{100 * share:.0f} % of the pixels of {found.split} are void"
            findings.append(Finding("mostly-void", "warning", text, [Place(found.split)]))
    return findings + _absent([found for found in tallies if found.labelled], classes, train_split)


def _absent(tallies: Sequence[Tally], classes: Sequence[str], train_split: str) -> list[Finding]:
    train = next((found for found in tallies if found.split == train_split), None)
    others = [found for found in tallies if found is not train]
    findings = []
    nowhere = [index for index in range(len(classes)) if not any(found.pixels[index] for found in tallies)]
    if nowhere and tallies:
        names = " and ".join(found.split for found in tallies)
        text = f"{_names(nowhere, classes)} in no mask of {names}"
        advice = "nothing can be learnt of them; look whether the class file fits the masks"
        findings.append(Finding("class-in-no-split", "warning", text, _class_places(nowhere, classes), {}, advice))
    for other in others:
        if train is None:
            break
        only = np.flatnonzero((other.pixels > 0) & (train.pixels == 0)).tolist()
        if only:
            text = f"{_names(only, classes)} in {other.split}, but never in {train.split}"
            places = [
                Place(path, f"{classes[index]}, in {count(int(other.masks[index]), 'mask')}")
                for index in only
                for path in other.first[index]
            ]
            advice = f"the student cannot learn them: move some of these images to {train.split}"
            findings.append(Finding("class-not-in-train", "warning", text, places, {}, advice))
        missing = np.flatnonzero((train.pixels > 0) & (other.pixels == 0)).tolist()
        if missing:
            text = f"{_names(missing, classes)} in {train.split}, but never in {other.split}: not scored there"
            findings.append(Finding("class-not-scored", "note", text, _class_places(missing, classes)))
    return findings


def _names(indices: Sequence[int], classes: Sequence[str]) -> str:
    return f"{count(len(indices), 'class', 'classes')} ({some([classes[index] for index in indices], 8)})"


def _class_places(indices: Sequence[int], classes: Sequence[str]) -> list[Place]:
    return [Place(f"class {index}", classes[index]) for index in indices]
