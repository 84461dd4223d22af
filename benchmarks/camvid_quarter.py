"""CamVid with masks for every fourth training frame only; the other frames are in ``unlabelled/``.

    python benchmarks/camvid_quarter.py [--every 4] [--out data/camvid-quarter]

Reads ``$SEGTAILOR_CAMVID`` (else ``data/camvid``) and writes links to its files, nothing else: ``train`` and
``trainannot`` (92 of 367 frames), ``unlabelled`` (the 275 others, without masks), ``val`` and ``valannot`` (all).
Running it again changes nothing. Neighbouring frames of CamVid are a second apart, so the unlabelled ones show the
streets of the labelled ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from segtailor.config import DataConfig
from segtailor.data.camvid import create_camvid
from segtailor.errors import SegtailorError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=4, help="keep the mask of every Nth training frame")
    parser.add_argument(
        "--out", type=Path, default=Path("data/camvid-quarter"), help="a new folder, or one of an earlier run"
    )
    options = parser.parse_args()
    try:
        train, val = (
            create_camvid(DataConfig(name="camvid"), split, training=True).pairs for split in ("train", "val")
        )
    except SegtailorError as error:
        raise SystemExit(f"error: {error}") from None
    links: dict[Path, Path] = {}
    for index, pair in enumerate(train):
        if index % options.every:
            links[options.out / "unlabelled" / pair.image.name] = pair.image
        else:
            links[options.out / "train" / pair.image.name] = pair.image
            links[options.out / "trainannot" / pair.mask.name] = pair.mask
    for pair in val:
        links[options.out / "val" / pair.image.name] = pair.image
        links[options.out / "valannot" / pair.mask.name] = pair.mask
    strange = [path for path in options.out.rglob("*") if not path.is_dir() and path not in links]
    if strange:
        raise SystemExit(
            f"error: {options.out} holds {len(strange)} files of another kind, first {strange[0]}; remove it"
        )
    for link, file in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
    counts = {name: sum(path.parent.name == name for path in links) for name in ("train", "unlabelled", "val")}
    print(f"{options.out}: " + ", ".join(f"{count} frames in {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
