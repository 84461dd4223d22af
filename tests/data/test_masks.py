from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from segtailor.config import DataConfig
from segtailor.data import VOID, create_dataset
from segtailor.data.check import check_files
from segtailor.data.image_io import read_image, turn_upright
from segtailor.errors import SegtailorError

from .own_trees import TARGET, save, write_colors, write_sideways
from .trees import write_folder, write_image, write_mask, write_pair

COLORS = {0: (128, 64, 128), 1: (0, 0, 142), VOID: (0, 0, 0)}
CLASSES = "classes: {road: [128, 64, 128], car: [0, 0, 142]}\nvoid_colors: [[0, 0, 0]]"


def open_split(root, split="train", training=True, **options):
    return create_dataset(DataConfig(name="folder", root=root, **options), split, training)


def read_all(root, **options):
    data = open_split(root, **options)
    return [data[index] for index in range(len(data))]


def problem(root, **options):
    with pytest.raises(SegtailorError) as caught:
        read_all(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_classes(root, text):
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.yaml").write_text(text)
    return root


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colors_become_classes(tmp_path, mode):
    data = open_split(write_colors(write_classes(tmp_path, CLASSES), COLORS, mode=mode), masks="color")
    assert data[0].target.tolist() == TARGET
    assert data.palette == ((128, 64, 128), (0, 0, 142))
    check_files(data)


def test_grey_colors_may_be_stored_as_grey(tmp_path):
    write_classes(tmp_path, "classes: {sky: [128, 128, 128], wall: [9, 9, 9]}\nvoid_colors: [[0, 0, 0]]")
    write_colors(tmp_path, {0: (128,) * 3, 1: (9,) * 3, VOID: (0,) * 3}, mode="L")
    assert open_split(tmp_path, masks="color")[0].target.tolist() == TARGET


def test_color_masks_travel_to_other_processes(tmp_path):
    data = open_split(write_colors(write_classes(tmp_path, CLASSES), COLORS), masks="color")
    first = data[0].target
    packed = pickle.dumps(data)
    assert len(packed) < 10_000  # without the table of colors
    assert torch.equal(pickle.loads(packed)[0].target, first)


def test_a_color_that_is_no_class_is_named_and_counted(tmp_path):
    write_colors(write_classes(tmp_path, CLASSES), {**COLORS, 1: (0, 0, 143)})
    message = problem(tmp_path, masks="color")
    assert "holds the value (0, 0, 143) (3 pixels): none of the 2 classes and not void" in message
    assert "void_colors" in message
    with pytest.raises(SegtailorError, match=r"neither class nor void: \(0, 0, 143\) \(3 pixels in 1 file"):
        check_files(open_split(tmp_path, masks="color"))


def test_color_masks_need_colors_that_differ(tmp_path):
    write_colors(write_classes(tmp_path, "classes: [road, car]"), COLORS)
    assert "classes.yaml gives the classes no colors; write" in problem(tmp_path, masks="color")
    write_classes(tmp_path, "classes: {road: [1, 2, 3], car: [1, 2, 3]}")
    assert "gives (1, 2, 3) to two classes" in problem(tmp_path, masks="color")
    write_classes(tmp_path, "classes: {road: [1, 2, 3], car: [1, 2, 4]}\nvoid_colors: [[1, 2, 3]]")
    assert "or to a class and void" in problem(tmp_path, masks="color")


def test_color_masks_read_as_indices_say_what_to_set(tmp_path):
    write_colors(write_classes(tmp_path, CLASSES), COLORS)
    assert "its mode is RGB: set data.masks: color" in problem(tmp_path)


def test_color_masks_of_sixteen_bits_or_jpeg_are_refused(tmp_path):
    write_colors(write_classes(tmp_path, CLASSES), COLORS)
    path = save(tmp_path / "train/masks/a.png", np.zeros((2, 3), np.uint16))
    assert "data.masks is color, but the mask's mode is I;16" in problem(tmp_path, masks="color")
    path.unlink()
    write_image(tmp_path / "train/masks/a.jpg", (2, 3))
    assert "a mask must not be a JPEG" in problem(tmp_path, masks="color")


@pytest.mark.parametrize("field", [{"values": [1, 2]}, {"void": [3]}, {"reduce_zero_label": True}])
@pytest.mark.parametrize("masks", ["color", "binary"])
def test_fields_of_index_masks_are_refused_elsewhere(tmp_path, masks, field):
    write_colors(write_classes(tmp_path, CLASSES), COLORS)
    assert f"data.{next(iter(field))} explain index masks, but data.masks is {masks}" in problem(
        tmp_path, masks=masks, **field
    )


BINARY = "classes: [road, car]"
ROAD, CAR = np.array([[1, 1, 0], [0, 1, 0]], np.uint8), np.array([[0, 255, 7], [0, 0, 1]], np.uint8)


@pytest.mark.parametrize(
    ("road", "car"), [("road/one/a.png", "car/one/a.png"), ("one/a_road.png", "one/a_car.png")], ids=["folders", "ends"]
)
def test_one_mask_per_class_in_both_layouts(tmp_path, road, car):
    write_classes(tmp_path, BINARY)
    write_image(tmp_path / "images/train/one/a.jpg", (2, 3))
    save(tmp_path / "masks/train" / road, ROAD)
    save(tmp_path / "masks/train" / car, CAR)
    data = open_split(tmp_path, masks="binary")
    assert [pair.name for pair in data.pairs] == ["one/a"]
    assert data[0].target.tolist() == TARGET  # the later class covers the earlier one, uncovered pixels are void
    check_files(data)
    assert pickle.loads(pickle.dumps(data))[0].target.tolist() == TARGET


def test_uncovered_pixels_are_background_where_there_is_such_a_class(tmp_path):
    write_classes(tmp_path, "classes: [road, background, traffic light]")
    for name in "ab":
        write_image(tmp_path / f"train/images/{name}.png", (2, 3))
    save(tmp_path / "train/masks/a_road.png", ROAD * 255, "RGB")
    save(tmp_path / "train/masks/b_traffic_light.png", CAR > 0)
    data = open_split(tmp_path, masks="binary")
    assert data[0].target.tolist() == [[0, 0, 1], [1, 0, 1]]  # a class without a file is not in the image
    assert data[1].target.tolist() == [[1, 2, 2], [1, 1, 2]]


def test_class_names_may_be_endings_of_each_other(tmp_path):
    write_classes(tmp_path, "classes: [light, traffic_light]")
    write_image(tmp_path / "train/images/a.png", (2, 3))
    write_image(tmp_path / "train/images/b_traffic.png", (2, 3))
    save(tmp_path / "train/masks/a_traffic_light.png", ROAD)
    save(tmp_path / "train/masks/b_traffic_light.png", ROAD)
    data = open_split(tmp_path, masks="binary")
    assert [data[index].target.flatten()[0].item() for index in range(2)] == [1, 0]


def test_settings_that_do_not_fit_together_are_an_error_at_once(tmp_path):
    write_classes(tmp_path, BINARY)
    write_image(tmp_path / "train/images/a.png", (2, 3))
    save(tmp_path / "train/masks/b_road.png", ROAD)
    save(tmp_path / "train/masks/a_cra.png", CAR)
    message = problem(tmp_path, masks="binary")
    assert "1 masks name no class of" in message
    assert "a_cra (nearest: car" in message
    assert "1 images without a mask of any class: a" in message
    assert "1 names of masks without an image: b" in message


def test_two_masks_of_one_class_and_masks_of_two_sizes_are_errors(tmp_path):
    write_classes(tmp_path, BINARY)
    write_image(tmp_path / "train/images/a.png", (2, 3))
    save(tmp_path / "train/masks/a_road.png", ROAD)
    save(tmp_path / "train/masks/a_car.png", CAR[:, :2])
    message = problem(tmp_path, masks="binary")
    assert "differ in size: a_road.png and" in message
    assert "2 x 3 but 2 x 2" in message
    save(tmp_path / "train/masks/road/a.png", ROAD)
    assert "1 images with two masks of one class: a" in problem(tmp_path, masks="binary")


def test_an_unreadable_part_is_named(tmp_path):
    write_classes(tmp_path, BINARY)
    write_image(tmp_path / "train/images/a.png", (2, 3))
    save(tmp_path / "train/masks/a_road.png", ROAD)
    (tmp_path / "train/masks/a_car.png").write_bytes(b"")
    message = problem(tmp_path, masks="binary")
    assert "a_car.png: the file is empty" in message
    with pytest.raises(SegtailorError, match=r"a_car\.png: the file is empty"):
        check_files(open_split(tmp_path, masks="binary"))


def test_binary_masks_cannot_come_from_a_list(tmp_path):
    write_classes(tmp_path, BINARY)
    message = problem(tmp_path, masks="binary", splits={"train": {"list": "train.txt"}})
    assert "data.masks is binary, so data.splits.train needs the folders" in message


def test_the_recipe_overrides_the_classes_file(tmp_path):
    write_folder(tmp_path, classes="classes: [road, car]\nvalues: [0, 1]\nvoid: [7]", splits=())
    write_pair(tmp_path / "train/images", tmp_path / "train/masks", "a", values=(0, 1, 9, 255))

    def first(**options):
        return open_split(tmp_path, **options)[0].target.flatten()[:4].tolist()

    assert first(values=[1, 9], void=[0]) == [VOID, 0, 1, VOID]
    assert first(void=[9]) == [0, 1, VOID, VOID]
    assert first(values=[9, 255], void=[0, 1]) == [VOID, VOID, 0, 1]
    write_pair(tmp_path / "train/images", tmp_path / "train/masks", "a", values=(0, 1, 2, 255))
    assert first(reduce_zero_label=True) == [VOID, 0, 1, VOID]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": [1, 2], "reduce_zero_label": True}, "exclude each other"),
        ({"values": [1]}, r"data\.values has 1 entries, but .*classes\.yaml names 2 classes"),
        ({"values": [1, 1]}, r"data\.values gives 1 to two classes"),
        ({"void": [1]}, r"data\.void holds 1, which the classes have"),
        ({"values": [7, 8]}, r"`void` of .*classes\.yaml holds 7, which the classes have; change data\.void"),
        ({"void": [2], "reduce_zero_label": True}, r"data\.void holds 2, which the classes have"),
    ],
)
def test_contradictions_are_errors(tmp_path, options, message):
    write_folder(tmp_path, classes="classes: [road, car]\nvoid: [7]")
    with pytest.raises(SegtailorError, match=message):
        open_split(tmp_path, **options)


def test_masks_that_disagree_with_the_classes_file_say_so(tmp_path):
    write_folder(tmp_path, splits=())
    write_pair(tmp_path / "train/images", tmp_path / "train/masks", "a", values=(1, 2, 3, 4, 5))
    message = problem(tmp_path)
    assert "none of the 2 classes and not void" in message
    assert "and 1 more" in message
    assert "classes.yaml gives its classes the values 0, 1; correct it, or set data.values" in message


def test_masks_of_sixteen_bits_are_read_when_their_values_fit(tmp_path):
    write_folder(tmp_path, splits=())
    write_image(tmp_path / "train/images/a.png", (2, 3))
    save(tmp_path / "train/masks/a.png", np.array(TARGET, np.uint16))
    assert open_split(tmp_path)[0].target.tolist() == TARGET
    save(tmp_path / "train/masks/a.png", np.array([[0, 1, 300], [300, 0, 4096]], np.uint16))
    assert "holds the values 300 (2 pixels), 4096 (1 pixels)" in problem(tmp_path)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_photo_is_turned_upright_where_its_mask_is(tmp_path, orientation, suffix):
    write_folder(tmp_path, splits=())
    upright = write_sideways(tmp_path / f"train/images/a{suffix}", orientation)
    write_mask(tmp_path / "train/masks/a.png", (16, 12))
    write_sideways(tmp_path / f"train/images/b{suffix}", orientation)
    write_mask(tmp_path / "train/masks/b.png", (12, 16))
    data = open_split(tmp_path)
    assert data[0].image.permute(1, 2, 0).numpy().tolist() == upright.tolist()
    assert torch.equal(data[1].image, read_image(data.pairs[1].image))  # its mask is that of the stored pixels
    check_files(data)


def test_a_photo_is_not_turned_without_a_note_or_where_it_does_not_help(tmp_path):
    write_folder(tmp_path, splits=())
    write_image(tmp_path / "train/images/a.jpg", (12, 16))
    write_mask(tmp_path / "train/masks/a.png", (16, 12))
    assert "a.jpg is 12 x 16, but its mask" in problem(tmp_path)
    write_sideways(tmp_path / "train/images/a.jpg", 3)  # upside down: height and width stay
    assert "is 12 x 16, but its mask" in problem(tmp_path)
    write_sideways(tmp_path / "train/images/a.jpg", 6)
    write_mask(tmp_path / "train/masks/a.png", (16, 13))
    assert "is 12 x 16, but its mask" in problem(tmp_path)
    with pytest.raises(SegtailorError, match="1 mask not of the image's size"):
        check_files(open_split(tmp_path))


def test_content_of_files_is_read_like_files(tmp_path):
    for orientation, suffix in ((6, ".jpg"), (8, ".png")):
        path = tmp_path / f"x{suffix}"
        write_sideways(path, orientation)
        stored, content = read_image(path), path.read_bytes()
        assert torch.equal(read_image(content), stored)
        assert torch.equal(turn_upright(stored, content, (16, 12)), turn_upright(stored, path, (16, 12)))


def test_a_palette_of_colors_is_read_by_its_colors_when_asked(tmp_path):
    write_classes(tmp_path, CLASSES)
    write_image(tmp_path / "train/images/a.png", (2, 3))
    image = Image.fromarray(np.array([[2, 1, 1], [0, 2, 1]], np.uint8))
    image.putpalette([0, 0, 0, 0, 0, 142, 128, 64, 128])
    (tmp_path / "train/masks").mkdir()
    image.save(tmp_path / "train/masks/a.png")
    assert open_split(tmp_path, masks="color")[0].target.tolist() == TARGET
