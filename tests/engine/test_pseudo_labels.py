"""Images without labels in training: what task and methods are given of them, and what their means divide by."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.cases import CLASSES, STUDENT, TEACHER, labels, output, tensors
from methods.tester import NoSyncNoFullSize
from processes import under_torchrun
from segtailor.config import DataConfig, EvaluateConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from segtailor.data.loader import Batch, UnlabelledRows
from segtailor.data.pseudo import UnlabelledImages
from segtailor.engine.launch import launch
from segtailor.engine.loop import ArmTrainer, RunSpec
from segtailor.engine.module import Distiller, target_kind
from segtailor.engine.pseudo_labels import USES, PseudoLabels, check_rows, teacher_classes
from segtailor.errors import SegtailorError
from segtailor.losses import Step, cross_entropy
from segtailor.methods import METHODS, create_method
from segtailor.models.network import SegOutput

from .test_distributed import Plain

SIZE = (16, 24)
CLASS_READERS = {"kt", "ifvd", "bpkd", "heteroakd", "cirkd"}
OWN_TEACHER = {"none", "lad"}
OPTIONS: dict[str, dict[str, Any]] = {
    "cirkd": {"pixel_queue": 40, "region_queue": 10, "pixel_samples": 20, "region_samples": 10},
    "maskd": {"maskd": 1.0},
    "afdcd": {"tap": "feature", "groups": 2},
    "diffkd": {"feature": 0.0},
}


class Guide(Plain):
    """A teacher: never trained, and sure of itself."""

    def __init__(self, width: int = 6) -> None:
        super().__init__(width)
        self.eval().requires_grad_(False)
        self.classifier.weight.mul_(20)

    def forward(self, images: Tensor, target: Tensor | None = None) -> SegOutput:
        return super().forward(images, target).detach()


def batch(step: int, rows: int = 8) -> Batch:
    """Every second row is unlabelled; padding and void are spread unevenly."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (rows, 3, *SIZE), generator=generator, dtype=torch.uint8)
    target = torch.randint(0, 3, (rows, *SIZE), generator=generator, dtype=torch.uint8)
    target[0, :12] = 255
    unlabelled, labelled = torch.arange(1, rows, 2), torch.arange(0, rows, 2)
    target[unlabelled] = 255
    inside = torch.ones(len(unlabelled), *SIZE, dtype=torch.bool)
    inside[0, :, 5:] = False
    return Batch(images, target, [str(row) for row in range(rows)], UnlabelledRows(unlabelled, labelled, inside))


def part(whole: Batch, rows: slice) -> Batch:
    assert whole.unlabelled is not None
    chosen = torch.arange(len(whole.images))[rows]
    inside = {int(row): mask for row, mask in zip(whole.unlabelled.rows, whole.unlabelled.inside, strict=True)}
    unlabelled = [place for place, row in enumerate(chosen.tolist()) if row in inside]
    labelled = [place for place in range(len(chosen)) if place not in unlabelled]
    where = None
    if unlabelled:
        masks = torch.stack([inside[int(chosen[place])] for place in unlabelled])
        where = UnlabelledRows(torch.tensor(unlabelled), torch.tensor(labelled, dtype=torch.int64), masks)
    return Batch(whole.images[rows], whole.target[rows], whole.names[rows], where)


def step_targets(whole: Batch, threshold: float = 0.6) -> tuple[PseudoLabels, SegOutput]:
    torch.manual_seed(0)
    teacher: Any = Guide()
    targets, shared = PseudoLabels([whole], threshold, 0.5), teacher(whole.images)
    targets.label(0, teacher, shared)
    return targets, shared


def test_the_teachers_classes_and_how_sure_it_is() -> None:
    teacher: Any = Guide()
    logits = 3 * torch.randn(3, 5, 4, 6)
    kept = logits.clone()
    classes, sure = teacher_classes(teacher, logits, SIZE, 0.7)
    shares = teacher.upsample(logits, SIZE).softmax(1)
    assert torch.equal(classes.long(), shares.argmax(1))
    assert torch.equal(sure, shares.amax(1) >= 0.7)
    assert 0.1 < sure.float().mean() < 0.9
    assert teacher_classes(teacher, logits, SIZE, 0.0)[1].all()
    assert teacher_classes(teacher, logits, (4, 6), 0.7)[0].shape == (3, 4, 6)
    assert torch.equal(logits, kept)
    assert torch.equal(teacher_classes(teacher, logits.bfloat16(), SIZE, 0.7)[0].unique(), classes.unique())


def test_labelling_neither_waits_for_the_device_nor_holds_all_images_at_full_size() -> None:
    whole, teacher = batch(1), Guide()
    shared = teacher(whole.images)
    targets = PseudoLabels([whole], 0.5, 0.5)
    with NoSyncNoFullSize(limit=2 * 3 * SIZE[0] * SIZE[1]):
        targets.label(0, teacher, shared)  # type: ignore[arg-type]
        targets.of(0)


def test_what_is_given_of_unlabelled_images() -> None:
    whole = batch(1)
    assert whole.unlabelled is not None
    rows, labelled, inside = whole.unlabelled
    targets, shared = step_targets(whole)
    shares = Guide().upsample(shared.logits, SIZE).softmax(1)[rows]
    every, confident = targets.targets["pseudo"][0], targets.targets["pseudo_confident"][0]
    for target in (every, confident):
        assert target.dtype == torch.uint8
        assert torch.equal(target[labelled], whole.target[labelled])
        assert (target[rows][~inside] == 255).all()
    assert torch.equal(every[rows][inside].long(), shares.argmax(1)[inside])
    sure = (shares.amax(1) >= 0.6) & inside
    assert torch.equal(confident[rows] != 255, sure)
    assert torch.equal(confident[rows][sure], every[rows][sure])
    assert 0 < sure.sum() < inside.sum()
    assert targets.confident.tolist() == [sure.sum(), inside.sum()]
    assert torch.equal(targets.targets["supervised"][0], whole.target[labelled])
    assert torch.equal(whole.target[rows].unique(), torch.tensor([255], dtype=torch.uint8))


def test_labelling_ahead_gives_what_labelling_in_passing_gives() -> None:
    whole = batch(2)
    passing, _ = step_targets(whole)
    torch.manual_seed(0)
    teacher: Any = Guide()
    ahead = PseudoLabels([part(whole, slice(0, 4)), part(whole, slice(4, 8))], 0.6, 0.5)
    counted = torch.cat(ahead.targets["pseudo"]) != 255  # known before the classes are
    ahead.label_ahead(teacher, torch.no_grad)
    assert torch.equal(torch.cat(ahead.targets["pseudo"]) != 255, counted)
    for kind in ("pseudo", "pseudo_confident"):
        assert torch.equal(torch.cat(ahead.targets[kind]), passing.targets[kind][0])
    assert torch.equal(ahead.confident, passing.confident)


@pytest.mark.parametrize("name", METHODS)
def test_where_each_method_learns(name: str) -> None:
    method = create_method(name, CLASSES, STUDENT, TEACHER, **OPTIONS.get(name, {}))
    if name in OWN_TEACHER:
        assert target_kind(method) == "supervised"
    else:
        assert target_kind(method) == ("pseudo_confident" if name in CLASS_READERS else "pseudo")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kd", {"variant": "published"}),
        ("cwd", {"variant": "published"}),
        ("kt", {"lt_all": 0, "lt_class": 0, "lt_nonclass": 0}),
        ("cirkd", {"memory_pixel": 0, "memory_region": 0}),
        ("ifvd", {"ifvd": 0}),
    ],
)
def test_options_that_need_no_classes_learn_from_every_pixel(name: str, options: dict[str, Any]) -> None:
    assert target_kind(create_method(name, CLASSES, STUDENT, TEACHER, **options)) == "pseudo"


@pytest.mark.parametrize("options", [{"lt_all": 1}, {"lt_class": 1}, {"variant": "published"}])
def test_tailored_logits_learn_where_the_teacher_is_sure(options: dict[str, Any]) -> None:
    assert target_kind(create_method("kt", CLASSES, STUDENT, TEACHER, **options)) == "pseudo_confident"


def terms_and_gradients(name: str, target: Tensor) -> list[Tensor]:
    torch.manual_seed(7)
    method = create_method(name, CLASSES, STUDENT, TEACHER, **OPTIONS.get(name, {}))
    if name == "maskd":
        method.load_state_dict({"tokens": torch.randn(8, CLASSES)}, strict=False)
    if method.adversary is not None:
        method.adversary.trained = True
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    torch.manual_seed(11)
    terms = method(student, teacher, target, 0.5)
    sum(terms.values(), torch.zeros(())).backward()
    if method.adversary is not None:
        terms["opponent"] = method.adversary(student.detach(), teacher.detach(), target, Step(0.5))
    return [*terms.values(), *(value.grad for value in tensors(student).values() if value.grad is not None)]


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OWN_TEACHER])
def test_a_method_that_says_so_reads_nothing_of_labels_but_void(name: str) -> None:
    target = labels()
    other = torch.where(target == 255, target, target // 2)  # merges classes
    pairs = list(zip(terms_and_gradients(name, target), terms_and_gradients(name, other), strict=True))
    assert all(torch.equal(*pair) for pair in pairs) == (name not in CLASS_READERS)


def test_the_task_learns_from_labelled_images_and_methods_from_what_they_are_given() -> None:
    whole = batch(3)
    assert whole.unlabelled is not None
    targets, shared = step_targets(whole)
    student: Any = Plain(4)
    methods = {name: create_method(name, 3, {"feature": 4}, {"feature": 6}) for name in ("kd", "ifvd")}
    distiller = Distiller(student, methods)
    own = student(whole.images)
    step = Step(0.5, [whole.target])
    terms = distiller(whole.images, whole.target, distiller.select(shared, {}), step, targets.of(0))
    labelled = whole.unlabelled.labelled
    logits = student.upsample(own.logits[labelled], SIZE)
    torch.testing.assert_close(terms["task"], cross_entropy(logits, whole.target[labelled], step))
    assert distiller.target_kinds == {"kd": "pseudo", "ifvd": "pseudo_confident"}
    for name, kind in distiller.target_kinds.items():
        target = targets.targets[kind][0]
        plain = methods[name](own, shared, target, 0.5)
        for term, value in plain.items():
            torch.testing.assert_close(terms[f"{name}.{term}"], value)
            assert not torch.allclose(value, methods[name](own, shared, whole.target, 0.5)[term])


def trained(world: int, rank: int, micro: int, names: list[str], folder: Path) -> dict[str, Tensor]:
    """Return the weights after two steps on this rank's share of the batches."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    student, teacher = Plain(4), Guide(6)
    methods = {name: create_method(name, 3, {"feature": 4}, {"feature": 6}) for name in names}
    distiller: Any = Distiller(student, methods)  # type: ignore[arg-type]
    optimizer, schedule = OptimizerConfig(name="sgd", lr=0.05, weight_decay=0.0), ScheduleConfig(power=0.0)
    config = TrainConfig(accelerator="cpu", steps=2, batch=8, optimizer=optimizer, schedule=schedule)
    fabric = launch(config, find_unused_parameters=True)
    images: Any = UnlabelledImages(folder, [], None, (0, 0, 0))
    data = DataConfig(unlabelled={"images": folder})  # type: ignore[arg-type]
    none: Any = None
    spec = RunSpec("x", folder, none, none, data, config, EvaluateConfig(), unlabelled=images)
    arm = ArmTrainer(fabric, distiller, spec, quiet=True)
    guide: Any = teacher
    for step in (1, 2):
        whole, local = batch(step), 8 // world
        parts = [part(whole, slice(rank * local + i, rank * local + i + micro)) for i in range(0, local, micro)]
        targets = PseudoLabels(parts, 0.6, step / 2)
        if len(parts) > 1:
            targets.label_ahead(guide, fabric.autocast)
        arm.begin(step)
        now = Step(step / 2, [item.target for item in parts])
        for index, item in enumerate(parts):
            shared = teacher(item.images)
            targets.label(index, guide, shared)
            arm.accumulate(item, [shared], now, index, len(parts), targets)
        arm.finish(step)
    arm.recorder.close()
    return {name: value.clone() for name, value in distiller.state_dict().items()}


def worker(rank: int, names: list[str], folder: str) -> None:
    torch.save(trained(2, rank, 4, names, Path(folder) / f"run{rank}"), Path(folder) / f"{rank}.pt")


@pytest.mark.parametrize("names", [["kd", "ifvd"], ["kt"], ["none"]])
def test_two_micro_batches_equal_one(tmp_path: Path, names: list[str]) -> None:
    one, two, four = (trained(1, 0, micro, names, tmp_path / str(micro)) for micro in (8, 4, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(four[name], value, rtol=1e-4, atol=1e-6)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    names = ["kd", "ifvd"]
    under_torchrun(worker, names, str(tmp_path))
    one = trained(1, 0, 8, names, tmp_path / "one")
    for rank in range(2):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in one.items():
            torch.testing.assert_close(both[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_a_micro_batch_may_hold_images_of_one_kind(tmp_path: Path) -> None:
    """Where the teacher teaches; a learner without it needs labels in each."""
    one, single = (trained(1, 0, micro, ["kd"], tmp_path / str(micro)) for micro in (8, 1))
    for name, value in one.items():
        torch.testing.assert_close(single[name], value, rtol=1e-4, atol=1e-6)


def test_micro_batches_without_a_labelled_image_are_an_error_for_who_needs_them(tmp_path: Path) -> None:
    data = DataConfig(unlabelled={"images": tmp_path, "share": 0.75})  # type: ignore[arg-type]
    check_rows(data, 8, 4)
    with pytest.raises(SegtailorError, match=r"6 unlabelled images in a batch of 8, some micro-batches of 2 hold no"):
        check_rows(data, 8, 2)


def test_the_page_names_every_method_where_it_learns() -> None:
    page = (Path(__file__).parents[2] / "docs" / "unlabelled.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")]
    listed = {row[1].strip(): re.findall(r"`(\w+)`", row[2].split("<!-- /")[0]) for row in rows}
    for kind, readers in (("pseudo_confident", CLASS_READERS), ("supervised", OWN_TEACHER)):
        assert set(listed[USES[kind][0]]) == readers
    assert set(listed[USES["pseudo"][0]]) == METHODS.keys() - CLASS_READERS - OWN_TEACHER
