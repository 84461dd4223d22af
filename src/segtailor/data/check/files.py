"""Files that are missing, cannot be decoded, do not fit together, or show one picture in two splits.

Duplicates are also found when a picture was saved again in another format, quality or size. Candidates have nearly the
same perceptual hash; small grey copies then distinguish the same picture from a neighboring frame of a film. The
thresholds are set on CamVid: saved again as JPEG of quality 10 or at half size, its frames differ by 1.6 of 255 at
most, and neighboring frames of one drive by 1.8 at least.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segtailor.config import DataConfig
from segtailor.data.check.report import Finding, Location, found
from segtailor.data.check.scan import SMALL, UNLABELLED, Opened, SampleStats
from segtailor.data.image_io import IMAGE_SUFFIXES, SIDEWAYS
from segtailor.data.paired import FileDataset, shape
from segtailor.files import Size

# Kinds of unreadable files by reason; other reasons are given file by file.
REASONS = {"the file is empty": "empty", "truncated": "truncated", "not a readable image": "undecodable"}
# Images without a brighter spot are nearly black: 12 bits in 16 end here.
DARK = 16
# How many of the 63 bits of a hash may differ.
HASH_DISTANCE = 8
# Mean absolute difference of the small copies, in 255ths, for pictures with the contrast of photos.
SAME, NEAR = 1.65, 4.0
CONTRAST = 50.0
# Pictures of less contrast than this are not compared: they are plain.
LEAST_CONTRAST = 2.0
LOW = 8
# Pictures hashed at once.
BLOCK = 4096


def find_missing(opened: Opened, config: DataConfig) -> list[Finding]:
    """Return splits that could not be opened or have another size than published, files left out, and high limits."""
    findings = []
    for name, problem in opened.failed.items():
        findings += found("split-not-opened", [Location(name)], split=name, problem=problem)
    for kind, paths in opened.missing.items():
        findings += found(kind, map(Location, paths), suffixes=", ".join(sorted(IMAGE_SUFFIXES)))
    limits = []
    for name, dataset in opened.splits.items():
        if isinstance(dataset, FileDataset) and dataset.expected not in (None, len(dataset)):
            words: dict[str, Any] = {"split": name, "found": len(dataset), "published": dataset.expected}
            findings += found("other-count", [Location(name)], **words)
        if name == config.train_split:
            limits.append(("data.limit", config.limit, len(dataset)))
    if config.unlabelled is not None and opened.unlabelled is not None:
        limits.append(("data.unlabelled.limit", config.unlabelled.limit, len(opened.unlabelled)))
    for field, asked, size in limits:
        if (asked or 0) > size:
            findings += found("limit", [Location(field)], {field: size}, field=field, asked=asked, size=size)
    return findings


def unreadable_files(samples: Sequence[SampleStats]) -> list[Location]:
    """Return every file that cannot be read, with the reason."""
    images = [Location(sample.image, sample.image_problem) for sample in samples if sample.image_problem]
    return images + [Location(sample.mask, sample.mask_problem) for sample in samples if sample.mask_problem]


def find_damaged(samples: Sequence[SampleStats]) -> list[Finding]:
    """Return files that cannot be decoded, masks that do not fit, rotated photos and nearly black images.

    Masks that cannot be read because they store colors are another finding.
    """
    locations: defaultdict[str, list[Location]] = defaultdict(list)
    for sample in samples:
        mask_problem = "" if sample.is_colored else sample.mask_problem
        for role, path, problem in ("image", sample.image, sample.image_problem), ("mask", sample.mask, mask_problem):
            if problem:
                kind = f"{REASONS.get(problem, 'unreadable')}-{role}"
                locations[kind].append(Location(path, "" if problem in REASONS else problem))
        image, mask = sample.image_size, sample.mask_size
        if image and mask and image != mask and not sample.turned:
            detail = f"{shape(mask)}, image {shape(image)}{_relation(image, mask)}"
            locations["size-mismatch"].append(Location(sample.mask, detail))
        detail = f"orientation {sample.orientation}"
        if sample.turned:
            locations["exif-turned"].append(Location(sample.image, detail))
        elif sample.orientation in range(2, 9):
            fits = ", the mask fits the stored pixels" if sample.orientation in SIDEWAYS and image == mask else ""
            locations["exif-rotated"].append(Location(sample.image, detail + fits))
        if sample.small is not None and sample.small.max() < DARK:
            locations["nearly-black-image"].append(Location(sample.image))
    return [finding for kind, at in sorted(locations.items()) for finding in found(kind, at)]


def _relation(image: Size, mask: Size) -> str:
    if image == mask[::-1]:
        return ": height and width exchanged"
    for large, small, text in ((image, mask, "1/{} of it"), (mask, image, "{} times it")):
        factor = large[0] // small[0]
        if factor > 1 and large == (small[0] * factor, small[1] * factor):
            return ": " + text.format(factor)
    return ""


class Pictures(NamedTuple):
    """Names (n), hashes (n) of 63 bits, and small copies (n, 32 * 32), bytes, of the pictures of a split."""

    paths: list[str]
    hashes: NDArray[np.uint64]
    small: NDArray[np.uint8]


class Match(NamedTuple):
    """A picture, and the one of another split that it resembles most; ``same`` when it is that picture."""

    path: str
    other: str
    same: bool


def find_duplicates(splits: dict[str, Sequence[SampleStats]], train_split: str) -> list[Finding]:
    """Return the pictures in two of ``splits``; unlabelled images may be training images, too."""
    prepared = {name: pictures(samples) for name, samples in splits.items()}
    locations: dict[bool, list[Location]] = {True: [], False: []}
    for first, second in combinations(prepared, 2):
        if {first, second} == {train_split, UNLABELLED}:
            continue
        for match in matches(prepared[second], prepared[first]):
            locations[match.same].append(Location(match.path, f"{second}; {first} has {match.other}"))
    return [
        *found("duplicate-across-splits", locations[True], train=train_split),
        *found("nearly-the-same-across-splits", locations[False]),
    ]


def pictures(samples: Sequence[SampleStats]) -> Pictures:
    """Return the pictures of ``samples`` that were read and are not plain."""
    chosen = [(sample.image, sample.small) for sample in samples if sample.small is not None]
    chosen = [(path, small) for path, small in chosen if small.std() >= LEAST_CONTRAST]
    stacked = [small for _, small in chosen]
    small = np.stack(stacked) if stacked else np.zeros((0, *SMALL), np.uint8)
    return Pictures([path for path, _ in chosen], hash_pictures(small), small.reshape(len(small), SMALL[0] * SMALL[1]))


def hash_pictures(small: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the perceptual hashes (n) of ``small`` (n, 32, 32): which low frequencies are above their median."""
    from scipy.fft import dctn

    weights = np.uint64(1) << np.arange(LOW * LOW - 1, dtype=np.uint64)
    numbers = np.zeros(len(small), np.uint64)
    for first in range(0, len(small), BLOCK):
        waves = dctn(small[first : first + BLOCK].astype(np.float64), axes=(1, 2))[:, :LOW, :LOW]
        waves = waves.reshape(len(waves), LOW * LOW)[:, 1:]  # without the mean
        bits = waves > np.median(waves, axis=1, keepdims=True)
        numbers[first : first + BLOCK] = (bits * weights).sum(axis=1, dtype=np.uint64)
    return numbers


def matches(some: Pictures, others: Pictures) -> list[Match]:
    """Return for each of ``some`` that has one the picture of ``others`` that is the same or nearly so."""
    matched: list[Match] = []
    if not others.paths:
        return matched
    for path, number, small in zip(some.paths, some.hashes, some.small, strict=True):
        near = np.flatnonzero(count_bits(others.hashes ^ number) <= HASH_DISTANCE)
        if not len(near):
            continue
        differences = np.abs(others.small[near].astype(np.int16) - small.astype(np.int16)).mean(axis=1)
        best = int(differences.argmin())
        difference = differences[best] / min(1.0, float(small.std()) / CONTRAST)
        if difference <= NEAR:
            matched.append(Match(path, others.paths[int(near[best])], bool(difference <= SAME)))
    return matched


def count_bits(numbers: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return how many bits of each of ``numbers`` (n) are set."""
    counts: NDArray[np.uint8]
    if hasattr(np, "bitwise_count"):  # NumPy 2
        counts = np.bitwise_count(numbers)
    else:
        counts = np.unpackbits(numbers.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1, dtype=np.uint8)
    return counts
