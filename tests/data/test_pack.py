"""Packing a data set and reading the pack: the same samples, whole or not at all, damage found and named."""

from __future__ import annotations

import json
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.trees import truncate, write_camvid, write_folder, write_image, write_mask
from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.data.loader import train_batches
from segtailor.data.pack import Encoder, format_pack, pack
from segtailor.data.packed import is_remote, read_manifest
from segtailor.errors import SegtailorError

pytest.importorskip("litdata")


def camvid(root: Path, **options) -> DataConfig:
    return DataConfig(name="camvid", root=root, workers=0, **options)


def packed(root: Path, **options) -> DataConfig:
    return DataConfig(name="packed", root=root, workers=0, **options)


@pytest.fixture
def source(tmp_path: Path) -> DataConfig:
    return camvid(write_camvid(tmp_path / "camvid", names=tuple("abcdefg")))


def assert_same(source: DataConfig, found: DataConfig, split: str, training: bool) -> None:
    ours, theirs = create_dataset(found, split, training), create_dataset(source, split, training)
    assert len(ours) == len(theirs)
    for mine, original in zip(ours, theirs, strict=True):
        assert mine.name == original.name
        assert mine.image.dtype == mine.target.dtype == torch.uint8
        assert mine.image.equal(original.image)
        assert mine.target.equal(original.target)
    for what in ("name", "split", "classes", "palette", "mean_color", "license", "num_classes"):
        assert getattr(ours, what) == getattr(theirs, what)


@pytest.mark.parametrize("encoding", ["raw", "png", "keep"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_lossless_packs_give_the_samples_of_the_source(tmp_path, encoding, suffix):
    source = camvid(write_camvid(tmp_path / "camvid", names=tuple("abcde"), suffix=suffix))
    manifest = pack(source, tmp_path / "out", encoding=encoding)
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 5, "val": 5}
    assert all(split.loss is None for split in manifest.splits.values())
    assert "identical pixels" in format_pack(manifest, tmp_path / "out")
    for split in ("train", "val"):
        assert_same(source, packed(tmp_path / "out"), split, training=split == "train")
        # resized on reading, as the source is
        resized = {"size": (8, 10)}
        found = packed(tmp_path / "out", **resized)
        assert_same(source.model_copy(update=resized), found, split, training=split == "train")


def test_samples_of_different_sizes_keep_theirs(tmp_path):
    root = write_folder(tmp_path / "tree")
    write_image(root / "train/images/c.png", (5, 9))
    write_mask(root / "train/masks/c.png", (5, 9))
    source = DataConfig(name="folder", root=root, workers=0)
    pack(source, tmp_path / "out")
    assert_same(source, packed(tmp_path / "out"), "train", training=True)


def test_a_sideways_photo_is_kept_and_read_upright(tmp_path):
    root = write_folder(tmp_path / "tree")
    photo = root / "train/images/c.jpg"
    picture = Image.open(write_image(tmp_path / "plain.png", (9, 5)))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(photo, exif=exif)
    write_mask(root / "train/masks/c.png", (5, 9))
    source = DataConfig(name="folder", root=root, workers=0)
    pack(source, tmp_path / "out", encoding="keep")
    assert_same(source, packed(tmp_path / "out"), "train", training=True)


def test_packing_at_the_training_size(tmp_path, source):
    source = source.model_copy(update={"size": (8, 10)})
    manifest = pack(source, tmp_path / "out")
    assert manifest.size == (8, 10)
    assert "at 8 x 10" in format_pack(manifest, tmp_path / "out")
    for asked in ({}, {"size": (8, 10)}):
        found = packed(tmp_path / "out", **asked)
        assert_same(source, found, "train", training=True)
        assert_same(source, found, "val", training=False)
        assert create_dataset(found, "val", training=False)[0].target.shape == (12, 16)
        assert_same(source, found, "val", training=True)
    with pytest.raises(SegtailorError, match=r"made at data\.size \[8, 10\], not \[6, 6\]; set data.size"):
        create_dataset(packed(tmp_path / "out", size=(6, 6)), "train", training=True)
    with pytest.raises(SegtailorError, match=r"targets of train in .* were resized for training"):
        create_dataset(packed(tmp_path / "out"), "train", training=False)


def test_jpeg_states_what_it_lost(tmp_path, source):
    manifest = pack(source, tmp_path / "out", encoding="jpeg", quality=80)
    assert manifest.quality == 80
    found, original = (create_dataset(config, "train", True) for config in (packed(tmp_path / "out"), source))
    apart = np.stack(
        [mine.image.numpy().astype(float) - its.image.numpy() for mine, its in zip(found, original, strict=True)]
    )
    loss = manifest.splits["train"].loss
    assert loss is not None
    assert loss.mean_abs_error == pytest.approx(np.abs(apart).mean(), abs=1e-3)
    assert loss.psnr == pytest.approx(10 * np.log10(255**2 / (apart**2).mean()), abs=0.01)
    worst = (apart**2).mean((1, 2, 3)).max()
    assert loss.worst_psnr == pytest.approx(10 * np.log10(255**2 / worst), abs=0.01)
    assert loss.largest_error == np.abs(apart).max()
    assert all(mine.target.equal(its.target) for mine, its in zip(found, original, strict=True))
    message = format_pack(manifest, tmp_path / "out")
    assert "JPEG quality 80, PSNR" in message
    assert "mean absolute error" in message
    assert "identical pixels" not in message
    # what is stated survives in the manifest
    assert read_manifest(str(tmp_path / "out")) == manifest


def test_training_batches_are_those_of_the_source(tmp_path, source):
    pack(source, tmp_path / "out", shards=3)
    batches = []
    for config in (source, packed(tmp_path / "out")):
        config = config.model_copy(update={"crop": (8, 8), "workers": 1})
        data = create_dataset(config, "train", training=True)
        batches.append(list(train_batches(data, config, seed=1, global_batch=4, micro_batch=4, steps=4)))
    for one, other in zip(*batches, strict=True):
        assert one.names == other.names
        assert one.images.equal(other.images)
        assert one.target.equal(other.target)


def test_a_recipes_limit_applies_when_the_pack_is_read(tmp_path, source):
    for size in ({}, {"size": (8, 10)}):
        out = tmp_path / f"out{len(size)}"
        limited = source.model_copy(update={"limit": 3, **size})
        assert pack(limited, out).splits["train"].samples == 7
        assert_same(limited, packed(out, limit=3, **size), "train", training=True)


def test_workers_read_what_one_process_reads(tmp_path, source):
    pack(source, tmp_path / "out", shards=3)
    data = create_dataset(packed(tmp_path / "out"), "train", True)
    before = [data[index] for index in range(len(data))]  # so that the shards are open already
    forked = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork")
    spawned = pickle.loads(pickle.dumps(data))  # as workers get it that are not forked
    for read in (forked, (spawned[index] for index in range(len(spawned)))):
        for _, (image, target, name), mine in zip(range(7), read, before, strict=True):
            assert name == mine.name
            assert torch.as_tensor(image).equal(mine.image)
            assert torch.as_tensor(target).equal(mine.target)


def test_shards_of_a_size(tmp_path):
    root = tmp_path / "tree"
    root.mkdir()
    (root / "classes.yaml").write_text("classes: [road, car]")
    for name in "abcde":
        write_image(root / f"train/images/{name}.png", (400, 500))
        write_mask(root / f"train/masks/{name}.png", (400, 500))
    pack(DataConfig(name="folder", root=root, workers=0), tmp_path / "out", shard_mb=1, splits=["train"])
    assert [chunk["chunk_size"] for chunk in json.loads((tmp_path / "out/train/index.json").read_text())["chunks"]] == [
        1
    ] * 5


def test_workers_write_what_one_process_writes(tmp_path, source):
    for workers in (0, 2):
        pack(source.model_copy(update={"workers": workers}), tmp_path / str(workers), splits=["train"])
        assert_same(source, packed(tmp_path / str(workers)), "train", training=True)


def test_an_interrupted_pack_is_no_pack_and_is_continued(tmp_path, source, monkeypatch):
    """Interrupted in the second split: the first is kept."""
    out, encode, encoded = tmp_path / "out", Encoder.encode, []

    def interrupt(self, index):
        if self.source.split == "val" and index == 5:
            raise KeyboardInterrupt
        encoded.append((self.source.split, index))
        return encode(self, index)

    monkeypatch.setattr(Encoder, "encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack(source, out, shards=3)
    assert encoded[-1] == ("val", 4)
    monkeypatch.setattr(Encoder, "encode", encode)
    kept = (out / "train/chunk-0-0.bin").stat().st_mtime_ns
    with pytest.raises(SegtailorError, match="is unfinished; give the same `segtailor data pack` command"):
        create_dataset(packed(out), "train", True)
    with pytest.raises(SegtailorError, match=r"unfinished pack with other settings \(encoding\)"):
        pack(source, out, shards=3, encoding="png")
    pack(source, out, shards=3)
    assert (out / "train/chunk-0-0.bin").stat().st_mtime_ns == kept
    assert {path.name for path in out.iterdir()} == {"manifest.json", "train", "val"}
    for split in ("train", "val"):
        assert_same(source, packed(out), split, training=split == "train")


def test_a_sample_that_cannot_be_read_stops_the_pack_in_one_line_and_it_continues_when_fixed(tmp_path, source):
    broken = source.root / "train/d.png"
    content = broken.read_bytes()
    truncate(broken)
    for workers in (0, 2):
        with pytest.raises(SegtailorError, match=r"cannot read .*d\.png: truncated") as caught:
            pack(source.model_copy(update={"workers": workers}), tmp_path / "out", shards=3)
        assert "\n" not in str(caught.value)
    broken.write_bytes(content)
    pack(source, tmp_path / "out", shards=3)
    assert_same(source, packed(tmp_path / "out"), "train", training=True)


def damage(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def place(out: Path, number: int, part: int) -> int:
    """Return where in its chunk the middle of a part of a sample is: 1 the image, 2 the target."""
    chunk = (out / "train/chunk-0-0.bin").read_bytes()
    count = int(np.frombuffer(chunk, np.uint32, 1)[0])
    begin = int(np.frombuffer(chunk, np.uint32, count + 1, 4)[number])
    sizes = np.frombuffer(chunk, np.uint32, 5, begin)
    return begin + 20 + int(sizes[:part].sum()) + int(sizes[part]) * 3 // 4


@pytest.mark.parametrize("part", [1, 2])
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_damaged_chunk_is_one_line(tmp_path, source, part, encoding):
    out = tmp_path / "out"
    pack(source, out, encoding=encoding, splits=["train"])
    damage(out / "train/chunk-0-0.bin", place(out, 2, part))
    data = create_dataset(packed(out), "train", True)
    assert data[1].name == "b"
    with pytest.raises(SegtailorError, match=r"train is damaged at the sample c .*checksum") as caught:
        data[2]
    assert "\n" not in str(caught.value)


def test_chunks_that_are_short_or_missing_are_found_on_opening(tmp_path, source):
    out = tmp_path / "out"
    pack(source, out, shards=3)
    truncate(out / "train/chunk-0-1.bin")
    (out / "train/chunk-0-2.bin").unlink()
    with pytest.raises(
        SegtailorError, match=r"2 of 4 files not whole: chunk-0-1\.bin \(\d+ of \d+ bytes\), chunk-0-2\.bin \(missing"
    ):
        create_dataset(packed(out), "train", True)
    assert len(create_dataset(packed(out), "val", False)) == 7


def test_a_pack_in_an_object_store(tmp_path, source, monkeypatch):
    """`local:` makes litdata treat a folder as a store: manifest and chunks are copied into its cache first."""
    monkeypatch.setenv("DATA_OPTIMIZER_CACHE_FOLDER", str(tmp_path / "cache"))
    pack(source, tmp_path / "out", shards=3, splits=["train"])
    assert_same(source, packed(Path(f"local:{tmp_path / 'out'}")), "train", training=True)
    with pytest.raises(
        SegtailorError, match=r"cannot read local:.*/none/manifest\.json: .*; check data\.root"
    ) as caught:
        create_dataset(packed(Path(f"local:{tmp_path}/none")), "train", True)
    assert "\n" not in str(caught.value)
    assert is_remote("s3://bucket/pack")


def test_without_the_library_one_line_says_what_to_install(tmp_path, source, monkeypatch):
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(SegtailorError, match=r"packs need litdata: pip install litdata"):
        pack(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_pack_is_an_error(tmp_path, source):
    with pytest.raises(SegtailorError, match=r"needs data\.root"):
        create_dataset(DataConfig(name="packed"), "train", True)
    with pytest.raises(SegtailorError, match="no such folder"):
        create_dataset(packed(tmp_path / "none"), "train", True)
    with pytest.raises(SegtailorError, match=r"no pack in .*: manifest\.json is missing"):
        create_dataset(packed(source.root), "train", True)
    out = tmp_path / "out"
    pack(source, out)
    with pytest.raises(SegtailorError, match=r"unknown split of the pack in .*'test'; nearest: "):
        create_dataset(packed(out), "test", False)
    manifest = out / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(
        SegtailorError, match=r"manifest\.json is of another version of segtailor; pack again"
    ) as caught:
        create_dataset(packed(out), "val", False)
    assert "\n" not in str(caught.value)
    truncate(manifest)
    with pytest.raises(SegtailorError, match=r"manifest\.json is damaged"):
        create_dataset(packed(out), "val", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "jpg"}, "unknown --format 'jpg'; nearest: jpeg"),
        ({"quality": 0}, "--quality is 1 to 100, not 0"),
        ({"quality": 50}, "--quality is for --format jpeg, not raw; leave it out"),
        ({"quality": 95, "encoding": "png"}, "--quality is for --format jpeg, not png"),
        ({"shards": 2, "shard_mb": 256}, "--shards and --shard-size exclude each other"),
        ({"shards": 0}, "at least 1"),
        ({"shard_mb": 0}, "at least 1"),
        ({"splits": ["a.b", "a_b"]}, "would have the same names; pack each alone"),
        ({"splits": ["tests"]}, "unknown split of camvid .tests.; nearest: test"),
    ],
)
def test_settings_that_do_not_fit_leave_nothing(tmp_path, source, options, message):
    with pytest.raises(SegtailorError, match=message):
        pack(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_keep_needs_files_of_their_own_size(tmp_path, source):
    with pytest.raises(SegtailorError, match=r"keep copies image files as they are; leave out data\.size"):
        pack(source.model_copy(update={"size": (8, 10)}), tmp_path / "out", encoding="keep")
    with pytest.raises(SegtailorError, match="keep copies image files, and toy has none"):
        pack(DataConfig(name="toy", length=2), tmp_path / "out", encoding="keep", splits=["train"])


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, source):
    out = tmp_path / "out"
    pack(source, out)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    with pytest.raises(SegtailorError, match="is a complete pack already"):
        pack(source, out, encoding="png")
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    with pytest.raises(SegtailorError, match="holds other files"):
        pack(source, source.root)


def test_a_disk_that_is_too_small_is_an_error_before_the_first_file(tmp_path, source, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(SegtailorError, match=r"the pack takes about 0\.0 GB, and .* free some space"):
        pack(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("train/*"))


def test_a_pack_is_read_faster_than_png_files(tmp_path):
    for number in range(8):
        y, x = np.mgrid[:360, :480]
        waves = 110 + 60 * np.sin(x / 40 + number) + 50 * np.cos(y / 30)
        noise = np.random.default_rng(number).normal(0, 4, (360, 480, 3))
        for folder in ("train", "trainannot"):
            (tmp_path / "camvid" / folder).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((waves[..., None] + noise).clip(0, 255).astype(np.uint8))
        image.save(tmp_path / f"camvid/train/{number}.png")
        Image.fromarray(((x + y) // 90).astype(np.uint8)).save(tmp_path / f"camvid/trainannot/{number}.png")
    source = camvid(tmp_path / "camvid")
    pack(source, tmp_path / "out", splits=["train"])
    seconds = []
    for config in (source, packed(tmp_path / "out")):
        data = create_dataset(config, "train", True)
        times = []
        for _ in range(5):
            began = time.perf_counter()
            for index in range(len(data)):
                data[index]
            times.append(time.perf_counter() - began)
        seconds.append(min(times))
    assert seconds[0] / seconds[1] > 1.5


def test_a_pack_can_be_packed_again(tmp_path):
    source = DataConfig(name="toy", size=(24, 32), length=3, workers=0)
    pack(source, tmp_path / "raw", splits=["train"])
    again = packed(tmp_path / "raw", size=(24, 32))
    pack(again, tmp_path / "png", encoding="png", splits=["train"])
    assert_same(source, packed(tmp_path / "png"), "train", training=True)
