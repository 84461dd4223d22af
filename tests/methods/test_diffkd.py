from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.methods import create_method
from segtailor.methods.diffkd import DiffusedPair

from .cases import CLASSES, STUDENT, TEACHER, changed, labels, output, tensors
from .processes import Pair, step_gradients
from .tester import EARLY, LATE, MethodTester, uneven_labels

OWN = ("ddim", "rec")
"""Terms that teach the method's own networks, not the student."""


class DiffKDTester(MethodTester):
    name = "diffkd"
    random = True

    # The tester asks that every term reaches the student; ddim and rec are made not to.
    def test_gradient_reaches_student_and_projectors_never_the_teacher(self) -> None:
        method, (student, teacher) = self.method(), self.pair_of_outputs()
        for module in method.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                # At bias 0 the next batch norm undoes the scale of a single channel, whose gradient is then rounding.
                torch.nn.init.constant_(module.bias, 0.1)
        for progress in (EARLY, LATE):
            for term, value in self.call(method, student, teacher, labels(), progress).items():
                leaves = list(tensors(student).values())
                gradients = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
                reached = any(item is not None and item.abs().sum() > 0 for item in gradients)
                assert reached != term.startswith(OWN), term
                value.backward()
        untrained = {key for key, value in method.named_parameters() if value.grad is None or not value.grad.any()}
        assert not untrained
        assert all(value.grad is None for value in tensors(teacher).values())

    # Padding with zeros and the noise drawn for a larger map make the value differ a little; a sum would triple.
    def test_means_do_not_change_with_the_crop_size(self, progress: float) -> None:
        method, (student, teacher), target = self.method(), self.pair_of_outputs(4), labels(4)
        more = [changed(value, lambda tensor: torch.cat((tensor, tensor, tensor), 2)) for value in (student, teacher)]
        before = self.call(method, student, teacher, target, progress)
        after = self.call(method, *more, torch.cat((target, target, target), 1), progress)
        for term, value in before.items():
            torch.testing.assert_close(after[term], value, rtol=0.3, atol=0, msg=term)


class TestDiffKD(DiffKDTester):
    couples_images = True
    options: ClassVar = {"steps": 2}  # compiling takes as long as there are steps
    terms = frozenset({"kd", "ddim", "kd_aux", "ddim_aux"})


class TestDiffKDPublished(DiffKDTester):
    couples_images = True
    options: ClassVar = {"variant": "published", "feature": 1, "steps": 1}
    void_matters = True
    terms = frozenset({"kd", "ddim", "kd_aux", "ddim_aux", "kd_feature", "ddim_feature", "rec_feature"})


class TestDiffKDOnTheFeature(DiffKDTester):
    couples_images = True
    options: ClassVar = {"logits": 0, "aux": 0, "feature": 1, "encoder_width": 8, "steps": 2}
    terms = frozenset({"kd_feature", "ddim_feature", "rec_feature"})


class TestDiffKDWithEverySwitch(DiffKDTester):
    couples_images = True
    phased = True
    options: ClassVar = {
        "aux": 0,
        "feature": 1,
        "encoder_width": None,
        "start": "from_noise",
        "denoiser_gradient": "ddim_only",
        "distance": "mse",
        "kernel": 1,
        "steps": 2,
    }
    terms = frozenset({"kd", "ddim", "kd_feature", "ddim_feature"})


class TestDiffKDWithoutItsOwnTerm(DiffKDTester):
    couples_images = True
    options: ClassVar = {"aux": 0, "ddim": 0, "distance": "kl", "mixing": "linear", "steps": 2}
    terms = frozenset({"kd"})


def build(**options: Any) -> Any:
    torch.manual_seed(7)
    return create_method("diffkd", CLASSES, STUDENT, TEACHER, **options)


def call(method: Any, target: Tensor | None = None, progress: float = 0.5, batch: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(11)
    target = labels(batch) if target is None else target
    terms: dict[str, Tensor] = method(output(STUDENT, batch), output(TEACHER, batch, seed=2), target, progress)
    return terms


def weighted(count: Tensor, values: Tensor) -> float:
    return sum(a * b for a, b in zip(count.tolist(), values.tolist(), strict=True)) / sum(count.tolist())


def test_equals_the_formula_written_out_for_single_positions() -> None:
    """Kernel 1, two steps (times 250 and 0), squared error, on columns (K, all positions); the adapter as it is."""
    method = build(aux=0, kernel=1, steps=2, distance="mse", logits=2.0, ddim=3.0)
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    target[1, :20] = 255
    pair = method.pairs["logits"].double()
    width = student.logits.shape[-2] * student.logits.shape[-1]
    count = torch.zeros(2, 6, 8)
    for image, i, j in (target != 255).nonzero().tolist():
        count[image, i * 6 // 46, j * 8 // 63] += 1
    count = count.flatten().double()

    def columns(maps: Tensor) -> Tensor:
        return maps.detach().double().transpose(0, 1).flatten(1)

    def norm(values: Tensor, layer: Any) -> Tensor:
        mean, variance = values.mean(1, keepdim=True), values.var(1, keepdim=True, correction=0)
        return (values - mean) / (variance + 1e-5).sqrt() * layer.weight[:, None] + layer.bias[:, None]

    def multiply(layer: Any, values: Tensor) -> Tensor:
        bias = 0 if layer.bias is None else layer.bias[:, None]
        return layer.weight[:, :, 0, 0] @ values + bias

    def predict(values: Tensor, times: list[int]) -> Tensor:
        layers = pair.denoiser.layers
        values = values + torch.cat([pair.denoiser.times.weight[t][:, None].expand(-1, width) for t in times], 1)
        values = norm(multiply(layers[0], values), layers[1]).relu()
        values = norm(multiply(layers[3], values), layers[4])
        return multiply(layers[8], norm(multiply(layers[5], values), layers[6]).relu())

    def level(time: int) -> float:
        return math.prod(1 - (1e-4 + (0.02 - 1e-4) * step / 999) for step in range(time + 1))

    lifted, goal = multiply(pair.projector, columns(student.logits)) * (count > 0), columns(teacher.logits)
    goal = goal * (count > 0)
    torch.manual_seed(11)
    noise, other = torch.randn(2, CLASSES, 6, 8), torch.randn(2, CLASSES, 6, 8)
    times = torch.randint(0, 1000, (2,)).tolist()
    body = pair.adapter.layers
    seen = norm(multiply(body[3], norm(multiply(body[0], lifted), body[1]).relu()), body[4])
    noisy = torch.empty_like(lifted)
    for image in range(2):
        part = slice(image * width, (image + 1) * width)
        pooled = torch.tensor([weighted(count[part], row[part]) for row in seen], dtype=torch.float64)
        scores = pair.adapter.gates(pooled).tolist()
        gamma = math.exp(scores[0]) / sum(math.exp(score) for score in scores)
        mixed = gamma * lifted[:, part] + (1 - gamma) * columns(noise)[:, part]
        noisy[:, part] = mixed / math.sqrt(gamma**2 + (1 - gamma) ** 2)
    for now, after in ((level(250), level(0)), (level(0), 1.0)):
        guess = predict(noisy, [250, 250] if now < 0.9 else [0, 0])
        clean = (noisy - math.sqrt(1 - now) * guess) / math.sqrt(now)
        noisy = math.sqrt(after) * clean + math.sqrt(1 - after) * guess
    refined = norm(multiply(pair.refiner[0], noisy), pair.refiner[1])
    levels = torch.tensor([level(time) for time in times], dtype=torch.float64).repeat_interleave(width)
    drawn = columns(other)
    guess = predict(levels.sqrt() * goal + (1 - levels).sqrt() * drawn, times)
    expected = {
        "kd": 2 * weighted(count, (refined - goal).square().mean(0)),
        "ddim": 3 * weighted(count, (guess - drawn).square().mean(0)),
    }
    pair.float()
    torch.manual_seed(11)
    values = {term: value.item() for term, value in method(student, teacher, target, 0.5).items()}
    assert values == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("distance", ["dist", "kl", "mse"])
def test_published_is_clean_with_linear_mixing_where_nothing_is_void(distance: str) -> None:
    target = labels().clamp(max=4)
    options = {"distance": distance, "aux": 0.4}
    published = call(build(variant="published", **options), target)
    clean = call(build(mixing="linear", **options), target)
    # Classes are correlated over an image in one and over the batch in the other, and cells hold 48 or more pixels.
    close = {"rtol": 0.1, "atol": 0} if distance == "dist" else {"rtol": 0.02, "atol": 0}
    for term, value in published.items():
        torch.testing.assert_close(clean[term], value, msg=term, **close)


def test_each_term_trains_its_own_part() -> None:
    method = build(logits=0, aux=0, feature=1, encoder_width=8)
    pair = method.pairs["feature"]
    parts = {name: list(part.parameters()) for name, part in pair.named_children()}
    trained = {
        "kd_feature": {"projector", "adapter", "denoiser", "refiner"},
        "ddim_feature": {"denoiser"},
        "rec_feature": {"auto_encoder"},
    }
    for term, value in call(method).items():
        method.zero_grad()
        value.backward()
        reached = {
            name for name, part in parts.items() if any(item.grad is not None and item.grad.any() for item in part)
        }
        assert reached == trained[term], term


def test_the_denoiser_can_be_kept_from_kd() -> None:
    shared, apart = (build(aux=0, denoiser_gradient=choice) for choice in ("shared", "ddim_only"))
    values = []
    for method, reached in ((shared, True), (apart, False)):
        value = call(method)["kd"]
        value.backward()
        values.append(value)
        gradients = [item.grad for item in method.pairs["logits"].denoiser.parameters()]
        assert any(item is not None and item.any() for item in gradients) == reached
        assert method.pairs["logits"].adapter.gates.weight.grad.any()
    assert values[0] == values[1]


def test_the_auto_encoder_can_be_frozen_part_of_the_way(pair: Pair) -> None:
    options: dict[str, Any] = {"logits": 0, "aux": 0, "feature": 1, "steps": 1, "freeze_encoder_after": 0.5}
    method = build(**options)
    assert method.sparse_gradients
    assert set(call(method, progress=0.5)) == {"kd_feature", "ddim_feature", "rec_feature"}
    late = call(method, progress=0.51)
    assert set(late) == {"kd_feature", "ddim_feature"}
    sum(late.values(), torch.zeros(())).backward()
    assert all(item.grad is None for item in method.pairs["feature"].auto_encoder.parameters())
    for progress in (EARLY, LATE):
        alone = step_gradients("diffkd", options, progress, uneven_labels(), 1)
        # Two processes agree on which parameters this phase leaves alone.
        assert set(pair.step("diffkd", options, progress, uneven_labels(), 2)) == set(alone)
    assert not build(logits=1, aux=0, feature=1).sparse_gradients


def test_terms_on_auxiliary_logits_are_left_out_where_a_network_has_none() -> None:
    method = build()
    assert method.sparse_gradients  # their parameters then stay unused
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    teacher.aux_logits = None
    assert set(method(student, teacher, labels(), 0.5)) == {"kd", "ddim"}
    assert not build(aux=0).sparse_gradients


def test_a_weight_of_zero_drops_the_pair_and_its_modules() -> None:
    assert set(build(aux=0).pairs) == {"logits"}
    assert set(build(logits=0, aux=0, feature=1).pairs) == {"feature"}
    method = build(logits=0, aux=0)
    assert not list(method.parameters())
    assert call(method) == {}


def test_weights_scale_their_own_terms_only() -> None:
    plain, heavy = call(build()), call(build(logits=2, aux=1.2, ddim=5))
    factors = {"kd": 2, "kd_aux": 3, "ddim": 5, "ddim_aux": 5}
    for term, factor in factors.items():
        torch.testing.assert_close(heavy[term], factor * plain[term])


def test_evaluation_computes_what_training_does() -> None:
    method = build(feature=1)
    expected = call(method)
    method.eval()
    torch.testing.assert_close(call(method), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("variant", ["clean", "published"])
def test_one_image_of_one_position_is_finite(kernel: int, variant: str) -> None:
    method = build(kernel=kernel, variant=variant, feature=1)
    student, teacher = output(STUDENT, 1, size=(1, 1)), output(TEACHER, 1, size=(1, 1), seed=2)
    terms = method(student, teacher, torch.zeros(1, 8, 8, dtype=torch.uint8), 0.5)
    sum(terms.values(), torch.zeros(())).backward()
    assert all(value.isfinite() for value in terms.values())
    assert all(value.grad is None or value.grad.isfinite().all() for value in method.parameters())


def test_a_step_costs_one_map_of_memory() -> None:
    kept = []
    for steps in (1, 2, 6):
        method = build(aux=0, steps=steps)
        known = {value.data_ptr() for value in (*method.parameters(), *method.buffers())}
        sizes: dict[int, int] = {}

        def pack(value: Tensor, known: set[int] = known, sizes: dict[int, int] = sizes) -> Tensor:
            if value.data_ptr() not in known:
                sizes[value.data_ptr()] = value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            call(method)
        kept.append(sum(sizes.values()))
    one_map = 2 * CLASSES * 48
    assert kept[2] - kept[1] < 4 * 1.1 * one_map


def test_widths_of_the_auto_encoder() -> None:
    def width(**options: Any) -> int:
        pair = build(logits=0, aux=0, feature=1, **options).pairs["feature"]
        assert isinstance(pair, DiffusedPair)
        return pair.projector.out_channels

    assert width() == TEACHER["feature"]  # at most the teacher's own
    assert width(encoder_width=4) == 4
    assert width(encoder_width=None) == TEACHER["feature"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "cosine"}, "option 'distance': .*'dist', 'kl' or 'mse'"),
        ({"steps": 0}, "option 'steps': .*greater than or equal to 1"),
        ({"kernel": 5}, "option 'kernel': .*1 or 3"),
        ({"rec": 0}, "option 'rec': .*greater than 0"),
        ({"freeze_encoder_after": 0}, "option 'freeze_encoder_after': .*greater than 0"),
        ({"ddim": 0, "denoiser_gradient": "ddim_only"}, "option 'denoiser_gradient': .*nothing trains the denoiser"),
        ({"mixng": "linear"}, "unknown option of method 'diffkd' 'mixng'; nearest: mixing"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        build(**options)
    assert "\n" not in str(error.value)
