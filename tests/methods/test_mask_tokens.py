"""Receptive tokens: the pure functions, what the stage learns, and the file it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.losses import Step, cross_entropy
from segtailor.methods import create_method
from segtailor.methods.maskd import (
    FORMAT,
    MaskedDistillation,
    TokenObjective,
    TokenWeighting,
    attended,
    dice,
    masked_error,
    receptive_masks,
    weight_map,
)
from segtailor.models import create_model
from segtailor.models.teacher import Teacher

from .cases import labels
from .test_closed_form import close, wave

CLASSES = 5
SHAPE = (2, CLASSES, 4, 8)


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    return 3 * wave(SHAPE, 0.23, "cos") + 0.5, 4 * wave(SHAPE, 0.37, "sin")


@pytest.fixture
def tokens() -> Tensor:
    first, second = torch.arange(3, dtype=torch.float64), torch.arange(CLASSES, dtype=torch.float64)
    return 0.5 * (1 + 5 * first.unsqueeze(1) + second).sin()


def test_closed_form_figures(logits: tuple[Tensor, Tensor], tokens: Tensor) -> None:
    student, teacher = logits
    masks = receptive_masks(teacher, tokens)
    close(masks.mean(), 0.502555870259)
    close(dice(masks), 0.499596737928)
    close(attended(teacher, masks).sum(), 258.652912993732)
    close(masked_error(student, teacher, weight_map(masks)), 5.189361233588)


def test_plain_loops_over_counted_positions(logits: tuple[Tensor, Tensor], tokens: Tensor) -> None:
    student, teacher = logits
    counts = torch.arange(64, dtype=torch.float64).view(2, 32) % 4
    shares = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.6, 0.3]], dtype=torch.float64)
    masks = receptive_masks(teacher, tokens)
    error, overlap = 0.0, 0.0
    for image in range(2):
        # A position that counts n times is there n times.
        places = [(x // 8, x % 8) for x in range(32) for _ in range(int(counts[image, x]))]
        drawn = [torch.stack([(token @ teacher[image, :, i, j]).sigmoid() for i, j in places]) for token in tokens]
        squared = torch.stack([(student - teacher)[image, :, i, j].square().mean() for i, j in places])
        for first in range(3):
            error += shares[image, first] * (drawn[first] ** 2 * squared).sum() / (drawn[first].sum() + 1e-5) / 4
            for second in range(3):
                if first != second:
                    norms = (drawn[first] ** 2).sum() + (drawn[second] ** 2).sum()
                    overlap += 2 * (drawn[first] * drawn[second]).sum() / norms / 12
    torch.testing.assert_close(masked_error(student, teacher, weight_map(masks, counts, shares)), error)
    torch.testing.assert_close(dice(masks, counts), overlap)


def test_the_largest_logit_stays_the_largest(logits: tuple[Tensor, Tensor], tokens: Tensor) -> None:
    kept = attended(logits[1], receptive_masks(logits[1], tokens))
    assert torch.equal(kept.argmax(1), logits[1].argmax(1))


def test_one_token_overlaps_with_none() -> None:
    assert dice(torch.rand(2, 1, 3, 4)) == 0


def test_token_shares_sum_to_1_and_do_not_see_void() -> None:
    weighting, values = TokenWeighting(4, 3), torch.randn(2, 4, 5, 6)
    counts = torch.ones(2, 30)
    counts[0, 12:], counts[1] = 0, 0
    shares = weighting(values, counts)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    values[0, :, 2:] = 100
    torch.testing.assert_close(weighting(values, counts), shares)
    assert (weighting(values)[0] - shares[0]).abs().max() > 1e-3


def batch() -> tuple[Tensor, Tensor]:
    images = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return images, labels(2, (48, 64))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """An untrained network whose logits differ from place to place by about 5, as a trained one's do."""
    torch.manual_seed(0)
    network = create_model("fcn-lcnet_050", CLASSES)
    images, _ = batch()
    with torch.no_grad():
        for _ in range(30):
            network.train()(images)  # batch norm learns its moments
        logits = network.eval()(images).logits
        network.head.classifier.weight.mul_(5 / logits.std((0, 2, 3)).mean())
    return Teacher(network)


def method_for(teacher: Teacher, **options: Any) -> MaskedDistillation:
    channels = {"feature": teacher.tap_channels["feature"]}
    method = create_method("maskd", CLASSES, {"feature": 12}, channels, **{"tokens": 4, **options})
    assert isinstance(method, MaskedDistillation)
    return method


def objective_for(teacher: Teacher, **options: Any) -> TokenObjective:
    torch.manual_seed(3)
    stage = method_for(teacher, **options).pretraining
    assert stage is not None
    objective = stage.objective(teacher)
    assert isinstance(objective, TokenObjective)
    return objective


@pytest.mark.parametrize("options", [{}, {"weighting": True}, {"tap": "feature"}, {"variant": "published"}], ids=str)
def test_steps_on_an_objective_lower_its_dice_and_leave_the_teacher(teacher: Teacher, options: dict[str, Any]) -> None:
    objective, before, (images, target) = objective_for(teacher, **options), teacher.fingerprint(), batch()
    guide = teacher(images)
    # A teacher that is right, where it is asked: otherwise the best masks are empty.
    right = teacher.upsample(guide.logits, (48, 64)).argmax(1).to(torch.uint8)
    target = right.where(target != 255, 255)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9)
    values = []
    for step in range(60):
        terms = objective(images, target, guide, Step((step + 1) / 60))
        values.append({name: value.item() for name, value in terms.items()})
        optimizer.zero_grad()
        sum(terms.values(), torch.zeros(())).backward()
        assert all(value.grad is not None for value in objective.parameters())
        optimizer.step()
    assert set(values[0]) == {"task", "dice"}
    assert values[0]["dice"] == pytest.approx(1, abs=0.1)  # tokens near 0 draw the same mask
    assert values[-1]["dice"] < 0.8 * values[0]["dice"]
    assert sum(values[-1].values()) < sum(values[0].values())
    tapped = guide.tap(options.get("tap", "logits"))
    assert tapped is not None
    assert receptive_masks(tapped, objective.tokens).max() > 0.5
    assert teacher.fingerprint() == before
    assert not teacher.model.training


def test_an_objective_holds_the_tokens_and_nothing_of_the_teacher(teacher: Teacher) -> None:
    objective = objective_for(teacher)
    assert set(objective.state_dict()) == {"tokens"}
    assert objective.subject is None
    assert objective.tokens.std().item() == pytest.approx(0.01, rel=0.5)
    weighted = dict(objective_for(teacher, weighting=True).named_parameters())
    assert {name.split(".")[0] for name in weighted} == {"tokens", "weighting"}


@pytest.mark.parametrize("variant", ["clean", "published"])
def test_an_objective_is_cross_entropy_under_masks_and_their_overlap(teacher: Teacher, variant: str) -> None:
    objective, (images, target) = objective_for(teacher, variant=variant, dice=0.5), batch()
    guide = teacher(images)
    terms = objective(images, target, guide, Step(0.5))
    masks = (objective.tokens.view(1, 4, CLASSES, 1, 1) * guide.logits.unsqueeze(1)).sum(2).sigmoid()
    summed = guide.logits * masks.sum(1, keepdim=True)
    torch.testing.assert_close(terms["task"], cross_entropy(teacher.upsample(summed, (48, 64)), target, Step()))
    whole = 0.5 * dice(masks)
    assert torch.allclose(terms["dice"], whole, rtol=1e-6) == (variant == "published")


def test_void_does_not_reach_the_overlap_of_a_clean_objective(teacher: Teacher) -> None:
    objective, (images, target) = objective_for(teacher, tap="feature", weighting=True), batch()
    target[:, 24:] = 255
    guide = teacher(images)
    before = objective(images, target, guide, Step(0.5))["dice"]
    assert guide.feature is not None
    guide.feature[:, :, guide.feature.shape[2] // 2 :] = 50
    torch.testing.assert_close(objective(images, target, guide, Step(0.5))["dice"], before)


def test_a_feature_goes_through_the_teachers_classifier(teacher: Teacher) -> None:
    objective, (images, target) = objective_for(teacher, tap="feature", dice=0), batch()
    guide = teacher(images)
    assert guide.feature is not None
    with torch.no_grad():
        objective.tokens.zero_()  # four masks of 0.5
    terms = objective(images, target, guide, Step(0.5))
    assert set(terms) == {"task"}
    expected = teacher.upsample(teacher.model.head.classifier(2 * guide.feature), (48, 64))
    torch.testing.assert_close(terms["task"], cross_entropy(expected, target, Step()))


def test_a_teacher_without_a_classifier_is_told_to_use_logits(teacher: Teacher) -> None:
    stage = method_for(teacher, tap="feature").pretraining
    bare = Teacher(create_model("fcn-lcnet_050", CLASSES))
    bare.model.head = torch.nn.Identity()  # type: ignore[assignment]
    assert stage is not None
    with pytest.raises(SegtailorError, match=r"^method maskd, tap feature: the teacher fcn-.*set tap: logits$"):
        stage.objective(bare)


def test_the_stage_is_keyed_by_what_the_tokens_depend_on(teacher: Teacher) -> None:
    def key(**options: Any) -> str:
        stage = method_for(teacher, **options).pretraining
        assert stage is not None
        return json.dumps(stage.key())

    assert key(maskd=3, customised=True) == key()
    changes: list[dict[str, Any]] = [{"tap": "feature"}, {"tokens": 5}, {"weighting": True}, {"dice": 2}]
    keys = {key(), key(variant="published"), *(key(**change) for change in changes)}
    assert len(keys) == 6


def test_the_stage_trains_by_sgd_with_the_options_it_was_given(teacher: Teacher) -> None:
    stage = method_for(teacher, token_steps=7, token_lr=0.3, token_weight_decay=0.02, token_momentum=0.5).pretraining
    assert stage is not None
    assert stage.optimizer is not None
    assert stage.schedule is not None
    assert (stage.steps, stage.optimizer.name, stage.optimizer.lr) == (7, "sgd", 0.3)
    assert (stage.optimizer.weight_decay, stage.optimizer.momentum) == (0.02, 0.5)
    assert (stage.schedule.power, stage.schedule.warmup, stage.schedule.floor) == (0.9, 0, 0)


@pytest.mark.parametrize("weighting", [False, True])
def test_saved_tokens_are_the_loaded_ones(teacher: Teacher, tmp_path: Path, weighting: bool) -> None:
    objective, path = objective_for(teacher, weighting=weighting), tmp_path / "tokens.safetensors"
    method, fingerprint = method_for(teacher, weighting=weighting), teacher.fingerprint()
    assert method.pretraining is not None
    method.pretraining.save(objective, path, {"teacher": fingerprint, "seed": 3})
    method.pretraining.load(path, fingerprint)
    assert method.pretraining.done
    assert torch.equal(method.tokens, objective.tokens)
    if weighting:
        assert method.weighting is not None
        assert objective.weighting is not None
        torch.testing.assert_close(method.weighting.state_dict(), objective.weighting.state_dict(), rtol=0, atol=0)
        assert not any(value.requires_grad for value in method.weighting.parameters())
    with safetensors.safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["card"])
    assert (card["method"], card["teacher"], card["seed"]) == ("maskd", fingerprint, 3)
    assert (card["layout"]["tokens"], card["layout"]["classes"]) == (4, CLASSES)
    assert (card["training"]["steps"], card["training"]["optimizer"]["lr"]) == (1000, 0.1)


LAYOUT = {"tokens": 4, "channels": CLASSES, "classes": CLASSES, "tap": "logits", "weighting": False}
GOOD = {"tokens": torch.ones(4, CLASSES)}


def written(path: Path, tensors: dict[str, Tensor], card: object) -> None:
    safetensors.torch.save_file(tensors, path, metadata={"card": json.dumps(card)})


def written_as(**changes: Any) -> Callable[[Path], None]:
    layout = {**LAYOUT, **changes}
    tokens = torch.ones(layout["tokens"], layout["channels"])
    return lambda path: written(path, {"tokens": tokens}, {**FORMAT, "layout": layout, "teacher": "a" * 64})


def load(path: Path, fingerprint: str | None) -> MaskedDistillation:
    method = create_method("maskd", CLASSES, {"feature": 12}, {"feature": 16}, tokens=4)
    assert isinstance(method, MaskedDistillation)
    assert method.pretraining is not None
    method.pretraining.load(path, fingerprint)
    return method


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, r"^cannot read tokens from .*; give another tokens_file, or none to learn them \(no such"),
        (lambda path: path.mkdir(), "^cannot read tokens from"),
        (lambda path: path.write_bytes(b"not safetensors"), "^cannot read tokens from"),
        (lambda path: safetensors.torch.save_file(GOOD, path), "^cannot read tokens from .* has no card"),
        (
            lambda path: safetensors.torch.save_file(GOOD, path, metadata={"card": "{"}),
            "^cannot read tokens from .* has no card",
        ),
        (lambda path: written(path, GOOD, {"version": 1, "model": {"name": "x"}}), "is not a file of tokens"),
        (lambda path: written(path, GOOD, FORMAT), r"\(tokens None, not 4, channels None, not 5, "),
        (written_as(tokens=8), r"\(tokens 8, not 4\); change the method's options, or train"),
        (written_as(channels=7, classes=7), r"\(channels 7, not 5, classes 7, not 5\)"),
        (written_as(tap="feature"), r"\(tap feature, not logits\)"),
        (written_as(tap="feature", channels=64), r"\(channels 64, not 5, tap feature, not logits\)"),
        (
            lambda path: written(path, {"tokens": torch.ones(4, 4)}, {**FORMAT, "layout": LAYOUT, "teacher": "b" * 64}),
            "is damaged: its tensors are not what its card says",
        ),
        (written_as(), r"tokens of another teacher \(aaaaaaaaaaaa, not bbbbbbbbbbbb\); leave tokens_file out"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "tokens.safetensors"
    write(path)
    with pytest.raises(SegtailorError, match=message) as error:
        load(path, "b" * 64)
    assert "\n" not in str(error.value)
    assert "tokens.safetensors" in str(error.value)


def test_without_a_fingerprint_the_teacher_is_not_checked(tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    written_as()(path)
    for fingerprint in (None, "a" * 64):
        assert torch.equal(load(path, fingerprint).tokens, GOOD["tokens"])
