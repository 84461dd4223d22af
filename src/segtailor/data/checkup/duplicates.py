"""The same picture in two splits, also when it was saved anew in another format, quality or size.

Candidates have nearly the same perceptual hash; small grey copies then tell the same picture from a neighbouring frame
of a film. The thresholds are set on CamVid: saved anew as JPEG of quality 10 or at half size, its frames differ by 1.6
of 255 at most, and neighbouring frames of one drive by 1.8 at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segtailor.data.checkup.examine import SMALL, Examined
from segtailor.data.checkup.finding import Finding, Place, count
from segtailor.data.checkup.scan import UNLABELLED

# Of the 63 bits of a hash so many may differ.
HASH_DISTANCE = 8
# Mean absolute difference of the small copies, in 255ths, for pictures with the contrast of photos.
SAME, NEAR = 1.65, 4.0
CONTRAST = 50.0
# With less contrast than this one plain picture is as another.
LEAST_CONTRAST = 2.0
LOW = 8
# Pictures hashed at once.
BLOCK = 4096


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


def pictures(samples: Sequence[Examined]) -> Pictures:
    """Return the pictures of ``samples`` that were read and are not plain."""
    chosen = [(sample.image, sample.small) for sample in samples if sample.small is not None]
    chosen = [(path, small) for path, small in chosen if small.std() >= LEAST_CONTRAST]
    stacked = [small for _, small in chosen]
    small = np.stack(stacked) if stacked else np.zeros((0, *SMALL), np.uint8)
    return Pictures([path for path, _ in chosen], hash_pictures(small), small.reshape(len(small), SMALL[0] * SMALL[1]))


def hash_pictures(small: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the perceptual hashes (n) of ``small`` (n, 32, 32): which low frequencies lie above their median."""
    size = SMALL[0]
    frequencies, places = np.arange(LOW)[:, None], np.arange(size)[None]
    cosines = np.cos(np.pi * frequencies * (2 * places + 1) / (2 * size))
    weights = np.uint64(1) << np.arange(LOW * LOW - 1, dtype=np.uint64)
    numbers = np.zeros(len(small), np.uint64)
    for first in range(0, len(small), BLOCK):
        block = small[first : first + BLOCK].astype(np.float64)
        waves = np.einsum("ui,nij,vj->nuv", cosines, block, cosines, optimize=True)
        waves = waves.reshape(len(block), LOW * LOW)[:, 1:]  # without the mean
        bits = waves > np.median(waves, axis=1, keepdims=True)
        numbers[first : first + BLOCK] = (bits * weights).sum(axis=1, dtype=np.uint64)
    return numbers


def matches(some: Pictures, others: Pictures) -> list[Match]:
    """Return for each of ``some`` that has one the picture of ``others`` that is the same or nearly so."""
    found: list[Match] = []
    if not others.paths:
        return found
    for path, number, small in zip(some.paths, some.hashes, some.small, strict=True):
        near = np.flatnonzero(count_bits(others.hashes ^ number) <= HASH_DISTANCE)
        if not len(near):
            continue
        differences = np.abs(others.small[near].astype(np.int16) - small.astype(np.int16)).mean(axis=1)
        best = int(differences.argmin())
        difference = differences[best] / min(1.0, float(small.std()) / CONTRAST)
        if difference <= NEAR:
            found.append(Match(path, others.paths[int(near[best])], bool(difference <= SAME)))
    return found


def count_bits(numbers: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return how many bits of each of ``numbers`` (n) are set."""
    counts: NDArray[np.uint8]
    if hasattr(np, "bitwise_count"):  # NumPy 2
        counts = np.bitwise_count(numbers)
    else:
        counts = np.unpackbits(numbers.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1, dtype=np.uint8)
    return counts


def find_duplicates(splits: dict[str, Sequence[Examined]], train_split: str) -> list[Finding]:
    """Return the pictures that are in two of ``splits``; those of training without labels may be in training, too."""
    prepared = {name: pictures(samples) for name, samples in splits.items()}
    same: list[Place] = []
    near: list[Place] = []
    for first, second in combinations(prepared, 2):
        if {first, second} == {train_split, UNLABELLED}:
            continue
        for match in matches(prepared[second], prepared[first]):
            (same if match.same else near).append(Place(match.path, f"{second}; {first} has {match.other}"))
    findings = []
    if same:
        text = f"{count(len(same), 'image')} in two splits, also where saved anew in another format, quality or size"
        advice = f"remove them from one split: the score is of images that the student learnt from ({train_split})"
        findings.append(Finding("duplicate-across-splits", "error", text, same, {}, advice))
    if near:
        text = f"{count(len(near), 'image')} nearly the same as one of another split: neighbouring frames of a film?"
        advice = "split films by recording, not frame by frame, or the score says little of new places"
        findings.append(Finding("nearly-the-same-across-splits", "warning", text, near, {}, advice))
    return findings
