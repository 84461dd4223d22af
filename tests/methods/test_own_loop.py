"""A method in a loop of the user's: any two modules in, the engine's terms out."""

from __future__ import annotations

import copy
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import segtailor
from processes import under_torchrun
from segtailor.errors import SegtailorError
from segtailor.methods import METHODS, DistillationLoss, create_method
from segtailor.models import create_model

CLASSES = 4
IN_LOOPS = [name for name in METHODS if name not in ("none", "lad", "maskd")]
EXAMPLES = Path(__file__).parents[2] / "examples"


class Net(nn.Module):
    """A hand-written network that enlarges its logits."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(self.body(self.stem(images)))
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


def batch(seed: int = 0, size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, CLASSES, (size, 64, 96), generator=generator)
    target[0, :40] = 255
    return torch.randn(size, 3, 64, 96, generator=generator), target


def loss_of(name: str = "cwd", student: nn.Module | None = None, **options: Any) -> tuple[nn.Module, DistillationLoss]:
    student = Net(8, 1) if student is None else student
    options = {"teacher": Net(12, 2), "total_steps": 10, **options}
    torch.manual_seed(5)
    return student, create_method(name, CLASSES, student=student, **options)


@pytest.mark.parametrize("name", IN_LOOPS)
def test_terms_equal_those_of_the_engines_networks(name: str) -> None:
    student, loss = loss_of(name)
    images, target = batch()
    adapted = [segtailor.adapt(Net(width, seed), CLASSES, preprocess={"mean": (0, 0, 0), "std": (1, 1, 1), "scale": 1})
               for width, seed in ((8, 1), (12, 2))]  # fmt: skip
    torch.manual_seed(5)
    method = create_method(name, CLASSES, adapted[0].tap_channels, adapted[1].tap_channels)
    if method.adversary is not None:
        method.adversary.trained = True
    torch.manual_seed(6)
    terms = loss(images, target)
    torch.manual_seed(6)
    expected = method(adapted[0](images), adapted[1](images), target, 0.1)
    torch.testing.assert_close(terms, expected)
    torch.autograd.backward(list(terms.values()))
    assert all(value.grad is not None for value in student.stem.parameters())  # type: ignore[union-attr]


def test_a_forward_made_by_others_is_read_and_not_made_again() -> None:
    images, target = batch()
    (_, one), (student, two) = loss_of("kt"), loss_of("kt")
    calls = []
    student.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        student(torch.randn(1, 3, 64, 96))  # a validation in between is not taken for the batch
    result = student(images)
    terms = two(images, target, student_output=result)
    assert two.student_output is result
    assert len(calls) == 2
    torch.testing.assert_close(terms, one(images, target))
    with pytest.raises(
        SegtailorError, match=r"was not run since the last call.*run the student once .* with gradients"
    ):
        two(images, target, student_output=result)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_teacher_run_by_others_is_read_however_it_was_run(mode: Any) -> None:
    images, target = batch()
    teacher = Net(12, 2)
    (_, one), (student, two) = loss_of("kt"), loss_of("kt", teacher=teacher)
    with mode():
        result = teacher(images)
    terms = two(images, target, teacher_output=result)
    torch.testing.assert_close(terms, one(images, target))
    torch.autograd.backward(list(terms.values()))
    assert all(value.grad is not None for value in student.stem.parameters())  # type: ignore[union-attr]
    with pytest.raises(SegtailorError, match=r"the teacher Net: .* run the teacher once before each loss, and compile"):
        two(images, target, teacher_output=result)


def test_parameters_are_the_projectors_and_networks_stay_as_they_are() -> None:
    student, teacher = Net(8, 1).train(), Net(12, 2).train()
    kinds = [type(part) for part in student.modules()]
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    loss = create_method("cwd", CLASSES, student=student, teacher=teacher)
    assert [value.shape for value in loss.parameters()] == [(12, 8, 1, 1)]
    assert set(loss.state_dict()) == {"method.projector.weight", "_extra_state"}
    optimizer = torch.optim.SGD([*student.parameters(), *loss.parameters()], lr=0.01)
    torch.autograd.backward(list(loss(*batch()).values()))
    optimizer.step()
    assert not teacher.training
    assert student.training
    assert [type(part) for part in student.modules()] == kinds
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    assert all(value.grad is None for value in teacher.parameters())
    loss.close()
    parts = [*student.modules(), *teacher.modules()]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)


def test_the_adversary_learns_inside_and_is_part_of_the_checkpoint() -> None:
    student, loss = loss_of("adversarial", adversarial=1.0, lr=0.01, width=8)
    adversary = loss.method.adversary
    assert adversary is not None
    own = {id(value) for value in adversary.parameters()}
    assert not any(id(value) in own for value in loss.parameters())
    losses = []
    for _ in range(30):
        torch.autograd.backward(list(loss(*batch()).values()))
        assert all(value.grad is None for value in adversary.parameters())
        losses.append(loss.adversary_loss)
        student.zero_grad()
    assert losses[-1] < losses[0]
    _, other = loss_of("adversarial", adversarial=1.0, lr=0.01, width=8)
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert other.method.adversary is not None
    torch.testing.assert_close(other.method.adversary.state_dict(), adversary.state_dict())
    for _ in range(2):  # the step that waited was saved
        torch.testing.assert_close(other(*batch()), loss(*batch()), rtol=0, atol=0)
    loss.to("meta")
    assert all(value.is_meta for value in adversary.parameters())


def test_a_loss_is_copied_in_the_middle_of_training() -> None:
    student, loss = loss_of("adversarial", width=8)
    torch.autograd.backward(list(loss(*batch()).values()))
    student(batch()[0])  # its graph is not yet used
    both = torch.optim.swa_utils.AveragedModel(nn.ModuleList([student, loss])).module
    twin: Any = both[1]
    assert twin.student_output is None
    torch.testing.assert_close(twin(*batch(1)), loss(*batch(1)))
    assert twin._views["student"].net is both[0]


def test_progress_is_counted_or_set_and_asked_for_where_it_matters() -> None:
    options: dict[str, Any] = {"variant": "published", "tuning_point": 0.5}
    images, target = batch()
    _, counted = loss_of("kt", total_steps=2, **options)
    _, early = loss_of("kt", total_steps=None, **options)
    with pytest.raises(SegtailorError, match="method kt changes over the run: pass total_steps="):
        early(images, target)
    early.set_progress(0.1)
    late = counted(images, target)["ft"]
    assert not torch.allclose(early(images, target)["ft"], late)
    early.set_progress(0.5)
    torch.testing.assert_close(early(images, target)["ft"], late)
    with pytest.raises(SegtailorError, match="between 0 and 1"):
        early.set_progress(2)


def test_named_taps_and_networks_of_segtailor() -> None:
    _, loss = loss_of("fitnet", student_taps={"feature": "stem"}, teacher_taps={"feature": "body", "logits": "head"})
    assert loss.taps["student"]["feature"] == "stem"
    assert set(loss(*batch())) == {"fitnet"}
    ours = create_model("deeplabv3plus-lcnet_035", CLASSES)
    images, target = batch()
    loss = create_method("cwd", CLASSES, student=ours, teacher=Net(12, 2))
    assert set(loss(images * 50 + 128, target, teacher_images=images)) == {"cwd_logits", "cwd_feature"}
    assert loss.student_output.logits.shape[1] == CLASSES
    with pytest.raises(SegtailorError, match="the student is a network of segtailor, whose taps have names; leave out"):
        create_method("cwd", CLASSES, student=ours, teacher=Net(12, 2), student_taps={"feature": "decoder"})


def test_auxiliary_logits_are_named_like_other_taps() -> None:
    class Two(Net):
        def __init__(self, width: int, seed: int) -> None:
            super().__init__(width, seed)
            self.aux = nn.Conv2d(width, CLASSES, 1)

        def forward(self, images: Tensor) -> Tensor:
            self.aux(self.stem(images))
            return super().forward(images)

    networks: dict[str, Any] = {"student": Two(8, 1), "teacher": Two(12, 2)}
    taps: Any = {f"{role}_taps": {"aux_logits": "aux"} for role in networks}
    _, loss = loss_of("kt", **networks, variant="published", **taps)
    assert loss.taps["student"]["aux_logits"] == "aux"
    assert "kd_aux" in loss(*batch())


def test_autocast_and_compilation() -> None:
    images, target = batch()
    _, loss = loss_of("kt")
    expected = loss(images, target)
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss(images, target)
    assert all(value.dtype == torch.float32 for value in terms.values())
    torch.testing.assert_close(terms, expected, rtol=0.05, atol=0.02)
    torch.compiler.reset()
    student = Net(8, 1)
    _, loss = loss_of("kt", student=torch.compile(student, backend="aot_eager"))  # type: ignore[arg-type]
    terms = loss(images, target)
    torch.testing.assert_close(terms, expected)
    torch.autograd.backward(list(terms.values()))
    _, plain = loss_of("kt", student=(other := Net(8, 1)))
    torch.autograd.backward(list(plain(images, target).values()))
    for value, same in zip(student.stem.parameters(), other.stem.parameters(), strict=True):
        torch.testing.assert_close(value.grad, same.grad)


def gradients(rank: int, world: int, name: str) -> dict[str, Tensor]:
    """Return the gradients of one step on this rank's share of a batch of four."""
    torch.set_num_threads(1)
    net = Net(8, 1)
    student: nn.Module = DistributedDataParallel(net) if world > 1 else net
    _, loss = loss_of(name, student=student, **({"width": 8} if name == "adversarial" else {}))
    images, target = batch()
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    for _ in range(2):
        net.zero_grad()
        loss.zero_grad()
        terms = loss(images[share], target[share])
        torch.autograd.backward([*terms.values(), loss.student_output.mean()])
    named = [*net.named_parameters(), *loss.named_parameters()]
    return {key: value.grad for key, value in named if value.grad is not None}


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    _, loss = loss_of("adversarial", student=DistributedDataParallel(Net(8, 1)), width=8)
    adversary = loss.method.adversary
    assert adversary is not None
    with torch.no_grad():
        for value in adversary.parameters():
            value += rank
    for call in range(2):
        if rank == 0:
            torch.save(loss.state_dict(), Path(folder) / f"state{call}.pt")
        torch.autograd.backward([*loss(*batch()).values(), loss.student_output.mean()])
    torch.save(adversary.state_dict(), Path(folder) / f"adversary{rank}.pt")
    for name in ("kd", "feature", "adversarial"):
        torch.save(gradients(rank, 2, name), Path(folder) / f"{name}{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    under_torchrun(worker, str(tmp_path))
    assert (tmp_path / "state1.pt").exists()
    torch.testing.assert_close(torch.load(tmp_path / "adversary0.pt"), torch.load(tmp_path / "adversary1.pt"))
    for name in ("kd", "feature", "adversarial"):
        alone = gradients(0, 1, name)
        for rank in range(2):
            shared = torch.load(tmp_path / f"{name}{rank}.pt")
            torch.testing.assert_close(shared, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lad", {}, "method lad builds and trains its teacher first, .* use `segtailor distill`"),
        ("maskd", {}, "method maskd needs the teacher's receptive tokens.* pass that file: tokens_file="),
        ("cwd", {"teacher": None}, "method cwd learns from a teacher; pass teacher="),
        ("cwd", {"logitz": 1}, "unknown option of method 'cwd' 'logitz'; nearest: logits"),
        ("cwd", {"student_taps": {"feature": "bodi"}}, "unknown module of the student Net .*'bodi'; nearest: body"),
        ("kt", {"feature_taps": "stages.7"}, "method kt reads 'stages.7' of the student.*student_taps="),
        ("cwd", {"student_taps": {"featur": "body"}}, "unknown tap in student_taps 'featur'; nearest: feature"),
        ("kd", {"teacher_taps": {"feature": "body"}}, "in teacher_taps 'feature'; nearest: logits. method kd reads no"),
        ("cwd", {"student_taps": "body"}, "create_method, 'student_taps': Input should be a valid .*got 'body'"),
        ("cwd", {"total_steps": 0}, "create_method, 'total_steps': Input should be greater than 0"),
        ("cwd", {"total_steps": -3}, "create_method, 'total_steps': Input should be greater than 0"),
        ("cwd", {"total_steps": "nine"}, "create_method, 'total_steps': Input should be a valid integer"),
        ("cwd", {"image_size": 64}, "create_method, 'image_size': Input should be a valid tuple"),
        ("cwd", {"ignore_index": None}, "create_method, 'ignore_index': Input should be a valid integer"),
        ("cwd", {"student": "resnet18"}, "create_method, 'student': Input should be an instance of Module"),
        ("cwd", {"teacher": [Net(12, 2)]}, "create_method, 'teacher': Input should be an instance of Module"),
    ],
)
def test_mistakes_are_one_line(name: str, options: dict[str, Any], message: str) -> None:
    student, teacher = Net(8, 1), Net(12, 2)
    with pytest.raises(SegtailorError, match=message) as error:
        create_method(name, CLASSES, **{"student": student, "teacher": teacher, **options})
    assert "\n" not in str(error.value)
    parts = [*student.modules(), *teacher.modules()]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    assert all(value.requires_grad for value in teacher.parameters())


def test_targets_and_outputs_of_other_images_are_refused() -> None:
    student, loss = loss_of("kd")
    images, target = batch()
    for size in ((32, 48), (128, 192)):
        assert loss(images, F.interpolate(target[:, None].float(), size)[:, 0].long())["kd"].isfinite()
    assert loss(images, target.byte()) == loss(images, target) == loss(images, target.int())
    wrong: list[Any] = [
        target[:1], target[:, :32], target.repeat(1, 2, 1), target[0], target[:, None], target.float(), target.tolist(),
        target.numpy(), F.one_hot(target % CLASSES).permute(0, 3, 1, 2),
    ]  # fmt: skip
    for value in wrong:
        with pytest.raises(
            SegtailorError, match=r"the target of images \[4, 3, 64, 96\] is .*; it holds class indices"
        ):
            loss(images, value)
    with pytest.raises(SegtailorError, match=r"images are a tensor \(B,3,H,W\)"):
        loss([images], target)  # type: ignore[arg-type]
    with pytest.raises(SegtailorError, match="the teacher Net was run on 2 images; the batch has 4"):
        loss(images, target, teacher_images=images[:2])
    with pytest.raises(SegtailorError, match="the student Net was run on 2 images; the batch has 4"):
        loss(images, target, student_output=student(images[:2]))


def test_wrong_classes_and_shared_networks_are_refused() -> None:
    _, loss = loss_of()
    images, target = batch()
    with pytest.raises(SegtailorError, match=r"the target holds -100; classes are 0 to 3, void is ignore_index=255"):
        loss(images, torch.where(target == 255, -100, target))
    _, loss = loss_of(ignore_index=-100)
    expected = loss(images, torch.where(target == 255, -100, target))
    torch.testing.assert_close(expected, loss(images, torch.where(target == 255, -100, target).char()))
    with pytest.raises(SegtailorError, match="the target holds 255; classes are 0 to 3, void is ignore_index=-100"):
        loss(images, target.byte())
    with pytest.raises(SegtailorError, match="the target holds 4; classes are 0 to 3"):
        loss(images, torch.where(target == 255, -100, target) + (target == 3))
    net = Net(8, 1)
    with pytest.raises(SegtailorError, match=r"share parameters \(stem.0.weight\).*teacher=copy.deepcopy\(teacher\)"):
        create_method("kd", CLASSES, student=net, teacher=net)
    teacher, tied = Net(8, 2), Net(8, 3)
    net.body = teacher.body
    tied.head.weight = nn.Parameter(teacher.head.weight.data)
    for student, name in ((net, "body.0.weight"), (tied, "head.weight")):
        with pytest.raises(SegtailorError, match=f"share parameters .{name}"):
            create_method("kd", CLASSES, student=student, teacher=teacher)
        assert all(value.requires_grad for value in student.parameters())
    with pytest.raises(SegtailorError, match="'num_classes': Input should be less than or equal to 255"):
        create_method("kd", 256, student=Net(8, 1), teacher=teacher)
    with pytest.raises(SegtailorError, match="needs student_channels and teacher_channels, or student and teacher"):
        create_method("kd", CLASSES)  # type: ignore[call-overload]


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plain_loop_trains() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    history = example("plain_loop").main("kd")
    assert len(history) == 4
    assert history[-1]["kd"] < history[0]["kd"]


def test_the_lightning_module_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("lightning") is None:
        stand_in: Any = types.ModuleType("lightning")
        stand_in.LightningModule = type(
            "LightningModule", (nn.Module,), {"log_dict": lambda self, terms: None, "device": "cpu"}
        )
        monkeypatch.setitem(sys.modules, "lightning", stand_in)
    student = Net(8, 1)
    module = example("lightning_module").Distillation(student, Net(12, 2), CLASSES, 4)
    module.on_fit_start()
    optimizer = module.configure_optimizers()
    assert len(optimizer.param_groups[0]["params"]) == len(list(student.parameters())) + 1
    if hasattr(module, "log_dict"):
        module.log_dict = lambda terms: None
    losses = []
    for index in range(4):
        optimizer.zero_grad()
        value = module.training_step(batch(), index)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]
    assert not any("teacher" in name for name in module.state_dict())


def test_the_hugging_face_trainer_trains(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    assert example("hf_trainer").main(str(tmp_path), steps=2) > 0
