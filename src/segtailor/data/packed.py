"""Reading the packs that `segtailor data pack` writes: litdata's chunks, in a folder or an object store.

A sample in a chunk is its name, the image, the target, a CRC-32 over both, and how far the stored image is from the
source's. Samples are read by their number, so order, augmentation and resume are those of any other data set.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import NonNegativeInt, ValidationError

from segtailor.config import DataConfig, PositiveSize, Strict
from segtailor.data.base import Sample, check_classes, some
from segtailor.data.classes_file import ClassesFile
from segtailor.data.image_io import UnreadableFile, read_image, read_mask, turn_upright
from segtailor.data.paired import MaskDataset, MaskValues, Raw
from segtailor.errors import SegtailorError, install, reason, unknown
from segtailor.files import Color

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
"""The plan of an unfinished pack; the manifest replaces it when every split is complete."""
AGAIN = "copy the pack again, or pack again"
Encoding = Literal["raw", "png", "jpeg", "keep"]
"""``raw``: the pixels; ``png``: small and lossless; ``jpeg``: small, with a loss; ``keep``: the source's own files."""
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)


class Loss(Strict):
    """The stated loss of a split: over all pixels and channels, values 0 to 255."""

    psnr: float
    worst_psnr: float
    mean_abs_error: float
    largest_error: NonNegativeInt


class PackedSplit(Strict):
    """One split: its chunk files with their bytes.

    ``resized_targets``: targets were resized along with the images; ``source_bytes``: the size of the source's files.
    """

    folder: str
    samples: NonNegativeInt
    resized_targets: bool
    loss: Loss | None
    source_bytes: int | None
    files: dict[str, int]


class Manifest(Strict):
    """Everything but the samples."""

    format: Literal["segtailor-pack"] = "segtailor-pack"
    version: Literal[2] = 2
    source: str
    classes: list[str]
    palette: list[Color]
    mean_color: Color
    license: str
    encoding: Encoding
    quality: int | None
    size: PositiveSize | None
    splits: dict[str, PackedSplit]


def import_litdata() -> Any:
    """Return the library; raises ``SegtailorError`` where it is not installed."""
    try:
        import litdata
        import litdata.streaming
    except ImportError as error:
        raise SegtailorError(f"packs need litdata: {install('pack')}") from error
    # its tensors are views of a chunk's bytes, which nothing here writes to
    warnings.filterwarnings("ignore", message="The given buffer is not writable")
    return litdata


def checksum(image: Any, target: Any) -> int:
    """Return the CRC-32 of a stored image and target, each a uint8 tensor or bytes."""
    parts = (part if isinstance(part, bytes) else memoryview(part.contiguous().numpy()) for part in (image, target))
    return zlib.crc32(next(parts), zlib.crc32(next(parts)))


class PackedDataset(MaskDataset):
    """One split of a pack; samples, classes, colors and license are those of the data set that was packed.

    Samples may be read in any order, by any number of workers. Every image and target is checked against its CRC-32.
    """

    def __init__(self, address: str, manifest: Manifest, split: str, config: DataConfig, training: bool) -> None:
        described = ClassesFile(**manifest.model_dump(include={"classes", "palette", "mean_color", "license"}))
        config = DataConfig(name=manifest.source, size=config.size or manifest.size)
        values = MaskValues({index: index for index in range(len(manifest.classes))})
        super().__init__(config, split, training, described, values)
        packed = manifest.splits[split]
        self.where, self.encoding, self.samples = f"{address}/{packed.folder}", manifest.encoding, packed.samples
        self._opened: tuple[int, Any] = (0, None)
        if not is_remote(address):
            _require_whole(Path(self.where), split, packed)

    def __len__(self) -> int:
        return self.samples

    def read(self, index: int) -> Raw:
        """Return image and target as packed."""
        if index >= self.samples:
            raise IndexError(index)
        # litdata opens chunks in threads, which a forked worker does not have: each process opens its own
        if self._opened[0] != os.getpid():
            self._opened = os.getpid(), import_litdata().StreamingDataset(self.where)
        try:
            stored = self._opened[1][index]
            parts = stored["image"], stored["target"]
            image, target = (part if isinstance(part, torch.Tensor) else bytes(part) for part in parts)
            sound = checksum(image, target) == stored["check"]
        except Exception as error:  # a damaged chunk fails in many ways
            raise SegtailorError(f"{self.where} is damaged at sample {index} ({reason(error)}); {AGAIN}") from error
        name, where = str(stored["name"]), f"{stored['name']} in {self.where}"
        if not sound:
            raise SegtailorError(f"{self.where} is damaged at the sample {name} (its checksum is another); {AGAIN}")
        try:
            mask = read_mask(target) if isinstance(target, bytes) else target.numpy()
            pixels = read_image(image) if isinstance(image, bytes) else image
            if self.encoding == "keep" and isinstance(image, bytes):
                pixels = turn_upright(pixels, image, mask.shape)
        except UnreadableFile as error:
            raise SegtailorError(f"cannot read the sample {name} of {self.where}: {error}; {AGAIN}") from error
        return Raw(pixels, mask, name, where, where)

    def __getitem__(self, index: int, /) -> Sample:
        image, target, name, *_ = self.read(index)
        return self.resized(image, target, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": (0, None)}


def create_packed(config: DataConfig, split: str, training: bool) -> PackedDataset:
    """Return a split of the pack in ``config.root``: a folder, or an address such as ``s3://BUCKET/FOLDER``.

    Images that were resized on packing keep that size: ``config.size`` is it, or is left out. Raises ``SegtailorError``
    for a pack that is missing, unfinished or damaged, for another size, and for scoring on targets that were resized.
    """
    if config.root is None:
        raise SegtailorError("the data set 'packed' needs data.root: the folder that `segtailor data pack` wrote")
    address = re.sub(r"^(\w+:)/(?=[^/])", r"\1//", str(config.root))  # a path has one slash where an address has two
    manifest = read_manifest(address)
    check_classes(address, tuple(manifest.classes))
    if split not in manifest.splits:
        raise unknown(f"split of the pack in {address}:", split, manifest.splits, "Pack it with --splits")
    if manifest.size is not None and config.size not in (None, manifest.size):
        raise SegtailorError(
            f"the pack in {address} was made at data.size {list(manifest.size)}, not {list(config.size or ())}; "
            "set data.size to that, or pack again without data.size"
        )
    if not training and manifest.splits[split].resized_targets:
        raise SegtailorError(
            f"the targets of {split} in {address} were resized for training, and scores are taken at the masks' "
            "own size; score another split, or pack again without data.size"
        )
    return PackedDataset(address, manifest, split, config, training)


def is_remote(address: str) -> bool:
    """Whether ``address`` is an object store's, as litdata reads it."""
    return re.match(r"(\w+://|local:)", address) is not None


def read_manifest(address: str) -> Manifest:
    """Return the manifest of the pack at ``address``; raises ``SegtailorError`` for a missing or damaged one."""
    root, name = Path(address), f"{address}/{MANIFEST}"
    if is_remote(address):
        import_litdata()
        from litdata.streaming.downloader import get_downloader

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MANIFEST
            try:
                get_downloader(address, folder, [], {}).download_file(name, str(path))
                content = path.read_bytes()
            except Exception as error:  # every store has other errors
                raise SegtailorError(f"cannot read {name}: {reason(error)}; check data.root") from error
    elif (root / MANIFEST).exists():
        content = (root / MANIFEST).read_bytes()
    elif (root / UNFINISHED).exists():
        raise SegtailorError(
            f"the pack in {root} is unfinished; give the same `segtailor data pack` command again to continue it"
        )
    elif not root.is_dir():
        raise SegtailorError(f"no such folder: {root}; set data.root to what `segtailor data pack` wrote")
    else:
        raise SegtailorError(f"no pack in {root}: {MANIFEST} is missing; `segtailor data pack` writes it")
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("version",):
            raise SegtailorError(f"{name} is of another version of segtailor; pack again") from None
        where = "".join(f"{part}: " for part in first["loc"])
        raise SegtailorError(f"{name} is damaged ({where}{first['msg']}); {AGAIN}") from None


def _require_whole(folder: Path, split: str, packed: PackedSplit) -> None:
    found = {file: (folder / file).stat().st_size for file in packed.files if (folder / file).is_file()}
    wrong = [
        f"{file} ({f'{found[file]} of {expected} bytes' if file in found else 'missing'})"
        for file, expected in packed.files.items()
        if found.get(file) != expected
    ]
    if wrong:
        count = f"{len(wrong)} of {len(packed.files)} files"
        raise SegtailorError(
            f"the pack in {folder} is damaged, split {split}: {count} not whole: {some(wrong)}; {AGAIN}"
        )
