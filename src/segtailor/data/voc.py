"""Pascal VOC 2012, 21 classes (Everingham et al., IJCV 2010), with the masks of SBD (Hariharan et al., ICCV 2011)."""

from __future__ import annotations

from pathlib import Path

from segtailor.config import DataConfig
from segtailor.data.benchmark import BenchmarkDataset, Variant
from segtailor.data.paired import FileDataset
from segtailor.data.pairing import files_by_stem, pair_ids, read_ids, read_split_ids
from segtailor.errors import SegtailorError

VOC = BenchmarkDataset(
    name="voc",
    title="Pascal VOC 2012: objects in photos, 20 classes and background; train_aug adds the masks of SBD",
    license="Pascal VOC 2012 (Everingham et al., 2010), SBD (Hariharan et al., 2011): research use; photos of Flickr",
    root=Path("data/voc"),
    variants=(Variant("default", "voc", {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582}),),
    hint="data.root must hold VOC2012's JPEGImages, SegmentationClass and ImageSets folders",
    inner=("VOCdevkit/VOC2012", "VOC2012"),
)
LISTS = "ImageSets/Segmentation"
# Common names of the list of the 10,582 images.
AUG_LISTS = ("trainaug.txt", "train_aug.txt")
MASKS, AUG_MASKS = "SegmentationClass", "SegmentationClassAug"
AUG_HINT = f"train_aug needs {AUG_MASKS}: the masks of SBD as PNGs of class indices (`segtailor data get voc`)"


def create_voc(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of VOC 2012: ``JPEGImages/ID.jpg`` and ``SegmentationClass/ID.png``.

    ``ImageSets/Segmentation/SPLIT.txt`` lists the ids. ``train_aug`` reads ``SegmentationClassAug/ID.png`` first; its
    list is ``trainaug.txt`` or ``train_aug.txt``, else ``aug.txt`` and ``train.txt`` together, else everything in
    SegmentationClassAug but the ids of ``val.txt``. Mask value 255, the border around objects, is void.
    """
    variant, root = VOC.locate(config, split)
    images, lists = VOC.folder(root, "JPEGImages"), root / LISTS
    if split == "train_aug":
        folders = [VOC.folder(root, AUG_MASKS, hint=AUG_HINT), root / MASKS]
        ids = _aug_ids(lists, folders[0])
    else:
        folders = [VOC.folder(root, MASKS)]
        ids = read_split_ids(lists, split, "voc")
    found = files_by_stem([images], [".jpg", ".jpeg"]), files_by_stem(folders, [".png"])
    return VOC.open(pair_ids(ids, *found, f"voc {split} in {root}"), config, variant, split, training)


def _aug_ids(lists: Path, masks: Path) -> list[str]:
    for name in AUG_LISTS:
        if (lists / name).is_file():
            return read_ids(lists / name, "voc train_aug")
    if (lists / "aug.txt").is_file():
        both = read_split_ids(lists, "train", "voc") + read_ids(lists / "aug.txt", "voc train_aug")
        return list(dict.fromkeys(both))
    ids = sorted(files_by_stem([masks], [".png"]).keys() - set(read_split_ids(lists, "val", "voc")))
    if not ids:
        raise SegtailorError(f"no masks in {masks} (voc train_aug); {AUG_HINT}")
    return ids
