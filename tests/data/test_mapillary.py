from __future__ import annotations

import pytest

from segtailor.data import VOID
from segtailor.errors import SegtailorError

from .known_trees import first_targets, names_of, open_known, write_mapillary

UNSCORED_V20 = (2, 31, 38, 79, 86, 96, 115, 123)


def open_split(root, split="train", **options):
    return open_known("mapillary", root, split, **options)


@pytest.mark.parametrize("folder", ["v1.2/labels", "labels"])
def test_v12_has_65_scored_classes_and_unlabelled_is_void(tmp_path, folder):
    data = open_split(write_mapillary(tmp_path, range(66), [folder]))
    assert first_targets(data, 66) == [*range(65), VOID]
    assert (data.num_classes, data.expected, names_of(data)) == (65, 18000, ["aB3_x-Yz"])
    assert (data.classes[13], data.palette[13], data.classes[64]) == ("road", (128, 64, 128), "ego vehicle")


def test_v20_leaves_out_the_8_labels_that_are_not_scored(tmp_path):
    data = open_split(write_mapillary(tmp_path, range(124), ["v2.0/labels"]), variant="v2.0")
    scored = [value for value in range(124) if value not in UNSCORED_V20]
    index = {value: place for place, value in enumerate(scored)}
    assert first_targets(data, 124) == [index.get(value, VOID) for value in range(124)]
    assert data.num_classes == 116
    assert data.classes[index[21]] == "road"
    assert data.classes[index[90]] == "traffic light - general (single)"


@pytest.mark.parametrize(("variant", "count"), [("v1.2-all", 66), ("v2.0-all", 124)])
def test_all_makes_every_label_a_class(tmp_path, variant, count):
    folder = variant.removesuffix("-all") + "/labels"
    data = open_split(write_mapillary(tmp_path, range(count), [folder]), variant=variant)
    assert first_targets(data, count) == list(range(count))
    assert (data.num_classes, data.classes[-1]) == (count, "unlabeled")


def test_both_versions_lie_in_one_tree(tmp_path):
    write_mapillary(tmp_path, (0,), ["v1.2/labels", "v2.0/labels"])
    data = open_split(tmp_path, "val", variant="v2.0", training=False)
    assert data.expected == 2000
    assert data.pairs[0].image == tmp_path / "validation" / "images" / "aB3_x-Yz.jpg"
    assert data.pairs[0].mask == tmp_path / "validation" / "v2.0" / "labels" / "aB3_x-Yz.png"


def test_v20_is_not_read_from_the_older_releases_folder(tmp_path):
    write_mapillary(tmp_path, range(66), ["labels"])
    with pytest.raises(
        SegtailorError, match=r"no such folder: .*training/v2\.0/labels; .*images and v1\.2/labels or v2\.0/labels"
    ):
        open_split(tmp_path, variant="v2.0")


def test_a_value_above_the_labels_and_an_unknown_variant_are_errors(tmp_path):
    write_mapillary(tmp_path, (0, 66))
    with pytest.raises(SegtailorError, match="holds the value 66"):
        open_split(tmp_path)[0]
    with pytest.raises(SegtailorError, match=r"unknown variant of mapillary 'v2'; nearest: v2\.0"):
        open_split(tmp_path, variant="v2")
    with pytest.raises(SegtailorError, match=r"unknown split of mapillary \(v1\.2\) 'training'; nearest: train"):
        open_split(tmp_path, "training")
