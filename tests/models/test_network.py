"""What every network is: preprocessing, output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.engine.module import Distiller
from segtailor.evaluation import evaluate_model
from segtailor.jobs.alignment import align
from segtailor.losses import Step, to_grid
from segtailor.methods import create_method
from segtailor.models import Network, Preprocess, SegOutput, Teacher, create_model
from tiny import TINY_DATA

PUBLISHED: dict[str, Any] = {
    "mean": (104.0, 117.0, 123.0), "std": (1.0, 1.0, 1.0), "scale": 1.0, "channel_order": "bgr"
}  # fmt: skip
INCEPTION: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES = torch.randint(0, 256, (2, 3, 48, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Window(Network):
    """A network that shows what it is given: its logits are its input, averaged to stride 4."""

    has_aux = False
    stage_strides = ()

    def __init__(self, **preprocess: Any) -> None:
        super().__init__()
        self.name, self.num_classes, self.licenses = "window", 3, {}
        self.preprocess = Preprocess(**preprocess)
        self.seen: list[Tensor] = []

    @property
    def tap_channels(self) -> dict[str, int]:
        return {"feature": 3, "classifier_input": 3}

    def forward_normalized(self, inputs: Tensor) -> SegOutput:
        self.seen.append(inputs)
        cells = F.avg_pool2d(inputs, 4)
        return SegOutput(cells, None, cells, cells)

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)

    def spec(self) -> dict[str, Any]:
        return {}


def by_hand(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], scale: float, bgr: bool) -> Tensor:
    """Pixel by pixel, channel by channel."""
    found = torch.empty(images.shape, dtype=torch.float32)
    for channel in range(3):
        source = images[:, 2 - channel if bgr else channel].float()
        found[:, channel] = (source * scale - mean[channel]) / std[channel]
    return found


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        (PUBLISHED, by_hand(IMAGES, (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), 1.0, bgr=True)),
        (INCEPTION, by_hand(IMAGES, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1 / 255, bgr=False)),
        ({}, by_hand(IMAGES, IMAGENET_MEAN, IMAGENET_STD, 1 / 255, bgr=False)),
    ],
)
def test_each_familys_statistics(preprocess: dict[str, Any], expected: Tensor) -> None:
    torch.testing.assert_close(Preprocess(**preprocess)(IMAGES), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(Preprocess(**preprocess)(IMAGES.float()), expected, atol=1e-4, rtol=1e-5)


def test_both_see_the_same_raw_batch_each_in_its_own_way() -> None:
    teacher, student = Teacher(Window(**PUBLISHED)), create_model("fcn-lcnet_035", 3, preprocess=INCEPTION)
    seen: list[Tensor] = []
    student.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    method = create_method("kd", 3, student.tap_channels, teacher.tap_channels)
    learner, raw = Distiller(student, {"kd": method}), IMAGES.clone()
    target = torch.zeros(2, 48, 80, dtype=torch.uint8)
    terms = learner(raw, target, learner.select(teacher(raw, target), {}), Step(0.5))
    assert torch.stack(list(terms.values())).isfinite().all()
    assert torch.equal(raw, IMAGES)
    torch.testing.assert_close(teacher.model.seen[0], by_hand(IMAGES, PUBLISHED["mean"], PUBLISHED["std"], 1.0, True))
    torch.testing.assert_close(seen[0], by_hand(IMAGES, INCEPTION["mean"], INCEPTION["std"], 1 / 255, False))


def test_the_order_of_channels_is_no_detail() -> None:
    """The same network with the other order gives other logits: nothing in between hides it."""
    network = create_model("deeplabv3plus-lcnet_035", 3).eval()
    other = create_model("deeplabv3plus-lcnet_035", 3, preprocess={"channel_order": "bgr"}).eval()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert not torch.equal(network(IMAGES).logits, other(IMAGES).logits)
        turned = Preprocess()(IMAGES.flip(1))
        torch.testing.assert_close(other(IMAGES).logits, network.forward_normalized(turned).logits)


def ramp(height: int, width: int) -> Tensor:
    """An image whose red rises from left to right and whose green rises from top to bottom."""
    rows = torch.linspace(20, 220, height).view(height, 1).expand(height, width)
    columns = torch.linspace(20, 220, width).expand(height, width)
    return torch.stack([columns, rows, torch.full((height, width), 128.0)]).round().unsqueeze(0)


AS_IS: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "scale": 1.0}


@pytest.mark.parametrize(
    ("extra", "grid"),
    [
        ({"size": (64, 64)}, (16, 16)),
        ({"size": (32, 128)}, (8, 32)),
        ({"size_multiple": 32}, (16, 24)),
        ({"size_multiple": 14}, (14, 21)),
    ],
)
def test_a_teachers_grid_shows_the_whole_image_whatever_size_it_takes(
    extra: dict[str, Any], grid: tuple[int, int]
) -> None:
    """Every value of the teacher, brought to the student's grid, is that of the same place in the image."""
    image = ramp(50, 80)
    teacher = Teacher(Window(**AS_IS, **extra))
    logits = teacher(image).logits
    assert logits.shape[-2:] == grid
    student = F.interpolate(image, (10, 16), mode="bilinear", antialias=True)
    inner = (..., slice(1, -1), slice(1, -1))  # at the border an interpolated ramp bends
    torch.testing.assert_close(to_grid(logits, (10, 16))[inner], student[inner], atol=6.0, rtol=0.0)
    large = teacher.upsample(logits, (50, 80))
    torch.testing.assert_close(large[..., 8:-8, 8:-8], image[..., 8:-8, 8:-8], atol=6.0, rtol=0.0)


@pytest.mark.parametrize("size", [(64, 64), (32, 128), (96, 32)])
def test_a_fixed_size_is_no_skew(size: tuple[int, int]) -> None:
    student, teacher = create_model("fcn-lcnet_035", 3), Teacher(Window(size=size))
    method = create_method("kt", 3, student.tap_channels, teacher.tap_channels)
    lines = align(student, teacher, {"kt": method}, (48, 80))
    assert lines[0].startswith(f"kt, logits: student 3 x 6 x 10, teacher 3 x {size[0] // 4} x {size[1] // 4}: teacher ")
    learner = Distiller(student, {"kt": method})
    target = torch.randint(0, 3, (2, 48, 80), dtype=torch.uint8)
    terms = learner(IMAGES, target, learner.select(teacher(IMAGES, target), {}), Step(0.5))
    torch.stack(list(terms.values())).sum().backward()
    gradient = student.backbone.net.conv_stem.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


DATA = create_dataset(DataConfig.model_validate({**TINY_DATA, "size": [42, 60]}), "val", training=False)


class Guess(Window):
    """Nine classes by nine directions in the given colors, so that every part of an image differs."""

    def __init__(self, **preprocess: Any) -> None:
        super().__init__(**preprocess)
        self.num_classes = 9
        self.register_buffer("directions", torch.randn(9, 3, 1, 1, generator=torch.Generator().manual_seed(0)))

    def forward_normalized(self, inputs: Tensor) -> SegOutput:
        cells = F.avg_pool2d(inputs, 4, ceil_mode=True)
        return SegOutput(F.conv2d(cells - cells.mean((2, 3), keepdim=True), self.directions))


def confusion_of(model: Network, padded_to: int) -> Tensor:
    """What evaluation must find, image by image: own preprocessing, own enlarging, the masks' own size."""
    found = torch.zeros(9, 9, dtype=torch.int64)
    for index in range(6):
        sample = DATA[index]
        image, (height, width) = sample.image[None].float(), sample.target.shape
        spec = model.preprocess.spec()
        if "size" in spec:
            image = F.interpolate(image, tuple(spec["size"]), mode="bilinear", antialias=True)
        below, right = (-image.shape[-2]) % padded_to, (-image.shape[-1]) % padded_to
        full = F.pad(image, (0, right, 0, below)) if padded_to > 1 else image
        for channel, value in enumerate(DATA.mean_color):
            full[:, channel, image.shape[-2] :] = value
            full[:, channel, :, image.shape[-1] :] = value
        inputs = by_hand(full, spec["mean"], spec["std"], spec["scale"], spec["channel_order"] == "bgr")
        with torch.no_grad():
            logits = model.forward_normalized(inputs).logits
        if padded_to > 1:
            logits = model.upsample(logits, (full.shape[-2], full.shape[-1]))[..., :height, :width]
        prediction = model.upsample(logits, (height, width))[0].argmax(0)
        for true, guess in zip(sample.target.flatten().tolist(), prediction.flatten().tolist(), strict=True):
            if true != 255:
                found[true, guess] += 1
    return found


@pytest.mark.parametrize(
    ("extra", "multiple"),
    [
        (PUBLISHED, 1),
        ({**PUBLISHED, "size": (64, 64)}, 1),
        ({**INCEPTION, "size": (32, 96)}, 1),
        ({**INCEPTION, "size_multiple": 32}, 32),
        ({**PUBLISHED, "size_multiple": 16}, 16),
    ],
)
def test_evaluation_equals_the_direct_computation(extra: dict[str, Any], multiple: int) -> None:
    model = Guess(**extra)
    result = evaluate_model(Teacher(model), DATA, batch=4, limit=6)
    expected = confusion_of(model, multiple)
    assert (expected.sum(0) > 0).sum() > 2
    assert torch.equal(result.confusion, expected)


def test_taps_are_found_by_name_and_detached_together() -> None:
    base = torch.ones(1, requires_grad=True)
    output = SegOutput(base * 1, base * 2, base * 3, base * 4, (base * 5, base * 6), {"other": base * 7})
    names = ("logits", "aux_logits", "feature", "classifier_input", "stages.0", "stages.1", "other")
    assert [output.tap(name).item() for name in names] == [1, 2, 3, 4, 5, 6, 7]
    assert output.tap("stages.2") is None
    assert output.tap("nothing") is None
    cut = output.detach()
    assert [cut.tap(name).item() for name in names] == [1, 2, 3, 4, 5, 6, 7]
    assert not any(cut.tap(name).requires_grad for name in names)
    assert output.logits.requires_grad
    assert SegOutput(base).detach().feature is None
