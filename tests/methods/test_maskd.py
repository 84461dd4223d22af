from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import torch

from segtailor.errors import SegtailorError
from segtailor.methods import Method, create_method
from segtailor.methods.maskd import FORMAT, MaskedDistillation, TokenWeighting

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .tester import MethodTester


def with_tokens(method: Method) -> None:
    """Do what the stage does, with random tokens."""
    assert isinstance(method, MaskedDistillation)
    generator = torch.Generator().manual_seed(5)
    tokens = 0.5 * torch.randn(method.tokens.shape, generator=generator)
    state = {"tokens": tokens}
    if method.weighting is not None:
        shapes = {name: value.shape for name, value in method.weighting.state_dict().items()}
        state |= {f"weighting.{name}": 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    method.load_state_dict(state, strict=False)


class TestMasKD(MethodTester):
    name = "maskd"
    minimal: ClassVar = frozenset({"maskd", "maskd_aux"})
    prepare = staticmethod(with_tokens)
    terms = frozenset({"maskd", "maskd_aux"})


class TestMasKDPublished(MethodTester):
    name = "maskd"
    minimal: ClassVar = frozenset({"maskd", "maskd_aux"})
    options: ClassVar = {"variant": "published"}
    prepare = staticmethod(with_tokens)
    void_matters = True
    terms = frozenset({"maskd", "maskd_aux"})


class TestMasKDWithEverySwitch(MethodTester):
    minimal: ClassVar = frozenset({"maskd", "maskd_aux"})
    phased = True
    name = "maskd"
    options: ClassVar = {"tokens": 3, "weighting": True, "customised": True, "customise_after": 0.5}
    prepare = staticmethod(with_tokens)
    terms = frozenset({"maskd", "maskd_aux"})


class TestMasKDOnTheFeature(MethodTester):
    name = "maskd"
    minimal: ClassVar = frozenset({"maskd"})
    options: ClassVar = {"tap": "feature", "weighting": True, "customised": True}
    prepare = staticmethod(with_tokens)
    terms = frozenset({"maskd"})


class TestMasKDPublishedOnTheFeature(MethodTester):
    name = "maskd"
    minimal: ClassVar = frozenset({"maskd"})
    options: ClassVar = {"variant": "published", "tap": "feature"}
    prepare = staticmethod(with_tokens)
    void_matters = True
    terms = frozenset({"maskd"})


def build(**options: Any) -> MaskedDistillation:
    method = create_method("maskd", CLASSES, STUDENT, TEACHER, **options)
    assert isinstance(method, MaskedDistillation)
    with_tokens(method)
    return method


@pytest.mark.parametrize("options", [{}, {"weighting": True}, {"customised": True}], ids=str)
@pytest.mark.parametrize("variant", ["published", "clean"])
def test_equals_plain_loops(variant: str, options: dict[str, Any]) -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    target[1, :, :9] = 255
    method = build(variant=variant, tokens=3, maskd=2, **options)
    height, width = target.shape[1:]
    own, guide = student.logits.detach().double(), teacher.logits.detach().double()
    total = 0.0
    for image in range(2):
        cells = [(i, j) for i in range(6) for j in range(8)]
        if variant == "clean":
            pixels = [(i, j) for i in range(height) for j in range(width) if target[image, i, j] != 255]
            cells = [(i * 6 // height, j * 8 // width) for i, j in pixels]
        shares = [1 / 3] * 3
        if method.weighting is not None:
            weighting = TokenWeighting(CLASSES, 3).double()
            weighting.load_state_dict(method.weighting.state_dict())
            seen = guide[image].clone()
            for i in range(6):
                for j in range(8):
                    if (i, j) not in cells:
                        seen[:, i, j] = 0
            local = weighting.local(seen[None])[0]
            mean = torch.stack([local[:, i, j] for i, j in cells]).mean(0)
            shares = weighting.shares(mean[None, :, None, None]).flatten().softmax(0).tolist()
        for index in range(3):
            token, above, below = method.tokens[index].double(), 0.0, 1e-5
            for i, j in cells:
                mask = (token @ guide[image, :, i, j]).sigmoid().item()
                if options.get("customised"):
                    mask *= (token @ own[image, :, i, j]).sigmoid().item()
                above += mask**2 * (own[image, :, i, j] - guide[image, :, i, j]).square().mean().item()
                below += mask
            total += 0.5 * shares[index] * above / below / 2
    value = method(student, teacher, target, 0.5)["maskd"]
    torch.testing.assert_close(value.item(), 2 * total, rtol=1e-5, atol=0)


def test_customised_masks_begin_late_and_carry_no_gradient() -> None:
    target = labels()
    plain, customised = build(maskd_aux=0), build(maskd_aux=0, customised=True, customise_after=0.5)
    values = [
        method(output(STUDENT), output(TEACHER, seed=2), target, progress)["maskd"]
        for method, progress in ((plain, 0.9), (customised, 0.49), (customised, 0.5))
    ]
    assert values[0] == values[1] != values[2]
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    customised(student, teacher, target, 0.5)["maskd"].backward()
    gradient, difference = student.logits.grad, student.logits - teacher.logits
    assert gradient is not None
    # Through the error alone: at each position the gradient is a multiple of the difference.
    parallel = torch.nn.functional.cosine_similarity(gradient, difference, dim=1)
    inside = gradient.abs().sum(1) > 0
    torch.testing.assert_close(parallel[inside], torch.ones_like(parallel[inside]), rtol=1e-4, atol=0)


def test_auxiliary_masks_come_from_the_auxiliary_logits() -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    method = build(maskd_aux=0.25)
    student.logits, teacher.logits = student.aux_logits, teacher.aux_logits  # type: ignore[assignment]
    terms = method(student, teacher, target, 0.5)
    torch.testing.assert_close(terms["maskd_aux"], 0.25 * terms["maskd"])
    student.aux_logits = None
    assert set(method(student, teacher, target, 0.5)) == {"maskd"}


def test_without_tokens_it_says_what_to_do() -> None:
    method = create_method("maskd", CLASSES, STUDENT, TEACHER)
    with pytest.raises(
        SegtailorError,
        match=r"^method maskd: .*tokens .* must be trained first; use .*tokens_file$",
    ):
        method(output(STUDENT), output(TEACHER), labels(), 0.5)


def test_a_restored_checkpoint_brings_its_tokens() -> None:
    whole, restored = torch.nn.Module(), torch.nn.Module()
    whole.method = build(weighting=True)
    restored.method = create_method("maskd", CLASSES, STUDENT, TEACHER, weighting=True)
    restored.load_state_dict(whole.state_dict())
    outputs = output(STUDENT), output(TEACHER, seed=2), labels(), 0.5
    torch.testing.assert_close(restored.method(*outputs), whole.method(*outputs), rtol=0, atol=0)


def test_a_checkpoint_without_tokens_brings_none() -> None:
    first, second = (create_method("maskd", CLASSES, STUDENT, TEACHER) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert isinstance(second, MaskedDistillation)
    assert second.pretraining is not None
    assert not second.pretraining.done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tap": "stages.0"}, "option 'tap': .*'logits' or 'feature'"),
        ({"tokens": 0}, "option 'tokens': .*greater than 0"),
        ({"customise_after": 2}, "option 'customise_after': .*less than or equal to 1"),
        ({"token_lr": 0}, "option 'token_lr': .*greater than 0"),
        ({"tokens_file": "nowhere.safetensors"}, "cannot read tokens from nowhere.safetensors; .*tokens_file"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        create_method("maskd", CLASSES, STUDENT, TEACHER, **options)
    assert "\n" not in str(error.value)


def test_tokens_file_is_taken_at_once_and_left_to_the_stage_to_check(tmp_path: Path) -> None:
    path, tokens = tmp_path / "tokens.safetensors", torch.randn(8, CLASSES)
    card = {**FORMAT, "layout": build().layout, "teacher": "a" * 64}
    safetensors.torch.save_file({"tokens": tokens}, path, metadata={"card": json.dumps(card)})
    method = create_method("maskd", CLASSES, STUDENT, TEACHER, tokens_file=str(path))
    assert isinstance(method, MaskedDistillation)
    assert torch.equal(method.tokens, tokens)
    assert method.pretraining is not None
    assert method.pretraining.file == str(path)
    method(output(STUDENT), output(TEACHER), labels(), 0.5)


def test_published_tokens_are_learnt_for_longer() -> None:
    stages = [
        create_method("maskd", CLASSES, STUDENT, TEACHER, variant=name).pretraining for name in ("clean", "published")
    ]
    assert [stage.steps for stage in stages if stage is not None] == [1000, 10000]


def test_without_a_term_there_is_no_stage() -> None:
    method = create_method("maskd", CLASSES, STUDENT, TEACHER, maskd=0, maskd_aux=0)
    assert method.pretraining is None
    assert not method(output(STUDENT), output(TEACHER), labels(), 0.5)


def test_equal_widths_need_no_projector() -> None:
    assert not [value for value in create_method("maskd", 4, 8, 8, tap="feature").parameters() if value.requires_grad]
