"""Defects of all masks at once: the lines of the recipe that are proposed do fix them."""

from __future__ import annotations

import numpy as np
import pytest

from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.data.check import check_data
from segtailor.recipes import parse_overrides

from . import street_trees as street
from .street_trees import all_masks, change, write_street


def check(root, tmp_path, **data):
    return check_data(DataConfig(name="folder", root=root, **data), out=tmp_path / "out")


def targets(root, **data):
    config = DataConfig(name="folder", root=root, **data)
    return [
        create_dataset(config, split, False)[index].target.numpy() for split in ("train", "val") for index in (0, 6)
    ]


def settings(finding) -> dict:
    """Read the printed lines of a recipe back, as the command line would."""
    lines = finding.fix()[: len(finding.recipe)]
    words = [word for line in lines for word in (f"--{line.partition(': ')[0]}", line.partition(": ")[2])]
    return {key.removeprefix("data."): value for key, value in parse_overrides(words).items()}


def shift(root, function):
    for path in all_masks(root):
        change(path, function)


def test_a_line_of_the_recipe_fixes_what_is_wrong_with_all_masks(tmp_path):
    original = targets(write_street(tmp_path / "right"))
    for number, (kind, plant, lines) in enumerate(
        [
            (
                "zero-label-not-reduced",
                lambda root: shift(root, street.unreduced),
                {"reduce_zero_label": True},
            ),
            ("labels-one-too-high", lambda root: shift(root, street.one_more), {"values": [1, 2, 3, 4, 5, 6]}),
            ("labels-one-too-low", lambda root: shift(root, street.one_less), {"values": [255, 0, 1, 2, 3, 4]}),
            ("color-masks", lambda root: [street.paint(path) for path in all_masks(root)], {"masks": "color"}),
            (
                "wrong-palette",
                lambda root: [street.permute_palette(path) for path in all_masks(root)],
                {"masks": "color"},
            ),
            (
                "colors-read-as-grey",
                lambda root: shift(root, street.grey),
                {"values": [118, 90, 47, 174, 16, 84], "void": [0]},
            ),
        ]
    ):
        root = write_street(tmp_path / f"{number}")
        plant(root)
        report = check(root, tmp_path)
        assert [finding.kind for finding in report.findings] == [kind]
        assert len(report.findings[0].locations) == street.TRAIN + street.VAL
        fix = settings(report.findings[0])
        assert fix == lines
        assert check(root, tmp_path, **fix).errors == 0
        for found, right in zip(targets(root, **fix), original, strict=True):
            unlabelled = found == 255
            assert unlabelled.mean() < 0.05
            np.testing.assert_array_equal(found[~unlabelled], right[~unlabelled])


@pytest.mark.parametrize(
    ("data", "plant", "kind", "severity", "fixed"),
    [
        # reduced twice: once by whoever wrote the masks, once by the recipe
        (
            {"reduce_zero_label": True},
            street.corner(255),
            "labels-one-too-low",
            "error",
            {"reduce_zero_label": False},
        ),
        (
            {"reduce_zero_label": True},
            lambda target: target,
            "labels-one-too-low",
            "warning",
            {"reduce_zero_label": False},
        ),
        (
            {"values": [1, 2, 3, 4, 5, 6], "void": [255]},
            lambda target: target,
            "labels-one-too-low",
            "error",
            {"values": [0, 1, 2, 3, 4, 5]},
        ),
        ({"void": [9]}, street.corner(255), "255-not-declared", "warning", {"void": [9, 255]}),
        ({"void": [9]}, street.corner(17), "values-outside-classes", "error", {"void": [9, 17]}),
    ],
)
def test_what_the_recipe_already_says_counts(tmp_path, data, plant, kind, severity, fixed):
    root = write_street(tmp_path / "street")
    shift(root, lambda target: plant(target).astype(np.uint8))
    report = check(root, tmp_path, **data)
    found = {finding.kind: finding for finding in report.findings}
    assert found[kind].severity == severity
    assert settings(found[kind]) == fixed
    after = check(root, tmp_path, **{**data, **fixed})
    assert kind not in {finding.kind for finding in after.findings}


@pytest.mark.parametrize(
    ("classes", "fixed"),
    [("classes: [rest, car]\n", {"values": [0, 255]}), ("classes: [car]\n", {"values": [255], "void": [0]})],
)
def test_binary_masks_of_two_classes_or_one(tmp_path, classes, fixed):
    root = write_street(tmp_path / "street", classes=classes)
    shift(root, street.binary)
    report = check(root, tmp_path)
    assert [finding.kind for finding in report.findings] == ["binary-mask"]
    assert settings(report.findings[0]) == fixed
    assert {finding.kind for finding in check(root, tmp_path, **fixed).findings} <= {"mostly-void"}


def test_255_that_covers_most_pixels_is_an_error(tmp_path):
    root = write_street(tmp_path / "street")
    shift(root, lambda target: np.where(target < 2, 255, target).astype(np.uint8))
    found = {finding.kind: finding for finding in check(root, tmp_path).findings}
    assert found["255-not-declared"].severity == "error"
    assert "is it a class?" in found["255-not-declared"].text
    assert "mostly-void" in found


def test_255_that_is_declared_is_no_finding(tmp_path):
    root = write_street(tmp_path / "street", classes=street.CLASSES + "void: [255]\n")
    shift(root, street.corner(255))
    assert check(root, tmp_path).findings == []
    root = write_street(tmp_path / "other")
    shift(root, street.corner(255))
    assert check(root, tmp_path, void=[255]).findings == []


def test_palettes_that_agree_or_say_nothing_are_no_finding(tmp_path):
    for palette in (street.PALETTE, tuple((value, value, value) for value in range(6)), ((0, 0, 0),) * 6):
        root = write_street(tmp_path / "street")
        for path in all_masks(root):
            street.add_palette(path, palette)
        assert check(root, tmp_path).findings == []


def test_a_recipe_that_asks_for_too_many_images(tmp_path):
    root = write_street(tmp_path / "street")
    report = check(root, tmp_path, limit=30)
    assert [(finding.kind, settings(finding)) for finding in report.findings] == [("limit", {"limit": street.TRAIN})]
    assert check(root, tmp_path, limit=street.TRAIN).findings == []


def test_one_class_whose_value_is_255(tmp_path):
    root = write_street(tmp_path / "street", classes="classes: [car]\nvalues: [255]\n")
    shift(root, street.binary)
    found = {finding.kind: finding for finding in check(root, tmp_path).findings}
    assert found.keys() == {"values-outside-classes"}
    assert settings(found["values-outside-classes"]) == {"void": [0]}


def test_masks_of_255_alone_are_void_and_not_the_first_class(tmp_path):
    root = write_street(tmp_path / "street")
    shift(root, lambda target: np.full_like(target, 255))
    kinds = {finding.kind for finding in check(root, tmp_path).findings}
    assert kinds == {"255-not-declared", "split-without-labels"}
