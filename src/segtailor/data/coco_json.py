"""``coco-json``: images whose classes are outlined in a JSON of COCO's form (Lin et al., ECCV 2014)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from segtailor.config import DataConfig
from segtailor.data.base import check_classes, some
from segtailor.data.classes_file import ClassesFile, distinct_colors, read_classes
from segtailor.data.folder import PLACEHOLDER, annotation_file, class_file
from segtailor.data.image_io import UnreadableFile
from segtailor.data.masks import BACKGROUND, refuse_values
from segtailor.data.paired import FileDataset, MaskValues
from segtailor.data.pairing import MISSING_IMAGE, Pair, record_missing
from segtailor.errors import SegtailorError, unknown
from segtailor.files import VOID, Color, Size

Outlines = tuple[int, int, bytes]
KIND = "a JSON with images, annotations and categories in COCO's format"


class ImageEntry(BaseModel):
    """An entry of `images`; ``name`` is the path without suffix."""

    id: int | str
    file_name: Annotated[str, AfterValidator(lambda text: text.replace("\\", "/"))]
    height: int
    width: int

    @property
    def name(self) -> str:  # noqa: D102
        return PurePosixPath(self.file_name).with_suffix("").as_posix()


class Annotation(BaseModel):
    """An entry of `annotations`."""

    image_id: int | str
    category_id: int
    segmentation: Any = None
    id: Any = None


class Category(BaseModel):
    """An entry of `categories`."""

    id: int
    name: str


class CocoFile(BaseModel):
    """What is read of a JSON in COCO's format."""

    images: list[ImageEntry] = Field(min_length=1)
    annotations: list[Annotation]
    categories: list[Category] = Field(min_length=1)


class OutlineMasks:
    """Draws masks: large shapes first, so that smaller and later ones cover them.

    ``outlines`` holds, by the pair's name, height, width, and JSON of a list of (class index, shape). Pixels that no
    shape covers get ``uncovered``.
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


def create_coco_json(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return the images of the JSON ``config.annotations``, in its order; ``{split}`` in the path is ``split``.

    The folder of the images is ``config.splits.SPLIT.images`` under the root. By default it is the first of these that
    holds the first image: the JSON's folder, ``SPLIT``, ``images/SPLIT`` and ``images`` under the root, a folder there
    whose name ends the JSON's name (``train2017`` of ``instances_train2017.json``), and the root. See
    :func:`match_classes` for the classes. Raises ``SegtailorError`` for missing files and inconsistent annotations.
    """
    refuse_values(config, "coco-json has outlines")
    if config.masks is not None:
        raise SegtailorError("data.masks describes mask files, but coco-json has outlines; leave it out")
    path = annotation_file(config, split, KIND)
    if PLACEHOLDER not in str(config.annotations) and config.train_split != config.val_split:
        raise SegtailorError(
            f"{path} would be the split {config.train_split} and the split {config.val_split} alike; give each split a "
            "JSON and write {split} in data.annotations"
        )
    content = read_coco(path)
    categories: dict[int, str] = {}
    for entry in sorted(content.categories, key=lambda entry: entry.id):
        if categories.setdefault(entry.id, entry.name) != entry.name:
            both = f"{categories[entry.id]} and {entry.name}"
            raise SegtailorError(f"{path}: the category id {entry.id} belongs to {both}; give each its own")
    described_in = class_file(config, path)
    described = read_classes(described_in) if described_in is not None else None
    used = Counter(annotation.category_id for annotation in content.annotations)
    described = match_classes(categories, used, described, f"{described_in}", path)
    index = {name: position for position, name in enumerate(described.classes)}
    of_category = {id_: index[name] for id_, name in categories.items() if name in index}
    read_mask = OutlineMasks(_outlines(content, of_category, path), index.get(BACKGROUND, VOID))
    values = MaskValues({position: position for position in index.values()})
    pairs = _pairs(content.images, config, split, path)
    return FileDataset(pairs, config, split, training, described, values, read_mask)


def read_coco(path: Path) -> CocoFile:
    """Return the content of the JSON at ``path``; raises ``SegtailorError`` for the first entry that is wrong."""
    try:
        return CocoFile.model_validate(json.loads(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the content"
        raise SegtailorError(f"{path}: {place}: {first['msg']}; expected {KIND}") from None
    except (OSError, ValueError) as error:
        raise SegtailorError(f"cannot read {path} as JSON: {' '.join(str(error).split())}") from error


def match_classes(
    categories: Mapping[int, str], used: Mapping[int, int], described: ClassesFile | None, named: str, path: Path
) -> ClassesFile:
    """Return the classes: the categories in the order of their ids, those of one name joined.

    Without a class file a class ``background`` comes first, unless a category has that name: the pixels that nothing
    covers. A class file decides order and colors; with it uncovered pixels are void unless it lists ``background``.
    Raises ``SegtailorError`` for more than 255 classes, names that are no category, and categories that have
    annotations (``used``: how many, by id) but no class.
    """
    names = list(dict.fromkeys(categories.values()))
    if described is None:
        added = BACKGROUND not in names
        names = [BACKGROUND] * added + names
        check_classes(f"{path} (with {BACKGROUND} for uncovered pixels)" if added else str(path), tuple(names))
        black: tuple[Color, ...] = ((0, 0, 0),) * added
        return ClassesFile(classes=names, palette=[*black, *distinct_colors(len(names) - added)])
    for name in described.classes:
        if name not in names and name != BACKGROUND:
            raise unknown("category", name, names, f"{named} names it, but {path} has no such category")
    unnamed = {id_: name for id_, name in categories.items() if name not in described.classes}
    if left := [f"{name} ({used[id_]})" for id_, name in unnamed.items() if used.get(id_)]:
        raise SegtailorError(
            f"{path} has annotations of {len(left)} categories that {named} does not name: {some(left)}; add them"
        )
    return described


def _outlines(content: CocoFile, of_category: Mapping[int, int], path: Path) -> dict[str, Outlines]:
    images = content.images
    shapes: dict[int | str, list[tuple[int, Any]]] = {image.id: [] for image in images}
    if len(shapes) < len(images):
        raise SegtailorError(f"{path}: {len(images) - len(shapes)} image ids occur twice; give each its own")
    wrong: defaultdict[str, list[str]] = defaultdict(list)
    for number, annotation in enumerate(content.annotations):
        shape, place = annotation.segmentation, str(number if annotation.id is None else annotation.id)
        if annotation.image_id not in shapes:
            wrong["of images that are not listed"].append(place)
        elif annotation.category_id not in of_category:
            wrong["of categories that are not listed"].append(place)
        elif not shape or not isinstance(shape, list | dict):
            wrong["without an outline (a box does not say which pixels)"].append(place)
        else:
            shapes[annotation.image_id].append((of_category[annotation.category_id], shape))
    if wrong:
        texts = [f"{len(ids)} annotations {text}: {some(ids)}" for text, ids in wrong.items()]
        raise SegtailorError(f"{path}: {'; '.join(texts)}; fix or remove them")
    return {image.name: (image.height, image.width, json.dumps(shapes[image.id]).encode()) for image in images}


def _pairs(images: list[ImageEntry], config: DataConfig, split: str, path: Path) -> tuple[Pair, ...]:
    root, first = config.root or path.parent, images[0].file_name
    ending = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and path.stem.endswith(f"_{folder.name}")]
    folders = [path.parent, root / split, root / "images" / split, root / "images", *ending, root]
    if config.splits is not None:
        if split not in config.splits:
            raise unknown("split", split, config.splits, "data.splits lists them")
        given = config.splits[split].images
        if given is None:
            raise SegtailorError(f"data.splits.{split} needs `images`: the folder of the images that {path} names")
        folders = [root / given]
    folder = next((folder for folder in folders if (folder / first).is_file()), None)
    if folder is None:
        looked, hint = ", ".join(map(str, dict.fromkeys(folders))), "set data.root or data.splits.SPLIT.images"
        raise SegtailorError(f"no such file: {first}, the first image of {path}; looked in {looked}: {hint}")
    missing = [image.file_name for image in images if not (folder / image.file_name).is_file()]
    if missing and not record_missing({MISSING_IMAGE: missing}):
        raise SegtailorError(f"{path}: {len(missing)} of {len(images)} images missing in {folder}: {some(missing)}")
    left = set(missing)
    pairs = [Pair(folder / image.file_name, path, image.name) for image in images if image.file_name not in left]
    if twice := [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]:
        raise SegtailorError(f"{path} lists {len(twice)} images more than once: {some(twice)}; keep one entry of each")
    return tuple(pairs)


def paint_shape(target: NDArray[np.uint8], shape: Any, label: int) -> None:
    """Set ``target`` (H,W) to ``label`` within ``shape``: a list of polygons, or the mapping of a run-length mask.

    A pixel belongs to a polygon when its center does (even-odd rule). Raises ``ValueError`` for what is neither.
    """
    if isinstance(shape, dict):
        target[decode_runs(shape, (target.shape[0], target.shape[1]))] = label
        return
    for polygon in shape:
        _paint_polygon(target, _points(polygon), label)


def shape_area(shape: Any) -> float:
    """Return the pixels that ``shape`` covers, overlaps of its polygons counted twice.

    >>> shape_area([[0, 0, 4, 0, 4, 2, 0, 2]])
    8.0
    """
    if isinstance(shape, dict):
        return float(_counts(shape)[1::2].sum())
    area = 0.0
    for polygon in shape:
        x, y = _points(polygon).T
        area += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return area


def decode_runs(shape: dict[str, Any], size: Size) -> NDArray[np.bool_]:
    """Return the mask (H,W) of run lengths, which run down the columns and begin with zeros.

    ``shape["counts"]`` are numbers or COCO's text. Raises ``ValueError`` when they do not fill ``size``.
    """
    if list(shape.get("size", size)) != list(size):
        raise ValueError(f"run lengths of {shape['size']} in an image of {list(size)}")
    counts = _counts(shape)
    if counts.min(initial=0) < 0 or counts.sum() != size[0] * size[1]:
        raise ValueError(f"run lengths fill {counts.sum()} of {size[0] * size[1]} pixels")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(size[1], size[0]).T


def decode_text(text: str) -> NDArray[np.int64]:
    """Return the run lengths encoded in COCO's compressed ``text``.

    A character holds five bits and a sixth that says whether more follow, lowest first, the last with a sign; from the
    fourth number on, differences to the number two before are stored.

    >>> decode_text("61X13mN000`0").tolist()
    [6, 1, 40, 4, 5, 4, 5, 4, 21]
    """
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("run lengths of unknown characters")
    last = codes & 32 == 0
    starts = np.flatnonzero(np.concatenate(([True], last[:-1])))
    lengths = np.diff(np.append(starts, len(codes)))
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    if lengths.max() > 12:
        raise ValueError("a run length of too many characters")
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    numbers -= np.where(codes[last] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _counts(shape: dict[str, Any]) -> NDArray[np.int64]:
    counts = shape.get("counts")
    if isinstance(counts, str):
        return decode_text(counts)
    if not isinstance(counts, list):
        raise ValueError("run lengths without counts")
    return np.array(counts, np.int64)


def _points(polygon: Sequence[float]) -> NDArray[np.float64]:
    points = np.array(polygon, np.float64)
    if points.ndim != 1:
        raise ValueError("a shape must be a list of polygons [[x, y, x, y, ...], ...]")
    if len(points) % 2 or not np.isfinite(points).all():
        raise ValueError(f"a polygon of {len(points)} numbers; expected x, y, x, y, ...")
    return points.reshape(-1, 2)


def _paint_polygon(target: NDArray[np.uint8], points: NDArray[np.float64], label: int) -> None:
    height, width = target.shape
    (x, y), (next_x, next_y) = points.T, np.roll(points, -1, axis=0).T
    # the rows whose centers an edge crosses, its lower end not counted, so that a corner counts once
    first = np.clip(np.ceil(np.minimum(y, next_y) - 0.5), 0, height).astype(np.int64)
    counts = np.clip(np.ceil(np.maximum(y, next_y) - 0.5), 0, height).astype(np.int64) - first
    if not counts.sum():
        return
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (next_x - x)[edge] / (next_y - y)[edge]
    crossing = x[edge] + (row + 0.5 - y[edge]) * slope
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    top, left = row.min(), column.min()
    rows, columns = int(row.max() - top) + 1, int(column.max() - left)
    # from each crossing on, inside and outside change places
    changes = np.bincount((row - top) * (columns + 1) + column - left, minlength=rows * (columns + 1))
    inside = np.cumsum(changes.reshape(rows, columns + 1)[:, :columns].astype(np.uint8), axis=1, dtype=np.uint8) & 1
    target[top : top + rows, left : left + columns][inside == 1] = label
