"""Any folder of images and masks, with a small YAML that names the classes."""

from __future__ import annotations

from pathlib import Path

from segtailor.config import DataConfig, SplitConfig
from segtailor.data.binary_masks import pair_binary
from segtailor.data.classes_file import ClassesFile, read_classes
from segtailor.data.files import Description, FileDataset, MaskValues
from segtailor.data.masks import color_masks, index_values, refuse_values
from segtailor.data.pairs import Pair, pair_folders, pair_list, require_folder
from segtailor.errors import SegtailorError, unknown

HINT = "set data.root to the folder that holds your images and masks"


def create_folder(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of the folder ``config.root``, whose masks hold what ``config.masks`` says.

    ``config.splits`` says where the split's images and masks lie; without it they are looked for in ``SPLIT/images``
    and ``SPLIT/masks``, then in ``images/SPLIT`` and ``masks/SPLIT``. Classes come from ``config.classes``, else from
    ``classes.yaml`` in the root. Raises ``SegtailorError`` for what is missing or does not fit.
    """
    if config.root is None:
        raise SegtailorError("the data set 'folder' needs data.root: the folder that holds your images and masks")
    root = require_folder(config.root, HINT)
    class_file = config.classes or root / "classes.yaml"
    described = read_classes(class_file)
    if config.masks != "binary":
        return open_pairs(_pairs(root, split, config.splits), config, described, class_file, split, training)
    refuse_values(config, "data.masks is binary")
    images, masks = _folders(root, split, config.splits)
    pairs, read_mask = pair_binary(images, masks, f"the split {split}", described.classes, class_file)
    values = MaskValues({index: index for index in range(len(described.classes))})
    return FileDataset(pairs, read_mask=read_mask, **describe(config, described, values, split, training))


def open_pairs(
    pairs: tuple[Pair, ...], config: DataConfig, described: ClassesFile, class_file: Path, split: str, training: bool
) -> FileDataset:
    """Return ``pairs`` as a data set of index or colour masks; raises ``SegtailorError`` for fields that contradict."""
    if config.masks == "color":
        read_mask, values = color_masks(config, described, str(class_file))
        return FileDataset(pairs, read_mask=read_mask, **describe(config, described, values, split, training))
    index = index_values(config, described, str(class_file))
    return FileDataset(pairs, **describe(config, described, index, split, training))


def describe(config: DataConfig, described: ClassesFile, values: MaskValues, split: str, training: bool) -> Description:
    """Return what a data set of the user's own says of itself."""
    return {
        "name": config.name,
        "split": split,
        "classes": tuple(described.classes),
        "palette": described.colors(),
        "mean_color": described.mean_color,
        "licence": described.licence,
        "values": values,
        "size": config.size,
        "training": training,
    }


def _pairs(root: Path, split: str, splits: dict[str, SplitConfig] | None) -> tuple[Pair, ...]:
    listed = splits[split].list if splits is not None and split in splits else None
    if splits is not None and listed is not None:
        given = splits[split]
        if given.images is not None or given.masks is not None:
            raise SegtailorError(f"data.splits.{split} needs `images` and `masks`, or `list` alone")
        return pair_list(root / listed, root, f"the split {split}")
    return pair_folders(*_folders(root, split, splits), f"the split {split}")


def _folders(root: Path, split: str, splits: dict[str, SplitConfig] | None) -> tuple[Path, Path]:
    if splits is not None:
        if split not in splits:
            raise unknown("split", split, splits, "data.splits lists them")
        given = splits[split]
        if given.list is not None:
            raise SegtailorError(f"data.masks is binary, so data.splits.{split} needs the folders `images` and `masks`")
        if given.images is None or given.masks is None:
            raise SegtailorError(f"data.splits.{split} needs `images` and `masks`, or `list` alone")
        hint = f"see data.splits.{split}"
        return require_folder(root / given.images, hint), require_folder(root / given.masks, hint)
    layouts = [(root / split / "images", root / split / "masks"), (root / "images" / split, root / "masks" / split)]
    for images, masks in layouts:
        if images.is_dir() and masks.is_dir():
            return images, masks
    looked = " or ".join(f"{images} and {masks}" for images, masks in layouts)
    raise SegtailorError(f"no such folder: looked for {looked}; make one of the two layouts or set data.splits")
