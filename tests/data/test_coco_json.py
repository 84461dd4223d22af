from __future__ import annotations

import itertools
import json
import pickle

import numpy as np
import pytest

from segtailor.config import DataConfig
from segtailor.data import VOID, create_dataset
from segtailor.data.check import check_files
from segtailor.data.coco_json import decode_runs, decode_text, paint_shape, shape_area
from segtailor.errors import SegtailorError

from .own_trees import write_sideways
from .trees import write_image

SIZE = (6, 8)
CATEGORIES = [{"id": 9, "name": "car"}, {"id": 2, "name": "road"}]  # not in the order of their ids


def box(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(category, shape, image=1, **more):
    return {"image_id": image, "category_id": category, "segmentation": shape, **more}


def write_coco(path, annotations, images=("a",), categories=CATEGORIES, size=SIZE, folder=None):
    """Write the JSON with images numbered from 1, and their files in ``folder``, by default beside the JSON."""
    listed = []
    for number, name in enumerate(images, 1):
        write_image((folder or path.parent) / f"{name}.jpg", size)
        listed.append({"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"info": {}, "images": listed, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def open_split(root, split="train", annotations="{split}.json", **options):
    config = DataConfig(name="coco-json", root=root, annotations=annotations, **options)
    return create_dataset(config, split, True)


def target(root, annotations, **options):
    write_coco(root / "train.json", annotations)
    return open_split(root, **options)[0].target.tolist()


def encode_text(counts):
    """Compress run lengths as COCO's text, one number after the other."""
    text = ""
    for place, count in enumerate(counts):
        number = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def runs_of(mask):
    flat = mask.T.ravel().tolist()
    runs = [(value, len(list(group))) for value, group in itertools.groupby(flat)]
    return [0] * (flat[0] == 1) + [length for _, length in runs]


def test_classes_come_in_the_order_of_ids_with_background_first(tmp_path):
    annotations = [annotation(2, [box(0, 3, 8, 6)]), annotation(9, [box(2, 2, 4, 4)])]
    write_coco(tmp_path / "train.json", annotations, ("a", "b"))
    data = open_split(tmp_path)
    assert data.classes == ("background", "road", "car")
    assert len(set(data.palette)) == 3
    assert data[0].target.tolist() == [[0] * 8, [0] * 8, [0, 0, 2, 2, 0, 0, 0, 0], [1, 1, 2, 2, 1, 1, 1, 1], [1] * 8,
                                       [1] * 8]  # fmt: skip
    assert data[1].target.unique().tolist() == [0]  # an image without annotations
    assert [sample.name for sample in (data[0], data[1])] == ["a", "b"]
    check_files(data)
    copied = pickle.loads(pickle.dumps(data))
    assert copied[0].target.tolist() == data[0].target.tolist()


def test_a_category_called_background_is_the_background(tmp_path):
    categories = [{"id": 1, "name": "thing"}, {"id": 5, "name": "background"}, {"id": 7, "name": "thing"}]
    annotations = [annotation(7, [box(0, 0, 8, 3)])]
    write_coco(tmp_path / "train.json", annotations, categories=categories)
    data = open_split(tmp_path)
    assert data.classes == ("thing", "background")  # categories of one name are one class
    assert data[0].target[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("names", "uncovered"), [(["car", "road"], VOID), (["car", "road", "background"], 2)])
def test_a_class_file_decides_order_and_what_is_not_covered(tmp_path, names, uncovered):
    (tmp_path / "classes.yaml").write_text(f"classes: {names}\nlicense: CC0-1.0\nmean_color: [1, 2, 3]")
    rows = target(tmp_path, [annotation(9, [box(0, 0, 8, 3)]), annotation(2, [box(0, 3, 8, 5)])])
    assert [row[0] for row in rows] == [0, 0, 0, 1, 1, uncovered]
    assert open_split(tmp_path).license == "CC0-1.0"


def test_a_class_file_that_disagrees_is_an_error(tmp_path):
    annotations = [annotation(9, [box(0, 0, 8, 3)]), annotation(9, [box(0, 0, 8, 3)])]
    (tmp_path / "names.yaml").write_text("classes: [road]")
    with pytest.raises(SegtailorError, match=r"of 1 categories that .*names\.yaml does not name: car \(2\)"):
        target(tmp_path, annotations, classes=tmp_path / "names.yaml")
    (tmp_path / "names.yaml").write_text("classes: [road, caar]")
    with pytest.raises(SegtailorError, match=r"unknown category 'caar'; nearest: car"):
        target(tmp_path, annotations, classes=tmp_path / "names.yaml")
    (tmp_path / "names.yaml").write_text("classes: [car]")  # no annotation is of the category left out
    assert target(tmp_path, annotations, classes=tmp_path / "names.yaml")[0][0] == 0


def test_smaller_shapes_cover_larger_ones_and_later_ones_their_equals(tmp_path):
    small, large = annotation(9, [box(1, 1, 3, 3)]), annotation(2, [box(0, 0, 8, 6)])
    for both in ([small, large], [large, small]):
        assert target(tmp_path, both)[1][:4] == [1, 2, 2, 1]
    first, second = annotation(9, [box(0, 0, 4, 4)], area=1), annotation(2, [box(0, 0, 4, 4)], area=999)
    assert target(tmp_path, [first, second])[0][0] == 1  # the areas that the file states are not believed
    assert target(tmp_path, [second, first])[0][0] == 2


def test_an_annotation_of_several_polygons_is_their_union(tmp_path):
    rows = target(tmp_path, [annotation(2, [box(0, 0, 2, 2), box(1, 1, 4, 3), box(6, 5, 8, 6)])])
    assert [sum(row) for row in rows] == [2, 4, 3, 0, 0, 2]


def test_runs_of_crowds_as_numbers_and_as_text(tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[2:5, 1:7] = 1
    for counts in (runs_of(mask), encode_text(runs_of(mask))):
        shape = {"counts": counts, "size": list(SIZE)}
        assert target(tmp_path, [annotation(2, shape, iscrowd=1)]) == mask.tolist()


def test_run_lengths_of_random_masks_round_trip():
    assert decode_text("61X13mN000`0").tolist() == [6, 1, 40, 4, 5, 4, 5, 4, 21]  # the format's known example
    rng = np.random.default_rng(0)
    for size in ((1, 1), (7, 5), (40, 90), (300, 500)):
        for share in (0.0, 0.01, 0.5, 1.0):
            mask = (rng.random(size) < share).astype(np.uint8)
            counts = runs_of(mask)
            assert decode_text(encode_text(counts)).tolist() == counts
            shape = {"counts": encode_text(counts), "size": list(size)}
            assert (decode_runs(shape, size) == mask).all()
            assert shape_area(shape) == mask.sum()


def inside(points, x, y):
    """Return whether (x, y) is in the polygon: count the edges that a ray to the left crosses."""
    crossings = 0
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        if (y1 <= y) != (y2 <= y) and x1 + (y - y1) * (x2 - x1) / (y2 - y1) <= x:
            crossings += 1
    return crossings % 2 == 1


def test_a_pixel_belongs_to_a_polygon_when_its_center_does():
    rng = np.random.default_rng(1)
    for corners in (3, 4, 5, 9, 30):
        for _ in range(10):
            polygon = rng.uniform(-4, 20, (corners, 2)).round(1)  # many leave the image and cross themselves
            mask = np.zeros((12, 17), np.uint8)
            paint_shape(mask, [polygon.ravel().tolist()], 1)
            points = [tuple(point) for point in polygon.tolist()]
            expected = [[inside(points, x + 0.5, y + 0.5) for x in range(17)] for y in range(12)]
            assert (mask == np.array(expected)).all()
    area = shape_area([[0, 0, 8, 0, 0, 8]])
    assert area == 32.0


def test_shapes_outside_or_without_area_paint_nothing():
    mask = np.zeros(SIZE, np.uint8)
    for polygon in (box(20, 20, 30, 30), box(-9, -9, -1, -1), [1, 1, 5, 5], [3, 3]):
        paint_shape(mask, [polygon], 1)
    assert not mask.any()


@pytest.mark.parametrize(
    ("annotations", "path", "folder", "options"),
    [
        ("annotations/instances_{split}2017.json", "annotations/instances_train2017.json", "train2017", {}),
        ("{split}/_annotations.coco.json", "train/_annotations.coco.json", "train", {}),
        ("labels/{split}.json", "labels/train.json", "images/train", {}),
        ("labels/{split}.json", "labels/train.json", "images", {}),
        ("{split}.json", "train.json", "photos", {"splits": {"train": {"images": "photos"}}}),
    ],
)
def test_images_are_found_in_the_usual_places(tmp_path, annotations, path, folder, options):
    write_coco(tmp_path / path, [annotation(2, [box(0, 0, 8, 6)])], folder=tmp_path / folder)
    data = open_split(tmp_path, annotations=annotations, **options)
    assert data.pairs[0].image == tmp_path / folder / "a.jpg"
    assert data[0].target.unique().tolist() == [1]


def test_a_photo_is_turned_to_the_size_that_the_json_gives(tmp_path):
    write_coco(tmp_path / "train.json", [annotation(2, [box(0, 0, 12, 16)])], size=(16, 12))
    upright = write_sideways(tmp_path / "a.jpg", 6, (12, 16))
    sample = open_split(tmp_path)[0]
    assert sample.image.permute(1, 2, 0).numpy().tolist() == upright.tolist()
    write_image(tmp_path / "a.jpg", (12, 17))
    with pytest.raises(SegtailorError, match=r"a\.jpg is 12 x 17, but its mask .*train\.json is 16 x 12"):
        open_split(tmp_path)[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (annotation(2, [box(0, 0, 1, 1)], image=7, id=70), "1 annotations of images that are not listed: 70"),
        (annotation(3, [box(0, 0, 1, 1)]), "1 annotations of categories that are not listed: 0"),
        (annotation(2, [], id=5), r"1 annotations without an outline \(a box does not say which pixels\): 5"),
        ({"image_id": 1}, r"annotations\.0\.category_id: Field required"),
        (annotation(2, [[1, 2, 3]]), r"cannot read .*train\.json: an annotation of a: a polygon of 3 numbers"),
        (annotation(2, [["x", "y"]]), r"cannot read .*train\.json: an annotation of a"),
        (annotation(2, box(0, 0, 1, 1)), r"a shape must be a list of polygons \[\[x, y, x, y, \.\.\.\], \.\.\.\]"),
        (annotation(2, {"counts": [5], "size": [6, 8]}), "run lengths fill 5 of 48 pixels"),
        (annotation(2, {"counts": [48], "size": [8, 6]}), r"run lengths of \[8, 6\] in an image of \[6, 8\]"),
        (annotation(2, {"counts": "~~", "size": [6, 8]}), "run lengths of unknown characters"),
        (annotation(2, {"size": [6, 8]}), "run lengths without counts"),
    ],
)
def test_bad_annotations_are_one_line(tmp_path, wrong, message):
    with pytest.raises(SegtailorError, match=message) as caught:
        target(tmp_path, [wrong])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read .* as JSON"),
        ("[]", "the content: Input should be a valid dictionary"),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg", "height": 1, "width": 1}], "annotations": []}',
            "categories: Field required",
        ),
        ('{"images": [], "annotations": [], "categories": []}', "images: List should have at least 1 item"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}]}', r"images\.0\.height: Field required"),
    ],
)
def test_what_is_no_coco_json_is_one_line(tmp_path, text, message):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(SegtailorError, match=message):
        open_split(tmp_path)


def test_whole_numbers_may_be_floats_and_ids_belong_to_one_category(tmp_path):
    write_coco(tmp_path / "train.json", [annotation(2.0, [box(0, 0, 8, 6)])])
    assert open_split(tmp_path)[0].target.unique().tolist() == [1]
    write_coco(tmp_path / "train.json", [], categories=[*CATEGORIES, {"id": 9, "name": "bus"}])
    with pytest.raises(SegtailorError, match="the category id 9 belongs to car and bus; give each its own"):
        open_split(tmp_path)


def test_more_classes_than_a_byte_holds_is_an_error(tmp_path):
    categories = [{"id": number, "name": f"class {number}"} for number in range(255)]
    write_coco(tmp_path / "train.json", [], categories=categories)
    with pytest.raises(SegtailorError, match="has 256 classes, but at most 255 are supported"):
        open_split(tmp_path)


def test_images_that_are_missing_or_listed_twice_are_named(tmp_path):
    path = write_coco(tmp_path / "train.json", [], ("a", "b", "c"))
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(SegtailorError, match=r"1 of 3 images missing in .*: b\.jpg"):
        open_split(tmp_path)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(SegtailorError, match=r"no such file: a\.jpg, the first image of .*; looked in "):
        open_split(tmp_path)
    write_coco(path, [], ("a", "b", "a"))
    with pytest.raises(SegtailorError, match="lists 1 images more than once: a;"):
        open_split(tmp_path)


def test_fields_that_do_not_belong_are_refused(tmp_path):
    write_coco(tmp_path / "train.json", [])
    for options, message in (
        ({"masks": "index"}, r"data\.masks describes mask files, but"),
        ({"values": [0, 1]}, r"data\.values explain index masks, but coco-json has outlines"),
        ({"annotations": "train.json"}, r"would be the split train and the split val alike"),
        ({"annotations": None}, r"needs data\.annotations"),
        ({"splits": {"val": {"images": "x"}}}, "unknown split 'train'"),
        ({"splits": {"train": {"list": "x"}}}, r"data\.splits\.train needs `images`"),
    ):
        with pytest.raises(SegtailorError, match=message):
            open_split(tmp_path, **options)
