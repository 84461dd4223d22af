"""Pascal VOC 2012, 21 classes (Everingham et al., IJCV 2010), with the masks of SBD (Hariharan et al., ICCV 2011)."""

from __future__ import annotations

from pathlib import Path

from segtailor.config import DataConfig
from segtailor.data.benchmark import BenchmarkDataset, Variant, first_folder
from segtailor.data.paired import FileDataset
from segtailor.data.pairing import files_by_stem, pair_ids, read_ids
from segtailor.errors import SegtailorError

VOC = BenchmarkDataset(
    name="voc",
    title="Pascal VOC 2012: objects in photos, 20 classes and background; train_aug adds the masks of SBD",
    license="Pascal VOC 2012 (Everingham et al., 2010), SBD (Hariharan et al., 2011): research use; photos of Flickr",
    root=Path("data/voc"),
    variants=(Variant("default", "voc", {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582}),),
)
INNER = ("VOCdevkit/VOC2012", "VOC2012")
LISTS = "ImageSets/Segmentation"
# Names under which lists of the 10,582 images go about.
AUG_LISTS = ("trainaug.txt", "train_aug.txt")
MASKS, AUG_MASKS = "SegmentationClass", "SegmentationClassAug"
HINT = "data.root must hold VOC2012's JPEGImages, SegmentationClass and ImageSets folders"
AUG_HINT = f"train_aug needs {AUG_MASKS}: the masks of SBD as PNGs of class indices (`segtailor data get voc`)"


def create_voc(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of VOC 2012: ``JPEGImages/ID.jpg`` and ``SegmentationClass/ID.png``.

    ``ImageSets/Segmentation/SPLIT.txt`` lists the ids. ``train_aug`` reads ``SegmentationClassAug/ID.png`` first; its
    list is ``trainaug.txt`` or ``train_aug.txt``, else ``aug.txt`` and ``train.txt`` together, else everything in
    SegmentationClassAug but the ids of ``val.txt``. Mask value 255, the border around objects, is void. The root, or
    ``VOCdevkit/VOC2012`` in it, is ``config.root``, else ``data/voc``. Raises ``SegtailorError`` for what is missing.
    """
    variant = VOC.variant(config)
    VOC.require_split(variant, split)
    root = VOC.find_root(config, INNER, HINT)
    images = first_folder(root, ["JPEGImages"], HINT)
    if split == "train_aug":
        folders = [first_folder(root, [AUG_MASKS], AUG_HINT), root / MASKS]
    else:
        folders = [first_folder(root, [MASKS], HINT)]
    masks = files_by_stem(folders, [".png"])
    ids = _aug_ids(root, folders[0]) if split == "train_aug" else _ids(root, split)
    pairs = pair_ids(ids, files_by_stem([images], [".jpg", ".jpeg"]), masks, f"voc {split} in {root}")
    return VOC.open(pairs, config, variant, split, training)


def _ids(root: Path, split: str) -> list[str]:
    path, where = root / LISTS / f"{split}.txt", f"voc {split}"
    if split == "trainval" and not path.is_file():
        return [*_ids(root, "train"), *_ids(root, "val")]
    return read_ids(path, where)


def _aug_ids(root: Path, masks: Path) -> list[str]:
    lists = root / LISTS
    for name in AUG_LISTS:
        if (lists / name).is_file():
            return read_ids(lists / name, "voc train_aug")
    if (lists / "aug.txt").is_file():
        return list(dict.fromkeys([*_ids(root, "train"), *read_ids(lists / "aug.txt", "voc train_aug")]))
    val = set(_ids(root, "val"))
    ids = sorted(files_by_stem([masks], [".png"]).keys() - val)
    if not ids:
        raise SegtailorError(f"no masks in {masks} (voc train_aug); {AUG_HINT}")
    return ids
