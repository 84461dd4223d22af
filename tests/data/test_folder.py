from __future__ import annotations

import unicodedata

import pytest
import torch

from segtailor.config import DataConfig
from segtailor.data import VOID, create_dataset
from segtailor.errors import SegtailorError

from .trees import write_folder, write_image, write_mask, write_pair


def open_split(root, split="train", **options):
    return create_dataset(DataConfig(name="folder", root=root, **options), split, True)


def test_split_first_layout_with_plain_names(tmp_path):
    data = open_split(write_folder(tmp_path))
    assert data.classes == ("road", "car")
    assert len(set(data.palette)) == 2
    assert [sample.name for sample in (data[0], data[1])] == ["a", "b"]


def test_kind_first_layout_with_folders_in_it(tmp_path):
    (tmp_path / "classes.yaml").write_text("classes: {road: [1, 2, 3], car: [4, 5, 6]}")
    for name in ("one/a", "two/a"):
        write_pair(tmp_path / "images" / "val", tmp_path / "masks" / "val", name, ".jpg")
    data = open_split(tmp_path, "val")
    assert data.palette == ((1, 2, 3), (4, 5, 6))
    assert [pair.name for pair in data.pairs] == ["one/a", "two/a"]


def test_splits_name_folders_or_a_list(tmp_path):
    write_pair(tmp_path / "photos", tmp_path / "labels", "x")
    (tmp_path / "classes.yaml").write_text("classes: [road, car]")
    (tmp_path / "val.txt").write_text("# image mask\nphotos/x.png\tlabels/x.png\n\n")
    splits = {"train": {"images": "photos", "masks": "labels"}, "val": {"list": "val.txt"}, "odd": {"images": "photos"}}
    assert len(open_split(tmp_path, "train", splits=splits)) == 1
    assert len(open_split(tmp_path, "val", splits=splits)) == 1
    with pytest.raises(SegtailorError, match=r"data\.splits\.odd needs"):
        open_split(tmp_path, "odd", splits=splits)
    with pytest.raises(SegtailorError, match="unknown split 'vall'; nearest: val"):
        open_split(tmp_path, "vall", splits=splits)


def test_values_and_void_say_what_the_masks_mean(tmp_path):
    write_folder(tmp_path, classes="classes: [road, car]\nvalues: [1, 9]\nvoid: [0]", splits=())
    write_pair(tmp_path / "train/images", tmp_path / "train/masks", "a", values=(0, 1, 9, 255))
    assert open_split(tmp_path)[0].target.flatten()[:4].tolist() == [VOID, 0, 1, VOID]


def test_palette_masks_are_read_as_indices(tmp_path):
    write_folder(tmp_path, splits=())
    palette = [255 - value // 3 for value in range(768)]
    write_pair(tmp_path / "train/images", tmp_path / "train/masks", "a", values=(0, 1, 255), palette=palette)
    assert set(open_split(tmp_path)[0].target.unique().tolist()) == {0, 1, VOID}


def test_the_classes_file_may_lie_elsewhere(tmp_path):
    (tmp_path / "names.yaml").write_text("classes: [x, y, z]\nlicence: CC0-1.0\nmean_color: [1, 2, 3]")
    data = open_split(write_folder(tmp_path / "data"), classes=tmp_path / "names.yaml")
    assert (data.num_classes, data.license, data.mean_color) == (3, "CC0-1.0", (1, 2, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [a, b]\nvoids: [3]", "unknown key 'voids'; nearest: void"),
        ("classes: {a: [1, 2, 3], b: [1, 2, 300]}", "less than or equal to 255"),
        ("classes: [a, b]\nvalues: [1]", "1 entries for 2 classes"),
        ("classes: [a, b]\nvalues: [4, 4]", "two classes have the same mask value"),
        ("classes: [a, b]\nvoid: [1]", "are classes already"),
        ("- a\n- b", "holds no mapping"),
        ("classes: [a", "cannot read .* as YAML"),
        ("classes: []", "names no class"),
        ("classes: [road, no]", "the class name that YAML reads as False needs quotes"),
        ("classes: [road, 2024]", "the class name that YAML reads as 2024 needs quotes"),
        ("classes: [a]\nvoid: [1]\nvoid: [2]", "duplicate key 'void'"),
        ("classes: {[1]: a}", "cannot read .* as YAML"),
        ("palette: []", "'classes' is missing"),
        (f"classes: [{', '.join(f'c{index}' for index in range(256))}]", "has 256 classes, but at most 255"),
    ],
)
def test_a_wrong_classes_file_is_one_line(tmp_path, text, message):
    write_folder(tmp_path, classes=text)
    with pytest.raises(SegtailorError, match=message) as caught:
        open_split(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(SegtailorError, match=r"needs data\.root"):
        open_split(None)
    with pytest.raises(SegtailorError, match=r"no such folder: .*nowhere"):
        open_split(tmp_path / "nowhere")
    with pytest.raises(SegtailorError, match=r"no such file: .*classes\.yaml"):
        open_split(tmp_path)
    with pytest.raises(SegtailorError, match="no such folder: looked for"):
        open_split(write_folder(tmp_path), "test")
    write_mask(tmp_path / "train/masks/c.png")
    with pytest.raises(SegtailorError, match="1 mask without an image: c"):
        open_split(tmp_path)


def test_classes_may_be_names_by_mask_value(tmp_path):
    write_folder(tmp_path, classes="classes: {1: car, 0: road}")
    data = open_split(tmp_path)
    assert (data.classes, data.values.classes) == (("car", "road"), {1: 0, 0: 1})


def test_names_match_however_their_accents_are_written(tmp_path):
    write_folder(tmp_path)
    write_image(tmp_path / "train/images" / f"{unicodedata.normalize('NFD', 'café')}.png")
    write_mask(tmp_path / "train/masks/café.png")
    assert [pair.name for pair in open_split(tmp_path).pairs] == ["a", "b", "café"]


def test_images_of_a_kind_that_is_not_read_are_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train/images/a.png").rename(tmp_path / "train/images/a.avif")
    with pytest.raises(SegtailorError, match=r"1 mask without an image: a; \.avif files are not read: save"):
        open_split(tmp_path)


def test_two_images_of_one_name_are_an_error(tmp_path):
    write_folder(tmp_path)
    write_pair(tmp_path / "train/images", tmp_path / "train/masks", "a", ".jpg")
    with pytest.raises(SegtailorError, match="1 name belongs to several files"):
        open_split(tmp_path)


def test_targets_are_tensors_of_bytes(tmp_path):
    sample = open_split(write_folder(tmp_path), size=(5, 7))[0]
    assert sample.target.dtype == torch.uint8
    assert sample.target.shape == (5, 7)
