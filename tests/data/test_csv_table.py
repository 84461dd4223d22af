from __future__ import annotations

import numpy as np
import pytest

from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.data.check import check_files
from segtailor.errors import SegtailorError

from .own_trees import TARGET, save, write_colors
from .trees import write_pair

ROWS = (("photos/a.jpg", "labels/a.png", "train"), ("photos/b.jpg", "labels/b.png", "val"),
        ("photos/c.jpg", "labels/c.png", "train"))  # fmt: skip


def write_table(root, name="pairs.csv", rows=ROWS, header=("image", "mask", "split"), delimiter=",", classes=True):
    for row in rows:
        write_pair(root / "photos", root / "labels", row[0].split("/")[-1].split(".")[0], ".jpg")
    text = "\n".join(delimiter.join(row) for row in (header, *rows)) + "\n"
    (root / name).write_text(text)
    if classes:
        (root / "classes.yaml").write_text("classes: [road, car]")
    return root / name


def open_split(table, split="train", **options):
    return create_dataset(DataConfig(name="csv", annotations=table, **options), split, True)


def names(data):
    return [pair.name for pair in data.pairs]


def test_rows_belong_to_the_split_that_their_column_names(tmp_path):
    table = write_table(tmp_path)
    train, val = open_split(table), open_split(table, "val")
    assert (names(train), names(val)) == (["photos/a", "photos/c"], ["photos/b"])
    assert train[1].target.unique().tolist() == [0, 1]
    assert train.classes == ("road", "car")
    check_files(train)


@pytest.mark.parametrize(("name", "delimiter"), [("x.tsv", "\t"), ("x.csv", ";"), ("x.csv", "\t"), ("x.txt", "|")])
def test_tables_of_other_delimiters(tmp_path, name, delimiter):
    assert names(open_split(write_table(tmp_path, name, delimiter=delimiter))) == ["photos/a", "photos/c"]


def test_columns_of_other_names_in_any_order_quotes_and_a_byte_order_mark(tmp_path):
    write_table(tmp_path)
    text = '\ufeff"label path","id","file, photo"\n"labels/a.png",7,"photos/a, 1.jpg"\n\n'
    (tmp_path / "photos/a.jpg").rename(tmp_path / "photos/a, 1.jpg")
    (tmp_path / "train.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SegtailorError, match=r"unknown column of .* 'image'; nearest: "):
        open_split(tmp_path / "{split}.csv")
    data = open_split(tmp_path / "{split}.csv", mask_column="label path", image_column="file, photo")
    assert names(data) == ["photos/a, 1"]


def test_each_split_may_have_a_table_of_its_own(tmp_path):
    write_table(tmp_path, "train.csv", [row[:2] for row in ROWS[:2]], ("image", "mask"))
    write_table(tmp_path, "val.csv", [row[:2] for row in ROWS[2:]], ("image", "mask"))
    data = [open_split("{split}.csv", split, root=tmp_path) for split in ("train", "val")]
    assert [len(part) for part in data] == [2, 1]
    with pytest.raises(SegtailorError, match=r"no such file: test\.csv and .*test\.csv .*for the split test"):
        open_split("{split}.csv", "test", root=tmp_path)


def test_paths_are_under_the_root_or_beside_the_table_or_absolute(tmp_path):
    tables, images = tmp_path / "tables", tmp_path / "images"
    tables.mkdir()
    image, mask = write_pair(tmp_path / "far", tmp_path / "far", "z", ".jpg")
    rows = [*ROWS[:1], (str(image), str(mask), "train")]
    write_table(images, rows=rows).rename(tables / "pairs.csv")
    (tables / "beside.jpg").write_bytes((images / "photos/a.jpg").read_bytes())
    (tables / "beside.png").write_bytes((images / "labels/a.png").read_bytes())
    with (tables / "pairs.csv").open("a") as file:
        file.write("beside.jpg,beside.png,train\n")
    data = open_split(tables / "pairs.csv", root=images)
    assert names(data) == ["photos/a", str(image).lstrip("/").removesuffix(".jpg"), "beside"]
    assert [data[index].target.shape for index in range(3)] == [(12, 16)] * 3


def test_masks_of_colors(tmp_path):
    colors = {0: (1, 1, 1), 1: (2, 2, 2), 255: (3, 3, 3)}
    write_colors(tmp_path, colors)
    (tmp_path / "classes.yaml").write_text("classes: {a: [1, 1, 1], b: [2, 2, 2]}\nvoid_colors: [[3, 3, 3]]")
    (tmp_path / "train.csv").write_text("image,mask\ntrain/images/a.png,train/masks/a.png\n")
    assert open_split(tmp_path / "{split}.csv", masks="color")[0].target.tolist() == TARGET
    with pytest.raises(SegtailorError, match=r"data\.masks cannot be binary"):
        open_split(tmp_path / "{split}.csv", masks="binary")


def test_values_from_the_recipe(tmp_path):
    table = write_table(tmp_path, rows=ROWS[:1])
    save(tmp_path / "labels/a.png", np.where(np.arange(192).reshape(12, 16) < 96, 5, 9).astype(np.uint8))
    with pytest.raises(SegtailorError, match=r"holds the values 5 .*, 9 .*: none of the 2 classes"):
        open_split(table)[0]
    assert open_split(table, values=[9, 5])[0].target.unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown column of .* 'image'"),
        ("image,masks,split\nx,y,train\n", r"unknown column of .* 'mask'; nearest: masks.* Set data\.mask_column"),
        ("image,mask,split\n", "has a header but no rows"),
        ("image,mask,split\nphotos/a.jpg,,train\nphotos/b.jpg\n", "2 rows without image or mask or split: line 2, 3"),
        ("image,mask,split\nphotos/a.jpg,labels/a.png,vall\n", "unknown split of .* 'train'; nearest: vall"),
        ("image,mask\nphotos/a.jpg,labels/a.png\n", "does not assign rows to the split train"),
        (
            "image,mask,split\nphotos/x.jpg,labels/a.png,train\nphotos/y.jpg,labels/y.png,train\n",
            r"2 images missing: photos/x\.jpg \(line 2\), photos/y\.jpg \(line 3\); 1 mask missing: labels/y\.png",
        ),
        (
            "image,mask,split\nphotos/a.jpg,labels/a.png,train\nphotos/a.jpg,labels/b.png,train\n",
            r"names 1 images more than once: .*a\.jpg",
        ),
        ('image,mask,split\n"photos/a.jpg,labels/a.png,train\n' + "x" * 200_000, "cannot read .* as a table"),
    ],
)
def test_bad_tables_are_one_line(tmp_path, text, message):
    table = write_table(tmp_path)
    table.write_text(text)
    with pytest.raises(SegtailorError, match=message) as caught:
        open_split(table)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(SegtailorError, match=r"needs data\.annotations: a CSV or TSV"):
        open_split(None)
    with pytest.raises(SegtailorError, match=r"no such file: .*pairs\.csv"):
        open_split(tmp_path / "pairs.csv")
    with pytest.raises(SegtailorError, match=r"no such folder: .*nowhere"):
        open_split(tmp_path / "pairs.csv", root=tmp_path / "nowhere")
    with pytest.raises(SegtailorError, match=r"no such file: .*classes\.yaml"):
        open_split(write_table(tmp_path, classes=False))
    (tmp_path / "pairs.csv").write_bytes(b"image,mask\n\xff\xfe\x00\n")
    (tmp_path / "classes.yaml").write_text("classes: [road, car]")
    with pytest.raises(SegtailorError, match="as a table"):
        open_split(tmp_path / "pairs.csv")
