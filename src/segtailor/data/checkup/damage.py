"""Files that are missing, cannot be decoded, or do not fit together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from segtailor.data import pairing as left
from segtailor.data.checkup.examine import COLORED, Examined
from segtailor.data.checkup.finding import Finding, Place, Severity, count
from segtailor.data.checkup.scan import Opened
from segtailor.data.image_io import IMAGE_SUFFIXES, SIDEWAYS
from segtailor.data.paired import FileDataset
from segtailor.files import Size

# What is wrong with files that were left out: kind, severity, words for one and several, what to do.
UNPAIRED: dict[str, tuple[str, Severity, str, str, str]] = {
    left.NO_MASK: (
        "image-without-mask",
        "error",
        "image without a mask",
        "images without a mask",
        "add the masks, or move these images to a folder for data.unlabelled",
    ),
    left.NO_IMAGE: (
        "mask-without-image",
        "error",
        "mask without an image",
        "masks without an image",
        "add the images, or remove these masks",
    ),
    left.TWICE: (
        "several-files-of-one-name",
        "error",
        "file that shares its name with another",
        "files that share their name with another",
        "keep one of each",
    ),
    left.NO_CLASS: (
        "mask-of-no-class",
        "error",
        "mask whose name holds no class",
        "masks whose names hold no class",
        "rename them, or name the class in classes.yaml",
    ),
    left.MISSING_IMAGE: (
        "missing-image",
        "error",
        "image that is listed but not there",
        "images that are listed but not there",
        "add them, or take them out of the list",
    ),
    left.MISSING_MASK: (
        "missing-mask",
        "error",
        "mask that is listed but not there",
        "masks that are listed but not there",
        "add them, or take them out of the list",
    ),
    left.NOT_AN_IMAGE: (
        "not-an-image",
        "warning",
        "file among the images that is not read",
        "files among the images that are not read",
        f"images end in {', '.join(sorted(IMAGE_SUFFIXES))}: convert or remove these",
    ),
}
# Reasons that several files share: the rest are told file by file.
REASONS = {
    "the file is empty": ("empty", "empty"),
    "truncated": ("truncated", "truncated"),
    "not a readable image": ("undecodable", "no readable picture"),
}


def find_missing(opened: Opened) -> list[Finding]:
    """Return what could not be opened or paired, and splits of another size than is published."""
    findings = [
        Finding("split-not-opened", "error", f"the split {split} cannot be checked: {problem}", [Place(split)])
        for split, problem in opened.failed.items()
    ]
    places: defaultdict[str, list[Place]] = defaultdict(list)
    for split in opened.splits.values():
        for problem, files in split.unpaired.items():
            places[problem] += [Place(file) for file in files]
    for problem, found in places.items():
        kind, severity, one, many, advice = UNPAIRED[problem]
        findings.append(Finding(kind, severity, count(len(found), one, many), found, {}, advice))
    for name, split in opened.splits.items():
        dataset = split.dataset
        if isinstance(dataset, FileDataset) and dataset.expected not in (None, len(dataset)):
            text = f"the split {name} has {len(dataset)} images, {dataset.expected} are published"
            findings.append(Finding("other-count", "note", text, [Place(name)]))
    return findings


def find_unreadable(samples: Iterable[Examined]) -> list[Finding]:
    """Return the images and masks that cannot be decoded, by reason; masks of colours are told elsewhere."""
    places: defaultdict[tuple[str, str], list[Place]] = defaultdict(list)
    for sample in samples:
        for role, path, problem in (
            ("image", sample.image, sample.image_problem),
            ("mask", sample.mask, sample.mask_problem),
        ):
            if not problem or (role == "mask" and is_colored(sample)):
                continue
            known = problem in REASONS
            places[role, problem if known else ""].append(Place(path, "" if known else problem))
    findings = []
    for (role, problem), found in sorted(places.items()):
        kind, words = REASONS.get(problem, ("unreadable", "unreadable"))
        are = "is" if len(found) == 1 else "are"
        text = f"{count(len(found), role)} that {are} {words}"
        advice = "copy or export them anew, or remove them with their partners"
        findings.append(Finding(f"{kind}-{role}", "error", text, found, {}, advice))
    return findings


def is_colored(sample: Examined) -> bool:
    """Return whether the mask cannot be read because it stores colours."""
    return bool(sample.stored_colors) or COLORED in sample.mask_problem


def find_sizes(samples: Iterable[Examined]) -> list[Finding]:
    """Return the masks that are not of their image's size."""
    places = []
    for sample in samples:
        image, mask = sample.image_size, sample.mask_size
        if image is None or mask is None or image == mask or sample.turned:
            continue
        detail = f"{mask[0]} x {mask[1]}, image {image[0]} x {image[1]}{_relation(image, mask)}"
        places.append(Place(sample.mask, detail))
    if not places:
        return []
    text = f"{count(len(places), 'mask')} not of the image's size"
    advice = "export them at the images' size, or check that they belong to these images"
    return [Finding("size-mismatch", "error", text, places, {}, advice)]


def _relation(image: Size, mask: Size) -> str:
    if image == mask[::-1]:
        return ": height and width exchanged"
    for large, small, text in ((image, mask, "1/{} of it"), (mask, image, "{} times it")):
        factor = large[0] // small[0]
        if factor > 1 and large == (small[0] * factor, small[1] * factor):
            return ": " + text.format(factor)
    return ""


def find_rotated(samples: Iterable[Examined]) -> list[Finding]:
    """Return the photos with a note that they were held otherwise: turned to fit their masks, or read as stored."""
    turned, stored = [], []
    for sample in samples:
        if sample.turned:
            turned.append(Place(sample.image, f"orientation {sample.orientation}"))
        elif sample.orientation in range(2, 9):
            fits = sample.orientation in SIDEWAYS and sample.mask_size and sample.image_size == sample.mask_size
            drawn = ", the mask fits the stored pixels" if fits else ""
            stored.append(Place(sample.image, f"orientation {sample.orientation}{drawn}"))
    findings = []
    if turned:
        text = f"{count(len(turned), 'EXIF-rotated image')}, turned upright on reading, as the masks are upright"
        findings.append(Finding("exif-turned", "note", text, turned))
    if stored:
        text = f"{count(len(stored), 'EXIF-rotated image')}, read as stored, which is not how a viewer shows them"
        advice = "look whether the masks were drawn on the turned view; save such photos upright, without the note"
        findings.append(Finding("exif-rotated", "warning", text, stored, {}, advice))
    return findings


def find_limits(opened: Opened, train_split: str, limits: dict[str, Any]) -> list[Finding]:
    """Return the limits of the recipe that ask for more images than there are."""
    sizes: dict[str, int | None] = {
        "data.limit": len(opened.splits[train_split].dataset) if train_split in opened.splits else None,
        "data.unlabelled.limit": len(opened.unlabelled) if opened.unlabelled is not None else None,
    }
    findings = []
    for field, asked in limits.items():
        size = sizes[field]
        if asked is not None and size is not None and asked > size:
            text = f"{field} asks for {asked} images, but there are {size}"
            findings.append(Finding("limit", "error", text, [Place(field)], {field: size}))
    return findings


def unreadable_files(samples: Sequence[Examined]) -> list[Place]:
    """Return every file that cannot be read, with the reason."""
    found = [Place(sample.image, sample.image_problem) for sample in samples if sample.image_problem]
    return found + [Place(sample.mask, sample.mask_problem) for sample in samples if sample.mask_problem]
