"""Networks and data sets that are Python objects in the place of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

import segtailor
from segtailor.errors import SegtailorError
from segtailor.models import create_model, load_model
from tiny import TINY_EVALUATE, TINY_MODEL, TINY_TRAIN

CLASSES = ["ground", "thing", "sky"]


class Net(nn.Module):
    """Somebody's network: an encoder, a classifier, full-size logits."""

    def __init__(self, width: int, classes: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.encoder(images))
        return nn.functional.interpolate(logits, images.shape[-2:], mode="bilinear")


class Squares(Dataset[Any]):
    """Somebody's data set: images whose left half is darker, as PIL images, arrays or tensors."""

    def __init__(self, count: int, form: str = "pil") -> None:
        self.count, self.form = count, form

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if index >= self.count:
            raise IndexError(index)
        image = np.random.default_rng(index).integers(0, 99, (32, 48, 3), dtype=np.uint8)
        mask = np.zeros((32, 48), np.uint8)
        image[:, 24:] += 150
        mask[:, 24:], mask[:8] = 1, 2
        image[:8, :, 2] = 255
        mask[0, 0] = 255
        if self.form == "pil":
            return Image.fromarray(image), Image.fromarray(mask)
        if self.form == "array":
            return image, mask.astype(np.int64)
        return torch.from_numpy(image).permute(2, 0, 1) / 255, torch.from_numpy(mask).long()


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data": {"workers": 0, "crop": [32, 48]},
        "train": {**TINY_TRAIN, "steps": 3},
        "evaluate": {**TINY_EVALUATE, "every": 3},
        "run": {"folder": str(folder)},
        **changes,
    }


def data(form: str = "pil", train: int = 6) -> dict[str, Any]:
    return {"train_data": Squares(train, form), "val_data": Squares(4, form), "classes": CLASSES}


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_teacher_a_student_and_data_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = Net(12), Net(4)
    before = state(teacher), state(student)
    given = recipe(tmp_path, method=["kd", "cwd"], baseline="train", teacher={"check": False})
    result = segtailor.distill(given, teacher=teacher, student=student, **data())
    assert result.folder == tmp_path / "Squares-Net-kd+cwd"
    assert [row.role for row in result.results.rows] == ["teacher", "alone", "distilled"]
    assert (result.results.classes, result.results.data) == (tuple(CLASSES), "Squares")
    torch.testing.assert_close(state(teacher), before[0], rtol=0, atol=0)
    assert teacher.training
    assert all(value.requires_grad for value in teacher.parameters())
    assert not torch.equal(student.classifier.weight, before[1]["classifier.weight"])
    assert not student.encoder[0]._forward_hooks
    # what the student received is what was scored and saved
    loaded = load_model(result.folder, module=Net(4))
    torch.testing.assert_close(loaded.net.state_dict(), student.state_dict(), rtol=0, atol=0)
    again = segtailor.evaluate(loaded, data()["val_data"], classes=CLASSES)
    assert again.miou == pytest.approx(result.results.row("distilled").miou, abs=1e-6)
    with pytest.raises(SegtailorError, match="Python object") as error:
        load_model(result.folder)
    assert "\n" not in str(error.value)
    with pytest.raises(SegtailorError, match="was made on Squares, a Python object; give the data"):
        segtailor.evaluate(result.folder)


def test_a_finished_run_fills_the_student_again(tmp_path: Path) -> None:
    given = recipe(tmp_path, method="kd", teacher={"check": False})
    teacher = Net(12)
    first, second = Net(4), Net(4)
    segtailor.distill(given, teacher=teacher, student=first, **data())
    segtailor.distill(given, {"run.exists": "resume"}, teacher=teacher, student=second, **data())
    torch.testing.assert_close(state(first), state(second), rtol=0, atol=0)


def test_a_finished_run_does_not_fill_another_student(tmp_path: Path) -> None:
    segtailor.train(recipe(tmp_path), model=Net(4), **data())
    folder = tmp_path / "Squares-Net"
    with pytest.raises(SegtailorError, match=r"Squares-Net does not fit the given Net: 7 of another shape"):
        segtailor.train(recipe(tmp_path), {"run.exists": "resume"}, model=Net(6), **data())
    for objects, message in (
        ({}, "the recipe was made with Net, a Python object; call from Python, and give it again as model"),
        ({"model": Net(4)}, "made with Squares, a Python object; .* again as train_data and val_data"),
    ):
        with pytest.raises(SegtailorError, match=message):
            segtailor.train(folder / "recipe.yaml", {"run.exists": "resume"}, **objects)


def test_overrides_are_a_mapping(tmp_path: Path) -> None:
    with pytest.raises(SegtailorError, match=r"overrides map dotted keys .* no list"):
        segtailor.train(recipe(tmp_path), ["--train.steps", "3"], model=Net(4), **data())


@pytest.mark.parametrize("form", ["array", "tensor"])
def test_the_form_of_images_and_masks_does_not_matter(tmp_path: Path, form: str) -> None:
    models = []
    for name in ("pil", form):
        torch.manual_seed(1)
        models.append(Net(4))
        segtailor.train(recipe(tmp_path / name), model=models[-1], **data(name))
    torch.testing.assert_close(state(models[0]), state(models[1]), rtol=0, atol=0)


def test_names_and_objects_mix(tmp_path: Path) -> None:
    """A network of ours from memory is what its name and weights are; the data set is by name."""
    torch.manual_seed(0)
    own = create_model(TINY_MODEL, 9)
    made = recipe(tmp_path, method="kd", data={"name": "toy", "length": 8, "size": [32, 48], "workers": 0})
    made["teacher"], made["student"] = {"model": TINY_MODEL, "check": False}, {"model": TINY_MODEL}
    result = segtailor.distill(made, teacher=own, student=create_model(TINY_MODEL, 9))
    assert result.results.row("teacher").model == TINY_MODEL
    assert segtailor.evaluate(result.folder).miou == pytest.approx(result.results.rows[-1].miou, abs=1e-6)


def test_a_comparison_of_objects(tmp_path: Path) -> None:
    arms = {"kd": "kd", "named": {"method": "kd", "student": {"model": TINY_MODEL}}}
    made = recipe(tmp_path, arms=arms, seeds=[0], teacher={"check": False})
    student = Net(4)
    before = state(student)
    result = segtailor.compare(made, teacher=Net(12), student=student, **data())
    board = result.board
    assert {arm.arm for arm in board.arms if arm.scores} == {"none", f"none-{TINY_MODEL}", "kd", "named"}
    torch.testing.assert_close(state(student), before, rtol=0, atol=0)
    assert (result.folder / "samples").is_dir()
    assert "difference to none" in str(result)
    assert "<td>kd</td>" in result._repr_html_()


class Dropping(Net):
    """Somebody's network with a dropout, which notes the probabilities that it was trained with."""

    seen: ClassVar[set[float]] = set()

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.encoder.append(nn.Dropout2d(0.5))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.add(self.encoder[-1].p)
        return super().forward(images)


def test_a_recipe_sets_the_dropout_of_what_is_trained(tmp_path: Path) -> None:
    student = Dropping(4)
    segtailor.train(recipe(tmp_path, model={"dropout": 0.125}), model=student, **data())
    assert Dropping.seen == {0.125}
    assert student.encoder[-1].p == 0.5
    with pytest.raises(SegtailorError, match="has no dropout; leave the option dropout out"):
        segtailor.train(recipe(tmp_path, model={"dropout": 0.125}), model=Net(4), **data())


def test_a_result_shows_itself(tmp_path: Path, teacher_run: Path) -> None:
    result = segtailor.train(recipe(tmp_path), model=Net(4), **data())
    lines = str(result).splitlines()
    assert "mIoU" in lines[0]
    assert lines[-1] == f"report: {result.report}"
    html = result._repr_html_()
    assert html.startswith("<div>")
    assert "<td>Model</td>" in html
    scores = segtailor.evaluate(teacher_run)
    assert str(scores).startswith("mIoU ")
    assert "<td>sky</td>" in scores._repr_html_()


def test_a_line_says_what_data_is_read_and_at_what_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segtailor.train(recipe(tmp_path, data={"workers": 0, "size": [32, 32]}), model=Net(4), **data())
    line = "data: Squares, 6 + 4 images, 3 classes, 32 x 48 resized to 32 x 32, which changes their proportions"
    assert line in capsys.readouterr().err


def test_an_object_replaces_the_weights_that_a_recipe_names(tmp_path: Path, teacher_run: Path) -> None:
    made = recipe(tmp_path, method="kd", teacher={"weights": str(teacher_run), "check": False})
    result = segtailor.distill(made, teacher=Net(12), student=Net(4), **data())
    assert "weights: null" in (result.folder / "recipe.yaml").read_text()
    assert repr(result) == str(result)


def test_a_module_in_the_place_of_a_name_is_one_short_line(tmp_path: Path) -> None:
    with pytest.raises(SegtailorError, match=r"'student': .* \(given: Net") as error:
        segtailor.distill(recipe(tmp_path, method="kd"), {"student": Net(12)})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


class Empty(Squares):
    def __init__(self) -> None:
        super().__init__(0)


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([Squares(1)[0]])


class Pairless(Squares):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0]


def named(validation: Any, first: str) -> dict[str, Any]:
    """Return training data of CLASSES, and ``validation`` data that name another class first."""
    training = Squares(3)
    training.classes = CLASSES
    validation.classes = [first, "thing", "ground"]
    return {"train_data": training, "val_data": validation, "classes": None}


class Silent(nn.Module):
    def forward(self, images: Tensor) -> None:
        return None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_data": Empty()}, r"the train data \(Empty\) is empty"),
        ({"val_data": Empty()}, r"the val data \(Empty\) is empty"),
        ({"train_data": Stream()}, r"Stream.* needs len\(\) and samples by index"),
        ({"train_data": Pairless(3)}, "sample 0 of Pairless train is a Image; expected a pair"),
        ({"classes": ["ground"]}, "mask 0 of Squares train holds the values"),
        ({"classes": None}, "Squares does not name its classes"),
        (named(Squares(4), "sky"), r"do not name the same classes in the same order: ground, thing, sky; sky, thing"),
        ({"val_data": None}, "val_data is missing"),
        ({"train_data": None, "val_data": None}, "classes name those of train_data and val_data"),
        ({"student": "deeplabv3plus-lcnet_035"}, "student is a str, not a torch.nn.Module"),
        ({"student": Net(4, classes=5)}, r"Net gives logits of shape \[1, 5, .*check the number of classes"),
        ({"student": create_model(TINY_MODEL, 5)}, "has 5 classes where 3 are asked for"),
        ({"teacher": Silent()}, "Silent"),
    ],
)
def test_a_wrong_object_is_one_line_and_leaves_no_run(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    objects: dict[str, Any] = {"teacher": Net(12), "student": Net(4), **data(), **changes}
    with pytest.raises(SegtailorError, match=message) as error:
        segtailor.distill(recipe(tmp_path, method="kd", teacher={"check": False}), **objects)
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())
