from __future__ import annotations

import pytest

from segtailor.data import VOID
from segtailor.errors import SegtailorError

from .known_trees import first_targets, names_of, open_known, write_loveda


def test_no_data_is_void_and_the_classes_begin_at_one(tmp_path):
    data = open_known("loveda", write_loveda(tmp_path))
    assert first_targets(data, 8) == [VOID, *range(7)]
    assert data.classes == ("background", "building", "road", "water", "barren", "forest", "agricultural")
    assert data.palette[0] == (255, 255, 255)


def test_urban_and_rural_are_read_together_or_apart(tmp_path):
    write_loveda(tmp_path)
    opened = {variant: open_known("loveda", tmp_path, variant=variant) for variant in (None, "urban", "rural")}
    assert names_of(opened[None]) == ["Urban/1366", "Rural/0", "Rural/1"]
    assert names_of(opened["urban"]) == ["Urban/1366"]
    assert names_of(opened["rural"]) == ["Rural/0", "Rural/1"]
    assert [data.expected for data in opened.values()] == [2522, 1156, 1366]


def test_val(tmp_path):
    data = open_known("loveda", write_loveda(tmp_path), "val", training=False)
    assert (names_of(data), data.expected) == (["Urban/3514", "Rural/2522"], 1669)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "unknown split of loveda .all. 'test'.*masks of its test images are not published"),
        ({"variant": "Urbn"}, "unknown variant of loveda 'Urbn'; nearest: urban"),
        ({"masks": "color"}, "loveda does not read data.masks"),
    ],
)
def test_what_loveda_does_not_have_is_an_error(tmp_path, options, message):
    with pytest.raises(SegtailorError, match=message):
        open_known("loveda", write_loveda(tmp_path), **options)


def test_a_scene_that_was_not_unpacked_is_named(tmp_path):
    write_loveda(tmp_path)
    (tmp_path / "Val" / "Rural" / "masks_png").rename(tmp_path / "elsewhere")
    with pytest.raises(SegtailorError, match=r"no such folder: .*Val/Rural/masks_png; data\.root must hold LoveDA's"):
        open_known("loveda", tmp_path, "val")
    assert len(open_known("loveda", tmp_path, "val", variant="urban")) == 1


def test_a_value_above_the_classes_is_an_error(tmp_path):
    with pytest.raises(SegtailorError, match="holds the value 8"):
        open_known("loveda", write_loveda(tmp_path, (0, 8)))[0]
