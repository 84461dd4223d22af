"""Distinguishing a picture that was saved again from one that is only similar."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from segtailor.data.check.files import count_bits, find_duplicates, hash_pictures, matches, pictures
from segtailor.data.check.scan import SampleStats, small_picture
from segtailor.data.image_io import read_image

from .street_trees import photo


def examined(split, image: Image.Image, name="x") -> SampleStats:
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return SampleStats(split, f"{split}/{name}", small=small_picture(pixels))


def jpeg(image, quality, scale=1.0):
    content = io.BytesIO()
    size = (round(image.width * scale), round(image.height * scale))
    image.resize(size, Image.Resampling.LANCZOS).save(content, "JPEG", quality=quality)
    return Image.open(content)


CHANGES = {
    "same": lambda image: image,
    "jpeg": lambda image: jpeg(image, 30),
    "half": lambda image: jpeg(image, 80, 0.5),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_pictures_saved_again_are_the_same(change):
    train = [examined("train", Image.fromarray(photo(seed, (96, 128))), f"{seed}") for seed in range(30)]
    val = [examined("val", change(Image.fromarray(photo(seed, (96, 128)))), f"{seed}") for seed in (3, 500, 7)]
    found = matches(pictures(val), pictures(train))
    assert [(match.path, match.other, match.same) for match in found] == [
        ("val/3", "train/3", True),
        ("val/7", "train/7", True),
    ]


def test_plain_pictures_and_pictures_of_one_split_do_not_count():
    plain = Image.new("RGB", (40, 30), (90, 90, 90))
    splits = {split: [examined(split, plain)] * 2 for split in ("train", "val")}
    assert find_duplicates(splits, "train") == []
    twice = [examined("train", Image.fromarray(photo(1)))] * 2
    assert find_duplicates({"train": twice, "val": [examined("val", Image.fromarray(photo(2)))]}, "train") == []
    assert find_duplicates({"train": [], "val": twice}, "train") == []


def test_pale_pictures_need_to_be_closer():
    """Fog: two photos that differ little, because there is little in them."""
    pale = [
        Image.blend(Image.new("RGB", (128, 96), (128,) * 3), Image.fromarray(photo(seed, (96, 128))), 0.06)
        for seed in (1, 1)
    ]
    other = ImageEnhance.Brightness(pale[1]).enhance(1.01)
    same = matches(pictures([examined("val", pale[1])]), pictures([examined("train", pale[0])]))
    assert same[0].same
    near = matches(pictures([examined("val", other)]), pictures([examined("train", pale[0])]))
    assert not any(match.same for match in near)


def test_hashes_are_63_bits_that_few_changes_flip():
    small = np.stack([examined("x", Image.fromarray(photo(seed))).small for seed in range(20)])
    hashes = hash_pictures(small)
    assert hashes.dtype == np.uint64
    assert hashes.max() < 2**63
    assert count_bits(np.array([0, 1, 255, 2**63 - 1], np.uint64)).tolist() == [0, 1, 8, 63]
    other = hash_pictures(np.clip(small.astype(int) + 3, 0, 255).astype(np.uint8))
    assert count_bits(hashes ^ other).max() <= 2
    assert count_bits(hashes[:1] ^ hashes[1:]).min() > 8
    assert hash_pictures(np.zeros((0, 32, 32), np.uint8)).shape == (0,)


def camvid() -> Path:
    return Path(os.environ.get("SEGTAILOR_CAMVID") or "data/camvid")


@pytest.mark.skipif(not (camvid() / "val").is_dir(), reason=f"no CamVid in {camvid()}")
def test_neighboring_frames_of_a_drive_are_not_the_same():
    """CamVid's validation frames are one drive: every second of them, against those between."""
    frames = [
        SampleStats("val", path.name, small=small_picture(read_image(path)))
        for path in sorted((camvid() / "val").iterdir())
    ]
    (finding,) = find_duplicates({"train": frames[::2], "val": frames[1::2]}, "train")
    assert (finding.kind, finding.severity) == ("nearly-the-same-across-splits", "warning")
    again = Image.open(camvid() / "val" / frames[0].image)
    content = {"train": frames[::2], "val": [examined("val", jpeg(again, 10)), examined("val", jpeg(again, 75, 0.5))]}
    (finding,) = find_duplicates(content, "train")
    assert (finding.kind, len(finding.locations)) == ("duplicate-across-splits", 2)
