"""Class maps: against plain loops over pixels, in every precision, and every way in which one can be wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.models import Network, SegOutput, Teacher, create_model
from segtailor.models.class_map import ClassMap, read_class_map

INDICES = [0, 2, 1, 2, -1, 1, 2]
"""Seven classes of a teacher: two of class 1, three of class 2, one void."""


def noise(count: int = 7, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(2, count, 3, 4, generator=torch.Generator().manual_seed(0))


def by_loops(logits: Tensor, indices: list[int], classes: int) -> Tensor:
    """The probabilities: for each pixel the sum over a class's members, over the sum of all that are mapped."""
    found = torch.zeros(len(logits), classes, *logits.shape[2:], dtype=torch.float64)
    for image in range(len(logits)):
        for row in range(logits.shape[2]):
            for column in range(logits.shape[3]):
                pixel = [float(value) for value in logits[image, :, row, column]]
                top = max(pixel)
                shares = [0.0] * classes
                for value, index in zip(pixel, indices, strict=True):
                    if index >= 0:
                        shares[index] += math.exp(value - top)
                total = sum(shares)
                for index, share in enumerate(shares):
                    found[image, index, row, column] = share / total
    return found


def test_probabilities_are_sums_over_members() -> None:
    mapped = ClassMap(INDICES, 3)(noise())
    assert mapped.dtype == torch.float32
    torch.testing.assert_close(mapped.double().softmax(1), by_loops(noise(), INDICES, 3), atol=1e-6, rtol=1e-5)


def test_a_class_of_one_member_keeps_its_logit() -> None:
    mapped = ClassMap([1, 0, -1], 2)(noise(3))
    torch.testing.assert_close(mapped, noise(3)[:, [1, 0]])


def test_a_void_class_takes_nothing_from_the_others_however_likely() -> None:
    likely = noise(3)
    likely[:, 2] = 1000
    torch.testing.assert_close(ClassMap([1, 0, -1], 2)(likely).softmax(1), likely[:, [1, 0]].softmax(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_full(dtype: torch.dtype) -> None:
    halves = noise(scale=20).to(dtype)
    mapped = ClassMap(INDICES, 3)(halves)
    assert mapped.dtype == torch.float32
    with torch.autocast("cpu", dtype):
        assert torch.equal(ClassMap(INDICES, 3)(halves), mapped)
    torch.testing.assert_close(mapped.double().softmax(1), by_loops(halves, INDICES, 3), atol=1e-6, rtol=1e-4)


def test_distant_logits_keep_their_order_and_no_value_is_infinite() -> None:
    logits = torch.tensor([300.0, 250.0, 240.0, -3e38, 400.0]).view(1, 5, 1, 1)
    mapped = ClassMap([0, 1, 2, 3, -1], 4)(logits).flatten()
    assert mapped.tolist() == [300.0, 250.0, 240.0, 213.0]
    infinite = torch.tensor([0.0, -math.inf, 1.0]).view(1, 3, 1, 1)
    mapped = ClassMap([0, 1, 0], 2)(infinite).flatten()
    assert mapped.isfinite().all()
    assert mapped.softmax(0)[1] < 1e-30


def test_probabilities_of_0_everywhere_give_an_even_guess() -> None:
    mapped = ClassMap([0, 1, -1], 2)(torch.tensor([-math.inf, -math.inf, 0.0]).view(1, 3, 1, 1))
    assert mapped.isfinite().all()
    assert mapped.softmax(1).flatten().tolist() == [0.5, 0.5]


def test_a_class_without_members_is_never_predicted() -> None:
    mapped = ClassMap([0, 2], 3)(noise(2))
    assert (mapped.softmax(1)[:, 1] < 1e-30).all()


def test_both_kinds_of_logits_are_mapped_and_features_stay() -> None:
    feature = torch.randn(2, 4, 3, 4)
    output = ClassMap(INDICES, 3).map_output(SegOutput(noise(), 2 * noise(), feature, feature))
    assert output.logits.shape == output.aux_logits.shape == (2, 3, 3, 4)
    assert output.feature is feature
    torch.testing.assert_close(output.aux_logits, ClassMap(INDICES, 3)(2 * noise()))


def test_the_rows_name_both_sides_and_void_last() -> None:
    made = ClassMap([1, 0, 1, -1], 2, ["road", "car", "path", "sky"], ["thing", "way"])
    assert made.rows() == [
        {"class": "thing", "from": ["car"]},
        {"class": "way", "from": ["road", "path"]},
        {"class": "void", "from": ["sky"]},
    ]
    long = ClassMap([0] + [-1] * 30, 1).lines()[-1]
    assert long.startswith("class map: void <- 1, 2, 3")
    assert long.endswith("12 and 18 more")


@pytest.fixture(scope="module")
def network() -> Network:
    made = create_model("fcn-lcnet_035", 4)
    made.classes = ("road", "car", "bus", "sky")
    return made


DATA = ("way", "vehicle")


def test_names_and_numbers_may_be_mixed(network: Network) -> None:
    assert read_class_map({"road": "way", 1: 1, "bus": "vehicle", "others": "void"}, network, DATA).indices == (
        0,
        1,
        1,
        -1,
    )


def test_a_file_is_read(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("road: way\ncar: vehicle\nothers: void\n")
    made = read_class_map(path, network, DATA)
    assert made.indices == (0, 1, -1, -1)
    assert made.lines()[0] == "class map: way <- road"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"road": "way", "car": "vehicle"}, r"class_map misses 2 classes of the teacher \(bus, sky\).*others: void"),
        ({"road": "way", "others": "void"}, r"maps nothing to 1 classes of the data \(vehicle\)"),
        ({"raod": "way", "others": "void"}, "unknown class of fcn-lcnet_035 in class_map 'raod'; nearest: road"),
        ({"road": "wya", "others": "void"}, "unknown class of the data in class_map 'wya'; nearest: way"),
        ({"road": 7, "others": "void"}, "unknown class of the data in class_map '7'"),
        ({99: "way", "others": "void"}, "unknown class of fcn-lcnet_035 in class_map '99'"),
        ({"road": "way", 0: "vehicle", "others": "void"}, "maps the teacher's class road twice"),
    ],
)
def test_a_map_that_does_not_fit_says_where(network: Network, given: dict, expected: str) -> None:
    with pytest.raises(SegtailorError, match=expected) as caught:
        read_class_map(given, network, DATA)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, "no such file"), ("- road\n", "holds no mapping"), ("road: [way\n", "cannot read .* as YAML")],
)
def test_a_file_that_is_no_map_says_so(network: Network, tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "map.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SegtailorError, match=expected) as caught:
        read_class_map(path, network, DATA)
    assert "\n" not in str(caught.value)


def test_a_name_of_two_classes_must_be_given_by_number() -> None:
    network = create_model("fcn-lcnet_035", 3)
    network.classes = ("screen", "wall", "screen")
    with pytest.raises(SegtailorError, match=r"names several classes .* give their numbers instead: 0, 2"):
        read_class_map({"screen": "way", "others": "vehicle"}, network, DATA)
    assert read_class_map({0: "way", 2: "way", "wall": "vehicle"}, network, DATA).indices == (0, 1, 0)


def test_a_teacher_gives_mapped_logits_and_its_fingerprint_knows_the_map(network: Network) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one = Teacher(network, ClassMap([0, 1, 1, -1], 2))
    plain = network(images)
    mapped = one(images)
    assert one.num_classes == 2
    torch.testing.assert_close(mapped.logits, ClassMap([0, 1, 1, -1], 2)(plain.logits))
    torch.testing.assert_close(mapped.aux_logits, ClassMap([0, 1, 1, -1], 2)(plain.aux_logits))
    others = [Teacher(network), Teacher(network, ClassMap([1, 0, 0, -1], 2))]
    assert len({teacher.fingerprint() for teacher in (one, *others)}) == 3
    assert one.fingerprint() == Teacher(network, ClassMap([0, 1, 1, -1], 2)).fingerprint()
