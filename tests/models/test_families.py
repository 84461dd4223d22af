"""Teachers of every family with students of every family, one distillation step each; and equality with the original
libraries."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from segtailor import create_method, create_model
from segtailor.config import ModelConfig, OptimizerConfig, TeacherConfig
from segtailor.engine.module import Distiller
from segtailor.engine.optim import build_optimizer
from segtailor.losses import Step
from segtailor.models import Network, SegOutput, Teacher, inspect_model, save_model
from segtailor.models.store import build_network, load_teacher

from .foreign import SmallNet, photo, shuffled, smp_net

hf_tiny = pytest.importorskip("models.hf_tiny")
smp = pytest.importorskip("segmentation_models_pytorch")

CLASSES, SIZE = 5, (64, 96)
METHODS = ("kt", "cwd", "dist")
VOID = 255
IMAGES = photo(*SIZE, 2)
TARGET = torch.randint(0, CLASSES, (2, *SIZE), generator=torch.Generator().manual_seed(1))
TARGET[:, :8] = VOID


def sharpen(classifier: Any) -> None:
    """Make logits that differ: those of fresh weights are nearly flat, and twice nothing is nothing."""
    with torch.no_grad():
        classifier.weight.mul_(30)


def hf(folder: Path) -> dict[str, Any]:
    net = hf_tiny.build("segformer")
    sharpen(net.decode_head.classifier)
    net.save_pretrained(folder)
    hf_tiny.processor("segformer").save_pretrained(folder)
    return {"weights": f"hf:{folder}"}


def of_smp(folder: Path) -> dict[str, Any]:
    smp_net("FPN", CLASSES).save_pretrained(folder)
    return {"weights": f"smp:{folder}"}


def torchvision(folder: Path) -> dict[str, Any]:
    net = deeplabv3_mobilenet_v3_large(weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    sharpen(net.classifier[-1])
    torch.save({"model": shuffled(net).state_dict()}, folder / "w.pth")
    return {"model": "torchvision:deeplabv3_mobilenet_v3_large", "weights": str(folder / "w.pth")}


def timm_cnn(folder: Path) -> dict[str, Any]:
    return stored(create_model("fcn-test_resnet", CLASSES), folder)


def timm_vit(folder: Path) -> dict[str, Any]:
    return stored(create_model("fcn-test_vit", CLASSES), folder)


def stored(network: Network, folder: Path) -> dict[str, Any]:
    shuffled(network)
    save_model(network, folder / "w.safetensors")
    return {"weights": str(folder / "w.safetensors")}


def own_module(folder: Path) -> dict[str, Any]:
    net: Any = shuffled(SmallNet(CLASSES))
    sharpen(net.classifier)
    torch.save(net.state_dict(), folder / "w.pth")
    return {"model": "module:models.foreign:SmallNet", "weights": str(folder / "w.pth")}


FAMILIES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "hf": hf,
    "smp": of_smp,
    "torchvision": torchvision,
    "timm CNN": timm_cnn,
    "timm ViT": timm_vit,
    "own module": own_module,
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """How a recipe names each family's network, stored in its project's format."""
    torch.manual_seed(3)
    return {family: save(tmp_path_factory.mktemp("family")) for family, save in FAMILIES.items()}


@pytest.fixture(scope="module")
def teachers(configs: dict[str, dict[str, Any]]) -> dict[str, Teacher]:
    return {family: Teacher(load_teacher(TeacherConfig(**given), CLASSES)) for family, given in configs.items()}


@pytest.fixture(scope="module")
def students(configs: dict[str, dict[str, Any]]) -> dict[str, Network]:
    """The same networks, elsewhere: a student that were its teacher's twin would have nothing to learn."""
    found = {}
    for family, given in configs.items():
        network = build_network(ModelConfig(**{"model": "", **given}), CLASSES)
        found[family] = shuffled(network, seed=9).train()
    return found  # type: ignore[return-value]


@pytest.fixture(scope="module")
def taught(teachers: dict[str, Teacher]) -> dict[str, SegOutput]:
    return {family: teacher(IMAGES) for family, teacher in teachers.items()}


@pytest.fixture(scope="module")
def shapes(students: dict[str, Network], teachers: dict[str, Teacher]) -> dict[int, dict[str, tuple[int, ...]]]:
    """What `inspect` says of each network's taps, by the network's id."""
    networks = [*students.values(), *(teacher.model for teacher in teachers.values())]
    return {
        id(network): {tap.name: tap.shape for tap in inspect_model(deepcopy(network), SIZE).taps}
        for network in networks
    }


def check_shapes(output: SegOutput, expected: dict[str, tuple[int, ...]]) -> None:
    assert {"feature", "classifier_input", "logits", "stages.0"} <= expected.keys()
    for name, shape in expected.items():
        tensor = output.tap(name)
        assert tensor is not None
        assert tensor.shape == (2, *shape), name


COMBINATIONS = [
    *((teacher, student, "kt") for teacher in FAMILIES for student in FAMILIES),
    *(
        (teacher, student, method)
        for method in METHODS[1:]
        for teacher, student in zip(FAMILIES, [*list(FAMILIES)[1:], *list(FAMILIES)[:1]], strict=True)
    ),
]
"""Every pair with the method that reads most, and each family once as teacher and as student with the others."""


@pytest.mark.parametrize(("teacher_family", "student_family", "method"), COMBINATIONS)
def test_one_step_of_distillation(
    teacher_family: str,
    student_family: str,
    method: str,
    teachers: dict[str, Teacher],
    students: dict[str, Network],
    taught: dict[str, SegOutput],
    shapes: dict[int, dict[str, tuple[int, ...]]],
) -> None:
    teacher, original = teachers[teacher_family], students[student_family]
    student = deepcopy(original)
    torch.manual_seed(0)
    module = create_method(
        method, num_classes=CLASSES, student_channels=student.tap_channels, teacher_channels=teacher.tap_channels
    )
    distiller = Distiller(student, {method: module})
    optimizer = build_optimizer(distiller, OptimizerConfig(lr=0.01))
    before, seen = teacher.fingerprint(), list[SegOutput]()
    handle = student.register_forward_hook(lambda network, args, output: seen.append(output))
    guide = taught[teacher_family]

    terms = distiller(IMAGES, TARGET, distiller.select(guide, {}), Step(0.9))
    loss = torch.stack(list(terms.values())).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    handle.remove()

    assert torch.isfinite(loss)
    assert teacher.fingerprint() == before
    changed = {
        name for name, value in student.named_parameters() if not torch.equal(value, original.get_parameter(name))
    }
    named = [name for name, value in student.named_parameters() if value.requires_grad]
    assert len(changed) > 0.9 * len(named)
    check_shapes(seen[0], shapes[id(original)])
    check_shapes(guide, shapes[id(teacher.model)])

    def value(output: SegOutput) -> Tensor:
        with torch.no_grad():
            return torch.stack(list(module(seen[0].detach(), module.select(output), TARGET, Step(0.9)).values())).sum()

    doubled = guide.map(lambda tensor: tensor)
    doubled.logits = 2 * doubled.logits
    once, twice = value(guide), value(doubled)
    assert torch.isfinite(twice)
    assert once != twice


def test_teachers_and_students_of_a_family_differ(teachers: dict[str, Teacher], students: dict[str, Network]) -> None:
    for family, student in students.items():
        assert Teacher(deepcopy(student)).fingerprint() != teachers[family].fingerprint()


def original_logits(family: str, folder: Path, images: Tensor) -> Tensor:
    """Return the original library's own output for the network that ``folder`` holds, by the library's own pipeline."""
    if family == "hf":
        transformers: Any = pytest.importorskip("transformers")
        net = transformers.AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        inputs = processor(list(images), return_tensors="pt", do_resize=False)["pixel_values"]
        outputs = net(pixel_values=inputs)
        return torch.nn.functional.interpolate(outputs.logits, SIZE, mode="bilinear", align_corners=False)
    if family == "smp":
        prepare = smp.encoders.get_preprocessing_fn("tu-test_resnet")
        arrays = [prepare(image.permute(1, 2, 0).double().numpy()) for image in images]
        inputs = torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays]).float()
        return smp.from_pretrained(folder).eval()(inputs)  # type: ignore[no-any-return]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    state = torch.load(folder / "w.pth", weights_only=True)
    if family == "torchvision":
        net = deeplabv3_mobilenet_v3_large(weights_backbone=None, num_classes=CLASSES, aux_loss=True)
        net.load_state_dict(state["model"])
        return net.eval()(inputs)["out"]  # type: ignore[no-any-return]
    own = SmallNet(CLASSES)
    own.load_state_dict(state)
    return own.eval()(inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", ["hf", "smp", "torchvision", "own module"])
def test_logits_equal_the_original_librarys(
    family: str, teachers: dict[str, Teacher], configs: dict[str, dict[str, Any]], taught: dict[str, SegOutput]
) -> None:
    weights = configs[family]["weights"].partition(":")[2] or configs[family]["weights"]
    folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    with torch.no_grad():
        expected = original_logits(family, folder, IMAGES)
    found = teachers[family].upsample(taught[family].logits, SIZE)
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=1e-5)


@pytest.mark.parametrize("family", ["timm CNN", "timm ViT"])
def test_maps_under_our_heads_equal_timms(
    family: str, teachers: dict[str, Teacher], taught: dict[str, SegOutput]
) -> None:
    model: Any = teachers[family].model
    inputs = model.preprocess(IMAGES)
    with torch.no_grad():
        if family == "timm CNN":
            net = timm.create_model("test_resnet", features_only=True, output_stride=8)
            net.load_state_dict(model.backbone.net.state_dict())
            expected = net.eval()(inputs)[-4:]
        else:
            net = timm.create_model("test_vit", dynamic_img_size=True, num_classes=0)
            net.load_state_dict(model.backbone.net.model.state_dict(), strict=False)
            expected = net.eval().forward_intermediates(inputs, norm=True, intermediates_only=True)[-1:]
    for found, wanted in zip(taught[family].stages[-len(expected) :], expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
