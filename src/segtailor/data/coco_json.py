"""``coco-json``: images whose classes are outlined in a JSON of COCO's form (Lin et al., ECCV 2014)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segtailor.config import DataConfig
from segtailor.data.base import check_classes, some
from segtailor.data.classes_file import ClassesFile, distinct_colors, read_classes
from segtailor.data.folder import PLACEHOLDER, annotation_file, class_file, describe
from segtailor.data.image_io import UnreadableFile
from segtailor.data.masks import BACKGROUND, refuse_values
from segtailor.data.paired import FileDataset, MaskValues
from segtailor.data.pairing import MISSING_IMAGE, Pair, record_missing
from segtailor.data.polygons import paint_shape, shape_area
from segtailor.errors import SegtailorError, unknown
from segtailor.files import VOID, Color

KIND = "a JSON with images, annotations and categories as COCO has them"


class Outlines(NamedTuple):
    """What is outlined in one image: its size, and JSON of a list of (class index, shape) in the file's order."""

    height: int
    width: int
    shapes: bytes


class OutlineMasks:
    """Draws masks from ``outlines``, by the pair's name: large shapes first, so that smaller and later ones cover them.

    Pixels that no shape covers get ``uncovered``.
    """

    def __init__(self, outlines: Mapping[str, Outlines], uncovered: int) -> None:
        self.outlines, self.uncovered = dict(outlines), uncovered

    def __call__(self, pair: Pair) -> NDArray[np.uint8]:
        """Return the class indices (H,W) of ``pair``; raises ``UnreadableFile`` for a shape that cannot be drawn."""
        height, width, content = self.outlines[pair.name]
        target = np.full((height, width), self.uncovered, np.uint8)
        try:
            shapes = [(shape_area(shape), label, shape) for label, shape in json.loads(content)]
            for _, label, shape in sorted(shapes, key=lambda entry: -entry[0]):
                paint_shape(target, shape, label)
        except (ValueError, TypeError, OverflowError) as error:
            raise UnreadableFile(f"an annotation of {pair.name}: {error}") from error
        return target


class Classes(NamedTuple):
    """The classes, the class of each category id, and what uncovered pixels are."""

    described: ClassesFile
    of_category: dict[int, int]
    uncovered: int


def create_coco_json(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return the images of the JSON ``config.annotations``, in its order; ``{split}`` in the path is ``split``.

    Images lie in the first of these folders that holds the first of them: ``config.splits.SPLIT.images`` under the
    root, the JSON's own folder, ``SPLIT``, ``images/SPLIT`` and ``images`` under the root, a folder there whose name
    ends the JSON's name (``train2017`` of ``instances_train2017.json``), and the root. See :func:`match_classes` for
    the classes. Raises ``SegtailorError`` for what is missing or does not fit together.
    """
    refuse_values(config, "coco-json has outlines")
    if config.masks is not None:
        raise SegtailorError("data.masks says what mask files hold, but coco-json has outlines; leave it out")
    path = annotation_file(config, split, KIND)
    if PLACEHOLDER not in str(config.annotations) and config.train_split != config.val_split:
        raise SegtailorError(
            f"{path} would be the split {config.train_split} and the split {config.val_split} alike; give each split a "
            "JSON and write {split} in data.annotations"
        )
    images, annotations, categories = read_coco(path)
    described_in = class_file(config, path)
    described = read_classes(described_in) if described_in is not None else None
    used = Counter(annotation["category_id"] for annotation in annotations)
    classes = match_classes(categories, used, described, f"{described_in}", path)
    outlines = _outlines(images, annotations, classes.of_category, path)
    values = MaskValues({index: index for index in range(len(classes.described.classes))})
    return FileDataset(
        _pairs(images, _image_folders(config, split, path), path),
        read_mask=OutlineMasks(outlines, classes.uncovered),
        **describe(config, classes.described, values, split, training),
    )


def read_coco(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[int, str]]:
    """Return images, annotations, and the names of the categories by id; raises ``SegtailorError``."""
    try:
        with path.open("rb") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise SegtailorError(f"cannot read {path} as JSON: {' '.join(str(error).split())}") from error
    needed: dict[str, dict[str, Any]] = {
        "images": {"id": int | str, "file_name": str, "height": int, "width": int},
        "annotations": {"image_id": int | str, "category_id": int},
        "categories": {"id": int, "name": str},
    }
    for key, fields in needed.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise SegtailorError(f"{path} has no list `{key}`; expected {KIND}")
        for number, entry in enumerate(entries):
            for name, kind in fields.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                    raise SegtailorError(f"{path}: {key}[{number}] has no valid `{name}`; expected {KIND}")
    for key in ("images", "categories"):
        if not content[key]:
            raise SegtailorError(f"{path} has no {key}; expected {KIND}")
    categories = {entry["id"]: entry["name"] for entry in sorted(content["categories"], key=lambda entry: entry["id"])}
    return content["images"], content["annotations"], categories


def match_classes(
    categories: Mapping[int, str], used: Mapping[int, int], described: ClassesFile | None, named: str, path: Path
) -> Classes:
    """Return the classes: the categories in the order of their ids, those of one name joined.

    Without a class file a class ``background`` comes first, unless a category has that name: the pixels that nothing
    covers. A class file decides order and colours; with it uncovered pixels are void unless it lists ``background``.
    Raises ``SegtailorError`` for more than 255 classes, names that are no category, and categories that have
    annotations (``used``: how many, by id) but no class.
    """
    names = list(dict.fromkeys(categories.values()))
    if described is None:
        added = BACKGROUND not in names
        names = [BACKGROUND] * added + names
        check_classes(f"{path} (with {BACKGROUND} for uncovered pixels)" if added else str(path), tuple(names))
        black: tuple[Color, ...] = ((0, 0, 0),) * added
        described = ClassesFile(classes=names, palette=[*black, *distinct_colors(len(names) - added)])
    else:
        for name in described.classes:
            if name not in names and name != BACKGROUND:
                raise unknown("category", name, names, f"{named} names it, but {path} has no such category")
        if left := [f"{name} ({used[id_]})" for id_, name in categories.items() if used.get(id_) and
                    name not in described.classes]:  # fmt: skip
            raise SegtailorError(
                f"{path} has annotations of {len(left)} categories that {named} does not name: {some(left)}; add them"
            )
    index = {name: position for position, name in enumerate(described.classes)}
    of_category = {id_: index[name] for id_, name in categories.items() if name in index}
    return Classes(described, of_category, index.get(BACKGROUND, VOID))


def _outlines(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], of_category: Mapping[int, int], path: Path
) -> dict[str, Outlines]:
    shapes: dict[int | str, list[tuple[int, Any]]] = {image["id"]: [] for image in images}
    if len(shapes) < len(images):
        raise SegtailorError(f"{path}: {len(images) - len(shapes)} image ids stand for two images; give each its own")
    wrong: dict[str, list[str]] = {}
    for number, annotation in enumerate(annotations):
        shape, place = annotation.get("segmentation"), str(annotation.get("id", number))
        if annotation["image_id"] not in shapes:
            wrong.setdefault("of images that are not listed", []).append(place)
        elif annotation["category_id"] not in of_category:
            wrong.setdefault("of categories that are not listed", []).append(place)
        elif not shape or not isinstance(shape, list | dict):
            wrong.setdefault("without an outline (boxes alone do not tell pixels)", []).append(place)
        else:
            shapes[annotation["image_id"]].append((of_category[annotation["category_id"]], shape))
    if wrong:
        texts = [f"{len(ids)} annotations {text}: {some(ids)}" for text, ids in wrong.items()]
        raise SegtailorError(f"{path}: {'; '.join(texts)}; mend or remove them")
    return {
        _name(image): Outlines(image["height"], image["width"], json.dumps(shapes[image["id"]]).encode())
        for image in images
    }


def _image_folders(config: DataConfig, split: str, path: Path) -> list[Path]:
    root = config.root or path.parent
    if config.splits is not None:
        if split not in config.splits:
            raise unknown("split", split, config.splits, "data.splits lists them")
        images = config.splits[split].images
        if images is None:
            raise SegtailorError(f"data.splits.{split} needs `images`: the folder of the images that {path} names")
        return [root / images]
    ending = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and path.stem.endswith(f"_{folder.name}")]
    return [path.parent, root / split, root / "images" / split, root / "images", *ending, root]


def _pairs(images: list[dict[str, Any]], folders: list[Path], path: Path) -> tuple[Pair, ...]:
    first = _file_name(images[0])
    folder = next((folder for folder in folders if (folder / first).is_file()), None)
    if folder is None:
        looked = ", ".join(str(place) for place in dict.fromkeys(folders))
        raise SegtailorError(f"no such file: {first}, the first image of {path}; looked in {looked}: set data.root or "
                             "data.splits.SPLIT.images")  # fmt: skip
    pairs = [Pair(folder / _file_name(image), path, _name(image)) for image in images]
    missing = [_file_name(image) for image, pair in zip(images, pairs, strict=True) if not pair.image.is_file()]
    if missing and not record_missing({MISSING_IMAGE: missing}):
        raise SegtailorError(f"{path}: {len(missing)} of {len(pairs)} images missing in {folder}: {some(missing)}")
    if missing:
        pairs = [pair for pair in pairs if pair.image.is_file()]
    if twice := [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]:
        raise SegtailorError(f"{path} lists {len(twice)} images more than once: {some(twice)}; keep one entry of each")
    return tuple(pairs)


def _file_name(image: dict[str, Any]) -> str:
    return str(image["file_name"]).replace("\\", "/")


def _name(image: dict[str, Any]) -> str:
    return PurePosixPath(_file_name(image)).with_suffix("").as_posix()
