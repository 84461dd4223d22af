"""`segtailor data check` as a user meets it, and what it writes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data import street_trees as street
from data.street_trees import image, mask, write_street
from data.trees import truncate
from segtailor.config import DataConfig
from segtailor.data.check import check_data
from segtailor.data.check.report import RULES, SPLITS, draw_histogram
from segtailor.data.check.scan import Tally


@pytest.fixture
def run(run_data):
    return partial(run_data, "check")


FOLDER = ("--data.name", "folder", "--data.root", "street")


def test_data_without_a_fault(run, tmp_path):
    write_street(tmp_path / "street")
    code, out, error = run(*FOLDER)
    assert (code, error) == (0, "")  # a bar is shown on terminals alone
    assert out.startswith("street: 32 samples (train 24, val 8) checked in ")
    assert "0 errors, 0 warnings, 0 notes" in out
    folder = tmp_path / "runs" / "data-check-street"
    assert sorted(path.name for path in folder.iterdir()) == ["classes.png", "report.json", "report.txt"]
    assert (folder / "report.txt").read_text() == out


def test_a_bar_is_shown_on_a_terminal(run, tmp_path, monkeypatch):
    write_street(tmp_path / "street", train=2, val=1)
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take a pipe for a terminal
    monkeypatch.setenv("TERM", "xterm")
    assert "checking" in run(*FOLDER)[2]


def test_findings_are_counted_with_three_files_and_their_fix(run, tmp_path):
    root = write_street(tmp_path / "street")
    for path in street.all_masks(root):
        street.change(path, street.one_more)
    for index in range(5):
        truncate(image(root, "train", index))
    (tmp_path / "my.yaml").write_text("data: {name: folder, root: elsewhere}\nmodel: {model: pspnet-resnet18}\n")
    code, out, _ = run("my.yaml", "--data.root", "street", "--out", "here")
    assert code == 1
    lines = out.splitlines()
    start = lines.index("error    5 images that are truncated")
    assert lines[start + 1 : start + 5] == [
        *(
            f"         street/train/images/{index:03d}.png (truncated)".replace(" (truncated)", "")
            for index in range(3)
        ),
        "         and 2 more",
    ]
    assert "         fix: data.values: [1, 2, 3, 4, 5, 6]" in lines
    assert "5 files cannot be read: all are listed in report.json" in lines
    report = json.loads((tmp_path / "here" / "report.json").read_text())
    assert (report["errors"], report["warnings"]) == (2, 0)
    assert report["unreadable"]["count"] == 5
    assert report["unreadable"]["files"][4] == {"path": "street/train/images/004.png", "detail": "truncated"}
    shifted = next(finding for finding in report["findings"] if finding["kind"] == "labels-one-too-high")
    assert shifted["recipe"] == {"data.values": [1, 2, 3, 4, 5, 6]}
    assert (shifted["severity"], shifted["count"], len(shifted["files"])) == ("error", 32, 32)
    # the fixed recipe passes, but for the truncated files
    code, out, _ = run("my.yaml", "--data.root", "street", "--data.values", "[1, 2, 3, 4, 5, 6]")
    assert code == 1
    assert "1 error, 0 warnings" in out


def test_warnings_alone_exit_with_0(run, tmp_path):
    root = write_street(tmp_path / "street")
    street.change(mask(root, "train", 1), street.corner(255))
    code, out, _ = run(*FOLDER)
    assert code == 0
    assert "0 errors, 1 warning, 0 notes" in out
    assert "fix: data.void: [255]" in out


def test_splits_by_default_and_by_choice(run, tmp_path):
    root = write_street(tmp_path / "street", train=3, val=2)
    for kind in ("images", "masks"):
        (root / "test" / kind).mkdir(parents=True)
    street.save(image(root, "test", 0), street.photo(77))
    street.save(mask(root, "test", 0), street.scene(77))
    assert "(train 3, val 2, test 1)" in run(*FOLDER)[1]
    assert "(train 3, val 2)" in run(*FOLDER, "--split", "train,val")[1]
    assert "(test 1)" in run(*FOLDER, "--split", "test")[1]
    # a split of the recipe that is not there is a finding, and the other one is checked
    assert "--split 'train, ' names a split of no name" in run(*FOLDER, "--split", "train, ")[2]
    code, out, _ = run(*FOLDER, "--data.val_split", "valid")
    assert code == 1
    assert "the split valid cannot be checked: no such folder" in out
    assert "(train 3, test 1)" in out


def test_the_same_files_under_any_name_are_no_test_split(tmp_path):
    root = write_street(tmp_path / "street", train=3, val=2)
    splits = {
        name: {"images": f"{folder}/images", "masks": f"{folder}/masks"}
        for name, folder in {"train": "train", "val": "val", "test": "val"}.items()
    }
    report = check_data(DataConfig(name="folder", root=root, splits=splits), out=tmp_path / "out")
    assert [found.split for found in report.tallies] == ["train", "val"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "say which data: give a recipe first, or --data.name NAME --data.root FOLDER"),
        (("--data.name", "folder", "--data.root", "none"), "no such folder: none"),
        (("--data.name", "camvit"), "unknown data set 'camvit'; nearest: camvid"),
        ((*FOLDER, "--split", "train,nowhere"), "no such folder: looked for street/nowhere/images"),
        ((*FOLDER, "--data.classes", "none.yaml"), "no such file: none.yaml"),
        ((*FOLDER, "--out", "street/classes.yaml"), "cannot write the report into street/classes.yaml"),
        ((*FOLDER, "--train.steps", "3"), "--train.steps is no setting of the data"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, words, message):
    write_street(tmp_path / "street", train=1, val=1)
    code, out, error = run(*words)
    assert (code, out) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_nothing_that_fits_together_is_one_line_that_counts(run, tmp_path):
    root = write_street(tmp_path / "street", train=4, val=2)
    for path in street.all_masks(root):
        path.rename(path.with_name(f"label-{path.name}"))
    code, _, error = run(*FOLDER)
    assert code == 2
    assert "4 images without a mask: 000, 001, 002 and 1 more" in error


def test_unwritable_folder(run, tmp_path, monkeypatch):
    write_street(tmp_path / "street", train=1, val=1)
    (tmp_path / "out" / "report.json").mkdir(parents=True)
    code, _, error = run(*FOLDER, "--out", "out")
    assert code == 2
    assert "cannot write the report into out" in error


def pixels_of(path, color):
    with Image.open(path) as file:
        return int((np.array(file.convert("RGB")) == color).all(axis=2).sum())


def test_histogram_has_a_bar_for_each_class_and_split(tmp_path):
    def tally(split, pixels):
        pixels = np.array(pixels)
        return Tally(split, 4, pixels, (pixels > 0) * 3, 10, 0, [], {})

    names, palette = ("road", "a class whose name is far too long to fit beside its bar"), ((9, 9, 9), (1, 2, 3))
    path = tmp_path / "classes.png"
    draw_histogram(path, "streets", names, palette, [tally("train", [900, 100]), tally("val", [1000, 0])])
    with Image.open(path) as file:
        size = file.size
    both = [pixels_of(path, color) for color in SPLITS[:2]]
    draw_histogram(path, "streets", names, palette, [tally("train", [900, 0]), tally("val", [1000, 0])])
    with Image.open(path) as file:
        assert file.size == size
    fewer = [pixels_of(path, color) for color in SPLITS[:2]]
    assert fewer[0] < 0.7 * both[0]
    assert fewer[1] == both[1]
    # 255 classes, and no labels at all, are drawn as well
    draw_histogram(path, "many", [f"class {n}" for n in range(255)], [(n, n, n) for n in range(255)], [])
    with Image.open(path) as file:
        assert file.height > 255 * 10


def test_masks_that_cannot_be_counted_are_not_called_empty(run, tmp_path, monkeypatch):
    """Colors read as numbers: no class can be counted, which is not the absence of classes."""
    root = write_street(tmp_path / "street", train=2, val=1)
    for path in street.all_masks(root):
        street.paint(path)
    drawn = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, at, words, *more, **kw: (drawn.append(words), text(self, at, words, *more, **kw)),
    )
    assert run(*FOLDER)[0] == 1
    assert "no mask of train was counted" in drawn
    assert "not in train" not in drawn


def test_the_documentation_lists_every_kind_of_finding():
    text = (Path(__file__).parents[2] / "docs" / "data-check.md").read_text(encoding="utf-8")
    kinds = {rule.partition("/")[0] for rule in RULES}
    files = {
        f"{reason}-{role}"
        for reason in ("empty", "truncated", "undecodable", "unreadable")
        for role in ("image", "mask")
    }
    assert files <= kinds
    assert [kind for kind in sorted(kinds - files) if f"`{kind}`" not in text] == []
