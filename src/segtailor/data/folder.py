"""Any folder of images and masks, with a small YAML that names the classes."""

from __future__ import annotations

from pathlib import Path

from segtailor.config import DataConfig, SplitConfig
from segtailor.data.classes_file import ClassesFile, read_classes
from segtailor.data.masks import color_masks, index_values, pair_binary, refuse_values
from segtailor.data.paired import FileDataset, MaskValues
from segtailor.data.pairing import Pair, pair_folders, pair_list, require_folder
from segtailor.errors import SegtailorError, unknown

PLACEHOLDER = "{split}"


def annotation_file(config: DataConfig, split: str, kind: str) -> Path:
    """Return ``config.annotations`` with ``{split}`` filled in, also looked for under ``config.root``.

    ``kind`` describes the file in errors. Raises ``SegtailorError`` when the field or the file is missing.
    """
    if config.annotations is None:
        raise SegtailorError(f"the data set '{config.name}' needs data.annotations: {kind}")
    if config.root is not None:
        require_folder(config.root, "set data.root to the folder of the images, or leave it out")
    given = Path(str(config.annotations).replace(PLACEHOLDER, split))
    places = list(dict.fromkeys([given] if config.root is None else [given, config.root / given]))
    for path in places:
        if path.is_file():
            return path
    looked = " and ".join(map(str, places))
    raise SegtailorError(f"no such file: {looked} ({kind}, for the split {split}); correct data.annotations")


def class_file(config: DataConfig, annotations: Path) -> Path | None:
    """Return ``config.classes``, else the ``classes.yaml`` of the root or beside ``annotations``, if there is one."""
    if config.classes is not None:
        return config.classes
    places = [annotations.parent] if config.root is None else [config.root, annotations.parent]
    return next((place / "classes.yaml" for place in places if (place / "classes.yaml").is_file()), None)


def create_folder(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of the folder ``config.root``; ``config.masks`` is the encoding of its masks.

    ``config.splits`` names the folders of the split's images and masks; by default they are ``SPLIT/images`` and
    ``SPLIT/masks``, else ``images/SPLIT`` and ``masks/SPLIT``. Classes come from ``config.classes``, else from
    ``classes.yaml`` in the root. Raises ``SegtailorError`` for missing and contradictory settings and files.
    """
    if config.root is None:
        raise SegtailorError("the data set 'folder' needs data.root: the folder that holds your images and masks")
    root = require_folder(config.root, "set data.root to the folder that holds your images and masks")
    class_file = config.classes or root / "classes.yaml"
    described = read_classes(class_file)
    if config.masks != "binary":
        return open_pairs(_pairs(root, split, config.splits), config, described, class_file, split, training)
    refuse_values(config, "data.masks is binary")
    images, masks = _folders(root, split, config.splits)
    pairs, read_mask = pair_binary(images, masks, f"the split {split}", described.classes, class_file)
    values = MaskValues({index: index for index in range(len(described.classes))})
    return FileDataset(pairs, config, split, training, described, values, read_mask)


def open_pairs(
    pairs: tuple[Pair, ...], config: DataConfig, described: ClassesFile, class_file: Path, split: str, training: bool
) -> FileDataset:
    """Return ``pairs`` as a data set of index or color masks; raises ``SegtailorError`` for fields that contradict."""
    if config.masks == "color":
        read_mask, values = color_masks(config, described, str(class_file))
        return FileDataset(pairs, config, split, training, described, values, read_mask)
    return FileDataset(pairs, config, split, training, described, index_values(config, described, str(class_file)))


def _pairs(root: Path, split: str, splits: dict[str, SplitConfig] | None) -> tuple[Pair, ...]:
    given = splits.get(split) if splits is not None else None
    if given is None or given.list is None:
        return pair_folders(*_folders(root, split, splits), f"the split {split}")
    if given.images is not None or given.masks is not None:
        raise SegtailorError(f"data.splits.{split} needs `images` and `masks`, or `list` alone")
    return pair_list(root / given.list, root, f"the split {split}")


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
