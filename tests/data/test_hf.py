from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segtailor.config import DataConfig
from segtailor.data import VOID, create_dataset
from segtailor.data.check import check_files
from segtailor.data.hf import slice_rows
from segtailor.errors import SegtailorError

from .fake_hub import FakeHub
from .own_trees import TARGET, write_colors, write_sideways

datasets = pytest.importorskip("datasets")
SIZE = (2, 3)
COLORS = {0: (128, 64, 128), 1: (0, 0, 142), VOID: (0, 0, 0)}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder))
    datasets.disable_progress_bars()
    return folder


def png(pixels) -> dict:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def make_rows(count=5, mask=None):
    images = [png(np.full((*SIZE, 3), index)) for index in range(count)]
    return {"image": images, "mask": [mask or png(TARGET)] * count}


def make(rows, mask_feature=None):
    features = {"image": datasets.Image(), "mask": mask_feature or datasets.Image()}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def write_parquet(folder, rows=None, splits=("train", "validation"), mask_feature=None, files=1):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split in splits:
        data = make(rows or make_rows(), mask_feature)
        for number in range(files):
            path = folder / "data" / f"{split}-{number:05d}-of-{files:05d}.parquet"
            data.shard(files, number, contiguous=True).to_parquet(path)
    (folder / "names.yaml").write_text("classes: [road, car]")
    return folder


def open_split(source, split="train", training=True, classes="names.yaml", **options):
    path = source / classes if classes else None
    return create_dataset(DataConfig(name="hf", source=str(source), classes=path, **options), split, training)


def test_images_and_masks_of_a_folder_of_parquet_files(tmp_path):
    data = open_split(write_parquet(tmp_path))
    assert (len(data), data.classes, data.name) == (5, ("road", "car"), "hf")
    assert [data[index].image.unique().tolist() for index in range(5)] == [[0], [1], [2], [3], [4]]
    assert data[4].target.tolist() == TARGET
    assert data[4].name == "train-000004"
    assert pickle.loads(pickle.dumps(data))[4].target.tolist() == TARGET
    assert open_split(tmp_path, "validation", False, size=(4, 6))[0].target.shape == SIZE
    assert open_split(tmp_path, size=(4, 6))[0].target.shape == (4, 6)


@pytest.mark.parametrize("several", [True, False])
def test_folders_that_save_to_disk_wrote(tmp_path, cache, several):
    data = make(make_rows())
    (datasets.DatasetDict(train=data, val=data) if several else data).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "names.yaml").write_text("classes: [road, car]")
    data = open_split(tmp_path / "saved")
    assert data[3].target.tolist() == TARGET
    assert not list(cache.iterdir())  # read in place
    with pytest.raises(SegtailorError, match=r"unknown split of .*saved 'test'; nearest: "):
        open_split(tmp_path / "saved", "test")


def test_class_names_of_the_features_and_masks_that_are_arrays(tmp_path):
    grid = [[0 if value == VOID else value for value in row] for row in TARGET]
    label = datasets.ClassLabel(names=["road", "car"])
    write_parquet(tmp_path, make_rows(mask=grid), mask_feature=datasets.Sequence(datasets.Sequence(label)))
    data = open_split(tmp_path, classes=None)
    assert data.classes == ("road", "car")
    assert data[0].target.tolist() == grid
    write_parquet(tmp_path / "b", make_rows(mask=TARGET), mask_feature=datasets.Array2D(SIZE, "int32"))
    assert open_split(tmp_path / "b")[0].target.tolist() == TARGET
    write_parquet(tmp_path / "c", make_rows(mask=[TARGET]), mask_feature=datasets.Array3D((1, *SIZE), "int32"))
    assert open_split(tmp_path / "c")[0].target.tolist() == TARGET
    write_parquet(tmp_path / "d", make_rows(mask=[TARGET] * 2), mask_feature=datasets.Array3D((2, *SIZE), "int32"))
    with pytest.raises(SegtailorError, match=r"cannot read mask 0 of .*: it has the shape \(2, 2, 3\), not \(height"):
        open_split(tmp_path / "d")[0]


def test_masks_of_fractions_are_refused(tmp_path):
    rows = make_rows(mask=[[0.0, 0.5, 1.0], [0.0, 1.0, 1.0]])
    write_parquet(tmp_path, rows, mask_feature=datasets.Sequence(datasets.Sequence(datasets.Value("float32"))))
    with pytest.raises(SegtailorError, match=r"cannot read mask 0 of .*: its numbers are not whole, as class indices"):
        open_split(tmp_path)[0]


def test_class_names_of_id2label(tmp_path):
    write_parquet(tmp_path, make_rows(mask=png([[3, 7, 7], [255, 3, 7]])))
    (tmp_path / "id2label.json").write_text(json.dumps({"7": "car", "3": "road"}))
    data = open_split(tmp_path, classes=None)
    assert (data.classes, data[0].target.tolist()) == (("road", "car"), TARGET)
    (tmp_path / "id2label.json").write_text("[1]")
    with pytest.raises(SegtailorError, match="is no mapping of mask values to names"):
        open_split(tmp_path, classes=None)


def test_without_class_names_the_error_says_where_to_write_them(tmp_path):
    with pytest.raises(SegtailorError, match=r"does not name its classes; .* set data\.classes"):
        open_split(write_parquet(tmp_path), classes=None)


def test_more_classes_than_a_byte_holds_is_an_error(tmp_path):
    label = datasets.ClassLabel(names=[f"class {number}" for number in range(256)])
    write_parquet(tmp_path, make_rows(mask=[[0]]), mask_feature=datasets.Sequence(datasets.Sequence(label)))
    with pytest.raises(SegtailorError, match="has 256 classes, but at most 255 are supported"):
        open_split(tmp_path, classes=None)


def test_masks_of_colors_and_values_of_the_recipe(tmp_path):
    pixels = [[COLORS[value] for value in row] for row in TARGET]
    write_parquet(tmp_path / "a", make_rows(mask=png(pixels)))
    (tmp_path / "a/names.yaml").write_text("classes: {a: [128, 64, 128], b: [0, 0, 142]}\nvoid_colors: [[0, 0, 0]]")
    assert open_split(tmp_path / "a", masks="color")[0].target.tolist() == TARGET
    with pytest.raises(SegtailorError, match=r"cannot read mask 0 of .* train: .*set data\.masks: color"):
        open_split(tmp_path / "a")[0]
    write_parquet(tmp_path / "b", make_rows(mask=png([[1, 2, 2], [0, 1, 2]])))
    assert open_split(tmp_path / "b", reduce_zero_label=True)[0].target.tolist() == TARGET
    with pytest.raises(SegtailorError, match=r"mask 0 of .* train holds the value 2 .*names\.yaml gives"):
        open_split(tmp_path / "b")[0]


def test_columns_of_other_names_and_kinds(tmp_path):
    write_colors(tmp_path / "files", {0: (0,) * 3, 1: (1,) * 3, VOID: (255,) * 3}, mode="L")
    image, mask = (tmp_path / "files/train" / kind / "a.png" for kind in ("images", "masks"))
    columns = {"photo": [str(image)], "label": [mask.read_bytes()], "number": [7]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved/names.yaml").write_text("classes: [road, car]")
    names = {"image_column": "photo", "mask_column": "label"}
    assert open_split(tmp_path / "saved", **names)[0].target.tolist() == TARGET
    for options, message in (
        ({}, r"unknown column of .*saved 'image'; nearest: .* Set data\.image_column"),
        ({**names, "mask_column": "labels"}, r"'labels'; nearest: label, .* Set data\.mask_column"),
        ({**names, "image_column": "number"}, r"the column number of .* holds .*, no images; set data\.image_column"),
        ({**names, "mask_column": "number"}, r"the column number of .* holds .*, no images; set data\.mask_column"),
    ):
        with pytest.raises(SegtailorError, match=message):
            open_split(tmp_path / "saved", **options)


def test_a_folder_of_image_files_with_a_table(tmp_path):
    write_colors(tmp_path, {0: (0,) * 3, 1: (1,) * 3, VOID: (255,) * 3}, mode="L")
    (tmp_path / "train/masks/a.png").rename(tmp_path / "train/images/a_mask.png")
    (tmp_path / "train/images").rename(tmp_path / "train/files")
    (tmp_path / "train/masks").rmdir()
    line = {"image_file_name": "files/a.png", "mask_file_name": "files/a_mask.png"}
    (tmp_path / "train/metadata.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "names.yaml").write_text("classes: [road, car]")
    assert open_split(tmp_path)[0].target.tolist() == TARGET


def test_parts_of_splits(tmp_path):
    assert slice_rows(7, None, "50%") == range(4)
    assert slice_rows(7, "50%", None) == range(4, 7)
    write_parquet(tmp_path, splits=("train",))
    parts = [open_split(tmp_path, f"train{part}") for part in ("[:80%]", "[80%:]", "[1:3]")]
    assert [[int(part[index].image[0, 0, 0]) for index in range(len(part))] for part in parts] == [
        [0, 1, 2, 3],
        [4],
        [1, 2],
    ]
    with pytest.raises(SegtailorError, match=r"the split 'train\[5' is not of the form"):
        open_split(tmp_path, "train[5")


def test_photos_are_turned_upright_where_their_masks_are(tmp_path):
    upright = write_sideways(tmp_path / "a.jpg", 6)
    rows = {"image": [str(tmp_path / "a.jpg")], "mask": [png(np.zeros((16, 12)))]}
    make(rows).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved/names.yaml").write_text("classes: [road, car]")
    assert open_split(tmp_path / "saved")[0].image.permute(1, 2, 0).numpy().tolist() == upright.tolist()


def test_cells_that_hold_nothing_or_no_image_are_named(tmp_path):
    rows = make_rows(3)
    rows["mask"][1] = None
    rows["image"] = [rows["image"][0], rows["image"][1], {"bytes": b"no image at all", "path": None}]
    data = open_split(write_parquet(tmp_path, rows))
    assert data[0].target.tolist() == TARGET
    with pytest.raises(SegtailorError, match=r"row 1 of .* has no mask"):
        data[1]
    with pytest.raises(
        SegtailorError, match=r"hf train, 3 rows checked: 2 rows cannot be read: .*row 1 of .*image 2 of"
    ):
        check_files(data)
    with pytest.raises(SegtailorError, match=r"cannot read image 2 of .* train: not a readable image; fix"):
        data[2]


def test_what_cannot_be_opened_is_one_line(tmp_path):
    write_parquet(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    for source, options, message in (
        ("./nowhere", {}, r"no such folder: nowhere; set data\.source"),
        (str(tmp_path / "none"), {}, r"no such folder: .*none"),
        (str(tmp_path / "data/names.yaml"), {}, r"data\.source is the file .*names\.yaml"),
        (str(tmp_path / "empty"), {}, "cannot open the Hugging Face data set"),
        (str(tmp_path / "data"), {"config": "big"}, r"'big' not found.*set data\.config"),
        (str(tmp_path / "data"), {"masks": "binary"}, r"data\.masks cannot be binary"),
        (None, {}, r"needs data\.source"),
    ):
        with pytest.raises(SegtailorError, match=message) as caught:
            create_dataset(DataConfig(name="hf", source=source, **options), "train", True)
        assert "\n" not in str(caught.value)
    with pytest.raises(SegtailorError, match=r"unknown split of .* 'val'; nearest: validation, train. Set data\.train"):
        open_split(tmp_path / "data", "val")


def test_the_library_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SegtailorError, match=r"needs datasets: pip install transformers datasets"):
        create_dataset(DataConfig(name="hf", source="a/b"), "train", True)


HUB = """
import json, sys
from pathlib import Path
from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.errors import SegtailorError
import datasets, huggingface_hub
for number, options in enumerate(json.loads(sys.argv[1])):
    if number == 3:  # from here on offline
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        data = create_dataset(DataConfig(name="hf", **options), "train", True)
        print(json.dumps([len(data), list(data.classes), int(data[2].image[0, 0, 0]), data[2].target.tolist()]))
    except SegtailorError as error:
        print(json.dumps(str(error)))
"""


def ask_hub(home, url, options):
    # in another process: the library reads its settings once
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUB, json.dumps(options)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_data_set_of_the_hub(tmp_path):
    repository = write_parquet(tmp_path / "repository", make_rows(6), files=3)
    (repository / "id2label.json").write_text('{"0": "road", "1": "car"}')
    hub = FakeHub(repository, "someone/streets")
    options = [{"source": "someone/streets"}, {"source": "some/other"}, {"source": "someone/streets", "config": "big"}]
    whole, other, config, offline, missing = ask_hub(tmp_path / "home", hub.url, options + options[:2])
    assert whole == [6, ["road", "car"], 2, TARGET]
    assert other.startswith("cannot open the Hugging Face data set some/other: no such folder, and no public")
    assert "set data.config" in config
    # offline: earlier downloads are read, others are an error
    assert offline == whole
    assert "some/other: what it needs from the hub is not in the local cache, and offline mode is on" in missing
    hub.shutdown()
