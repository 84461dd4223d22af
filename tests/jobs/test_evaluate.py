from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import segtailor
from evaluation.fakes import TinyModel
from segtailor.config import DataConfig, EvaluateConfig
from segtailor.data import create_dataset
from segtailor.errors import SegtailorError
from segtailor.evaluation import EvaluationResult
from segtailor.evaluation.format import format_result
from segtailor.jobs.evaluate import evaluate
from segtailor.models import read_card
from segtailor.results.model import read_results
from tiny import TINY_DATA, tiny_distill

TOY = DataConfig.model_validate(TINY_DATA)


def _toy_classes():
    return create_dataset(TOY, "val", training=False).num_classes


def test_scores_go_to_the_result_and_the_json_file_and_nothing_is_printed(tmp_path, capsys):
    path = tmp_path / "deep/scores.json"
    result = evaluate(TinyModel(num_classes=_toy_classes()), TOY, json_path=path, device="cpu")
    assert capsys.readouterr().out == ""
    written = json.loads(path.read_text())
    assert written["miou"] == result.miou
    assert written["data"] == "toy"
    assert written["model"] == TinyModel.name
    assert sum(map(sum, written["confusion"])) == int(result.confusion.sum())


def test_boundary_and_calibration_are_written_and_printed_when_asked_for(tmp_path):
    path, model = tmp_path / "scores.json", TinyModel(num_classes=_toy_classes())
    assert "boundary" not in evaluate(model, TOY, device="cpu").to_dict()
    result = evaluate(model, TOY, json_path=path, device="cpu", boundary=True, calibration=True)
    written = json.loads(path.read_text())
    assert written["boundary"] == result.boundary
    assert written["calibration"]["ece"] == result.calibration["ece"]
    text = format_result(result)
    assert f"calibration error {100 * result.calibration['ece']:.2f} % (15 bins)" in text
    table = [line for line in text.splitlines() if line.startswith("mean ") and "accuracy" not in line]
    assert table[0].split()[1] == f"{100 * result.boundary['miou']:.2f}"
    assert [len(line) for line in table] == [len(next(x for x in text.splitlines() if "F1 at 3 px" in x))]
    assert any(line.startswith("3 to 4") for line in text.splitlines())


def test_sliding_window_defaults_to_the_training_window():
    model = TinyModel(num_classes=_toy_classes())
    data = TOY.model_copy(update={"crop": (16, 16)})
    evaluate(model, data, config=EvaluateConfig.model_validate({"mode": "slide"}), device="cpu")
    assert {shape[-2:] for shape in model.seen} == {(16, 16)}


def test_another_class_count_and_an_unwritable_file_are_errors(tmp_path):
    with pytest.raises(SegtailorError, match="the model has 2 classes"):
        evaluate(TinyModel(num_classes=2), TOY)
    (tmp_path / "file").write_text("")
    with pytest.raises(SegtailorError, match="cannot write"):
        evaluate(TinyModel(num_classes=_toy_classes()), TOY, json_path=tmp_path / "file/scores.json", device="cpu")


def test_the_table_lists_classes_and_says_what_is_absent():
    result = EvaluationResult(torch.tensor([[8, 2, 0], [0, 10, 0], [0, 0, 0]]), ("road", "pole", "tram"), 2, 4.0)
    text = format_result(result)
    assert "mIoU 81.67 %   all classes 54.44 %   pixel accuracy 90.00 %" in text
    assert [line.split() for line in text.splitlines() if line.startswith("tram")] == [["tram", "-", "-", "-"]]
    assert "2 images in 4.0 s (0.5 images/s)" in text
    assert "leaves out 1" in text


def test_choices_say_how_a_foreign_model_is_read(tmp_path, monkeypatch):
    (tmp_path / "own_factory.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    import own_factory

    net = own_factory.make(_toy_classes())
    torch.save(net.state_dict(), tmp_path / "own.pth")
    choices = {
        "weights": str(tmp_path / "own.pth"),
        "preprocess": {"mean": [0, 0, 0], "std": [1, 1, 1], "scale": 1.0},
    }
    result = evaluate("module:own_factory:make", TOY, device="cpu", choices=choices)
    data = create_dataset(TOY, "val", training=False)
    from segtailor.evaluation import evaluate_model
    from segtailor.models import Preprocess
    from segtailor.models.adapters.wrapper import Adapted

    same = Adapted("own_factory", _toy_classes(), net, Preprocess((0, 0, 0), (1, 1, 1), 1.0))
    assert result.miou == evaluate_model(same, data, device=torch.device("cpu")).miou
    other = evaluate("module:own_factory:make", TOY, device="cpu", choices={"weights": str(tmp_path / "own.pth")})
    assert other.miou != result.miou
    with pytest.raises(SegtailorError, match="unknown key 'preproces'"):
        evaluate("module:own_factory:make", TOY, device="cpu", choices={"preproces": {}})


def test_a_run_is_scored_on_the_data_of_its_own_recipe(teacher_run):
    row = read_results(teacher_run).rows[0]
    assert segtailor.evaluate(teacher_run, device="cpu").miou == pytest.approx(row.miou, abs=1e-6)
    other = segtailor.evaluate(teacher_run, {"size": [16, 24]}, device="cpu")
    assert other.miou != pytest.approx(row.miou, abs=1e-6)


def test_a_module_of_any_library_is_adapted_as_choices_say():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, _toy_classes(), 1))
    raw = {"preprocess": {"mean": [0, 0, 0], "std": [1, 1, 1], "scale": 1.0}}
    scored = evaluate(net, TINY_DATA, device="cpu", choices=raw)
    assert scored.miou != evaluate(net, TINY_DATA, device="cpu", choices={"preprocess": {}}).miou
    assert scored.miou == pytest.approx(evaluate(net, TINY_DATA, device="cpu").miou)


def test_classes_in_another_order_are_refused_and_a_class_map_puts_them_right(tmp_path, teacher_run):
    scored = evaluate(teacher_run, device="cpu")
    tensors, card = load_file(teacher_run / "model.safetensors"), read_card(teacher_run)
    card["classes"][-2:] = card["classes"][:-3:-1]
    for name in [name for name, tensor in tensors.items() if tensor.shape[:1] == (9,)]:
        tensors[name][-2:] = tensors[name][-2:].flip(0)
    turned = tmp_path / "turned.safetensors"
    save_file(tensors, turned, {"card": json.dumps(card)})
    with pytest.raises(SegtailorError, match=r"'car' is class 8 of the model and class 7 of the data; .*--class-map"):
        evaluate(turned, device="cpu")
    same = {name: name for name in card["classes"]}
    assert evaluate(turned, class_map=same, device="cpu").miou == pytest.approx(scored.miou, abs=1e-6)
    teacher = {"weights": str(turned), "check": False}
    with pytest.raises(SegtailorError, match="'car' is class 8 of the model"):
        segtailor.distill({**tiny_distill(tmp_path, turned), "teacher": teacher})
    card["classes"] = [name.upper() for name in card["classes"]]  # as another author spells them
    save_file(tensors, turned, {"card": json.dumps(card)})
    evaluate(turned, device="cpu")


@pytest.mark.parametrize("name", ["runs/nothere", "photos.txt", "deeplabv3-resnet18"])
def test_a_model_that_is_not_there_is_named(name):
    with pytest.raises(SegtailorError, match=f"no such file or folder: {name}"):
        evaluate(name)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "say on what data to score"),
        ({"name": "toy", "sizes": [8, 8]}, "unknown key 'sizes'; nearest: size"),
        (3, r"object \(int\) needs len\(\)|int"),
        ([(1, 2)], "does not name its classes"),
    ],
)
def test_what_is_no_data_is_one_line(data, message):
    with pytest.raises(SegtailorError, match=message) as error:
        evaluate(TinyModel(num_classes=_toy_classes()), data, device="cpu")
    assert "\n" not in str(error.value)
