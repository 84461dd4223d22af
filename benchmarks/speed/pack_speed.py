"""How fast packed data are read against unpacked files: CamVid, and 10,000 drawn frames of 96 x 128, in one run.

    SEGTAILOR_CAMVID=... python benchmarks/speed/pack_speed.py
    python benchmarks/speed/pack_speed.py --frames 500 --repeats 3 --out /dev/null

Every repeat reads all samples of each form once, in the same random order, one form after the other, in one process
with one thread; a form's speed-up is the median over repeats of the ratio to the unpacked files within a repeat. `cold`
is the same with the files dropped from the page cache before each pass, so that they come from the disk. CamVid's
frames are read as PNG, as they were published, and as the JPEG files that lie in SEGTAILOR_CAMVID.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.data.base import SegmentationDataset
from segtailor.data.pack import pack
from segtailor.data.toy import CLASSES, draw_scene

SIZE = (96, 128)
RESULT = Path(__file__).parent / "results" / "pack-speed.json"


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        camvid = write_camvid(folder / "camvid", Path(arguments.camvid))
        drawn = write_drawn(folder / "drawn", arguments.frames)
        png, jpeg = ("raw", "png", "jpeg"), ("raw", "keep", "jpeg")
        both, one = ["train", "val"], ["train"]
        sets: dict[str, tuple[DataConfig, list[str], tuple[str, ...]]] = {
            "camvid-png": (DataConfig(name="camvid", root=camvid, workers=2), both, png),
            "drawn-png": (DataConfig(name="folder", root=drawn, workers=2), one, png),
            "camvid-jpeg": (DataConfig(name="camvid", root=Path(arguments.camvid), workers=2), both, jpeg),
        }
        rows = {name: measure(name, *given, folder, arguments.repeats) for name, given in sets.items()}
    result = {
        "setting": {
            "repeats": arguments.repeats, "processes": 1, "threads": 1, "cores": os.cpu_count(),
            "machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__,
        },
        "sets": rows,
    }  # fmt: skip
    print(table(rows))
    if str(arguments.out) != "/dev/null":
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--camvid", default=os.environ.get("SEGTAILOR_CAMVID", "data/camvid"))
    parser.add_argument("--frames", type=int, default=10_000, help="drawn frames")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary files go")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args()


def write_camvid(folder: Path, source: Path) -> Path:
    """Copy CamVid with its frames as PNG; returns ``folder``."""
    for split in ("train", "val"):
        for kind in (split, f"{split}annot"):
            (folder / kind).mkdir(parents=True)
            for path in (source / kind).iterdir():
                Image.open(path).save(folder / kind / f"{path.stem}.png")
    return folder


def write_drawn(folder: Path, frames: int) -> Path:
    """Write ``frames`` street scenes and their masks as PNG; returns ``folder``."""
    for kind in ("images", "masks"):
        (folder / "train" / kind).mkdir(parents=True)
    (folder / "classes.yaml").write_text(json.dumps({"classes": [name for name, _ in CLASSES]}), encoding="utf-8")
    for number in range(frames):
        image, target = draw_scene((7, number), SIZE)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"train/images/{number:05d}.png")
        Image.fromarray(target).save(folder / f"train/masks/{number:05d}.png")
    return folder


def measure(
    name: str, config: DataConfig, splits: list[str], encodings: Iterable[str], folder: Path, repeats: int
) -> dict[str, Any]:
    """Pack the data in every encoding, compare pixels, and time all forms."""
    forms = {"files": open_all(config, splits)}
    assert config.root is not None
    roots = {"files": config.root}
    facts: dict[str, dict[str, Any]] = {"files": {}}
    for encoding in encodings:
        out = folder / f"{name}-{encoding}"
        began = time.perf_counter()
        manifest = pack(config, out, splits=splits, encoding=encoding)
        seconds = time.perf_counter() - began
        form = f"packed {encoding}"
        forms[form], roots[form] = open_all(DataConfig(name="packed", root=out), splits), out
        losses = {split: packed.loss for split, packed in manifest.splits.items()}
        facts[form] = {
            "seconds_to_pack": seconds,
            "identical_pixels": same_pixels(forms["files"], forms[form]),
            "stated_loss": {split: loss.model_dump() for split, loss in losses.items() if loss},
        }
    for form, root in roots.items():
        facts[form]["bytes"] = sum(path.stat().st_size for path in files(root))
    warm = {form: [] for form in forms}  # type: dict[str, list[float]]
    cold = {form: [] for form in forms}  # type: dict[str, list[float]]
    for repeat in range(repeats):
        for times, dropped in ((warm, False), (cold, True)):
            for form, data in forms.items():
                if dropped:
                    drop(files(roots[form]))
                times[form].append(read(data, repeat))
    count = sum(map(len, forms["files"]))
    return {
        form: {
            **facts[form],
            "milliseconds": 1000 * statistics.median(warm[form]) / count,
            "speedup": ratio(warm, form),
            "cold_milliseconds": 1000 * statistics.median(cold[form]) / count,
            "cold_speedup": ratio(cold, form),
            "seconds": warm[form],
            "cold_seconds": cold[form],
        }
        for form in forms
    }


def open_all(config: DataConfig, splits: Iterable[str]) -> list[SegmentationDataset]:
    return [create_dataset(config, split, training=True) for split in splits]


def same_pixels(one: list[SegmentationDataset], other: list[SegmentationDataset]) -> bool:
    """Whether every image is the same; targets and names must be."""
    same = True
    for ours, theirs in zip(one, other, strict=True):
        for mine, its in zip(ours, theirs, strict=True):  # type: ignore[call-overload]
            assert mine.name == its.name
            assert torch.equal(mine.target, its.target)
            same = same and torch.equal(mine.image, its.image)
    return same


def read(data: list[SegmentationDataset], seed: int) -> float:
    """Return the seconds that reading every sample once takes, in a random order."""
    places = [(split, index) for split, samples in enumerate(data) for index in range(len(samples))]
    order = np.random.default_rng(seed).permutation(len(places))
    began = time.perf_counter()
    for place in order:
        split, index = places[place]
        data[split][index]
    return time.perf_counter() - began


def ratio(times: dict[str, list[float]], form: str) -> float:
    return statistics.median(unpacked / mine for unpacked, mine in zip(times["files"], times[form], strict=True))


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def drop(paths: Iterable[Path]) -> None:
    """Drop the files from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'set':<11} {'form':<12} {'MB':>7} {'ms':>7} {'speed-up':>9} {'cold':>6}  pixels"]
    for name, forms in rows.items():
        for form, row in forms.items():
            loss = row.get("stated_loss") or {}
            psnr = ", ".join(f"{split} PSNR {value['psnr']:.1f} dB" for split, value in loss.items())
            pixels = psnr or ("identical" if row.get("identical_pixels", True) else "DIFFERENT")
            lines.append(
                f"{name:<11} {form:<12} {row['bytes'] / 1e6:7.1f} {row['milliseconds']:7.3f} {row['speedup']:9.2f} "
                f"{row['cold_speedup']:6.2f}  {pixels}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
