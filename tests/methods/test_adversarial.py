from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.losses import Step
from segtailor.methods import Method, check_options, create_method
from segtailor.methods.adversarial import Adversarial, Discriminator, LogitAdversary, SelfAttention, discriminator_loss
from segtailor.models.network import SegOutput

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .tester import MethodTester


def trained(method: Method) -> None:
    """Mark the discriminator as the engine does."""
    assert method.adversary is not None
    method.adversary.trained = True


class TestAdversarial(MethodTester):
    name = "adversarial"
    prepare = staticmethod(trained)
    options: ClassVar = {"width": 8, "adversarial": 1.0}
    size_matters = True  # patches see more context in a larger crop
    terms = frozenset({"adversarial"})


class TestAdversarialPublished(TestAdversarial):
    couples_images = True
    options: ClassVar = {"variant": "published", "width": 8, "adversarial": 1.0}
    void_matters = True

    def call(self, method: Any, student: SegOutput, teacher: SegOutput, target: Tensor, progress: float) -> Any:
        # Each pass advances batch norm and the power iteration, so every call starts from the same state.
        if isinstance(method, Adversarial):
            method = copy.copy(method)
            method.adversary = copy.deepcopy(method.adversary)
        return super().call(method, student, teacher, target, progress)


def adversary(**options: Any) -> tuple[Adversarial, LogitAdversary]:
    torch.manual_seed(0)
    method = create_method("adversarial", CLASSES, STUDENT, TEACHER, width=8, **options)
    assert isinstance(method, Adversarial)
    assert isinstance(method.adversary, LogitAdversary)
    trained(method)
    return method, method.adversary


def test_the_published_discriminator_is_as_large_as_published() -> None:
    discriminator = Discriminator(19, normalized=True)
    assert sum(value.numel() for value in discriminator.parameters()) == pytest.approx(3.19e6, rel=2e-3)
    for size, scores in (
        ((64, 64), (1, 1)),
        ((64, 128), (1, 5)),
        ((45, 45), (2, 2)),
        ((4, 4), (1, 1)),
        ((8, 30), (1, 4)),
    ):
        assert discriminator.eval()(torch.zeros(2, 19, *size)).shape == (2, 1, *scores)


def test_attention_starts_as_the_identity_and_mixes_by_similarity() -> None:
    torch.manual_seed(0)
    attention, maps = SelfAttention(8), torch.randn(1, 8, 2, 3)
    torch.testing.assert_close(attention(maps), maps)
    with torch.no_grad():
        attention.gain.fill_(2.0)
    query, key, value = (layer(maps)[0].flatten(1) for layer in (attention.query, attention.key, attention.value))
    expected = maps[0].flatten(1).clone()
    for i in range(6):
        weights = torch.stack([query[:, i] @ key[:, j] for j in range(6)]).softmax(0)
        expected[:, i] += 2 * sum(weights[j] * value[:, j] for j in range(6))
    torch.testing.assert_close(attention(maps)[0].flatten(1), expected)


def test_losses_equal_their_formulas() -> None:
    def score(maps: Tensor) -> Tensor:
        return maps.square().sum((1, 2, 3), keepdim=True)

    class Score(torch.nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return score(maps)

    real, fake = torch.tensor([[[[0.5]]], [[[2.0]]]]), torch.tensor([[[[1.0]]], [[[0.1]]]])
    hinge = discriminator_loss(Score(), real, fake, "hinge", 10)
    assert hinge.item() == pytest.approx((0.75 + 0) / 2 + (2 + 1.01) / 2)
    torch.manual_seed(5)
    share = torch.rand(2, 1, 1, 1)
    torch.manual_seed(5)
    value = discriminator_loss(Score(), real, fake, "wgan-gp", 10)
    norms = (2 * (share * real + (1 - share) * fake)).abs().flatten()
    expected = score(fake).mean() - score(real).mean() + 10 * (norms - 1).square().mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["hinge", "wgan-gp"])
@pytest.mark.parametrize("variant", ["clean", "published"])
def test_the_discriminator_learns_to_tell_the_two_apart(loss: str, variant: str) -> None:
    method, opponent = adversary(loss=loss, variant=variant, lr=0.01)
    student, teacher = output(STUDENT).detach(), output(TEACHER, seed=2).detach()
    optimizer = opponent.build_optimizer(opponent.parameters())
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        value = opponent(student, teacher, labels(), Step())
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]
    assert student.logits.grad is None
    own = method(student, teacher, labels(), 0.5)["adversarial"]
    alike = method(teacher, teacher, labels(), 0.5)["adversarial"]
    assert own > alike  # the student's maps are told from the teacher's, and it is charged for it


def test_outside_the_engine_it_is_refused_until_its_discriminator_is_trained() -> None:
    method = create_method("adversarial", CLASSES, STUDENT, TEACHER)
    with pytest.raises(SegtailorError, match="method adversarial has an adversary that nobody trains") as error:
        method(output(STUDENT), output(TEACHER, seed=2), labels(), 0.5)
    assert "\n" not in str(error.value)


def test_the_opponent_is_no_part_of_the_method() -> None:
    method, _ = adversary()
    assert not list(method.parameters())
    assert not method.state_dict()
    assert create_method("adversarial", CLASSES, STUDENT, TEACHER, adversarial=0).adversary is None


def test_a_grid_that_is_too_small_is_refused_in_one_line() -> None:
    method, _ = adversary()
    small = output(STUDENT, size=(3, 8))
    with pytest.raises(SegtailorError, match=r"at least 4 x 4, not 3 x 8; use a larger data\.crop") as error:
        method(small, output(TEACHER, size=(3, 8)), labels(), 0.5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"adversarial": -1}, {"loss": "vanilla"}, {"lr": 0}, {"betas": [0.9, 1.0]}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(SegtailorError, match=f"option '{next(iter(options))}'"):
        check_options("adversarial", options)
