"""Teachers of other classes, other files and other inputs teach a student from recipe to report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import segtailor
from models.onnx_tiny import CLASSES, Tiny, write_onnx
from segtailor.cli import main
from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.errors import SegtailorError
from segtailor.evaluation import evaluate_model
from segtailor.jobs.alignment import align
from segtailor.jobs.build import make_methods, make_teacher
from segtailor.methods import create_method
from segtailor.models import Network, SegOutput, Teacher, create_model, load_model, save_model
from segtailor.models.class_map import ClassMap
from tiny import TINY_EVALUATE, TINY_MODEL, TINY_TRAIN

NAMES = ("way", "vehicle", "plant", "sky", "person")
ADE = tuple(f"thing {index}" for index in range(150))
MAP = {
    "thing 0": "way", "thing 1": "way", 20: "vehicle", 80: "vehicle", "thing 83": "vehicle", "thing 4": "plant",
    "thing 2": "sky", "thing 12": "person", "others": "void",
}  # fmt: skip
FILE = {0: "way", 1: "vehicle", 2: "plant", 3: "sky", 4: "person"}
ANY = {0: "batch", 2: "height", 3: "width"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A folder of images with five classes."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            mask = np.kron(generator.integers(0, 5, (4, 6)), np.ones((8, 8))).astype(np.uint8)
            image = generator.integers(0, 60, (32, 48, 3)) + 40 * mask[..., None]
            Image.fromarray(image.astype(np.uint8)).save(root / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{index}.png")
    (root / "classes.yaml").write_text(yaml.safe_dump({"classes": list(NAMES)}))
    return {"name": "folder", "root": str(root), "size": [32, 48], "crop": [32, 48], "workers": 0}


@pytest.fixture(scope="module")
def ade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 150 classes, as our own weights file."""
    torch.manual_seed(0)
    model = create_model(TINY_MODEL, 150)
    path = tmp_path_factory.mktemp("teacher") / "ade.safetensors"
    save_model(model, path, {"classes": list(ADE)})
    return path


def recipe(folder: Path, data: dict[str, Any], teacher: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "data": data,
        "teacher": {"check": False, **teacher},
        "student": {"model": TINY_MODEL},
        "method": "kd",
        "train": {**TINY_TRAIN, "steps": 2},
        "evaluate": dict(TINY_EVALUATE),
        "run": {"folder": str(folder), "name": "student"},
        **changes,
    }


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["segtailor", *words])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_teacher_of_150_classes_teaches_five(
    tmp_path: Path, data: dict[str, Any], ade: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tmp_path, data, {"weights": str(ade), "class_map": MAP}, method=["kt", "maskd", "dist"])
    made["method"] = [{"name": "kt"}, {"name": "maskd", "token_steps": 2}, {"name": "dist"}]
    result = segtailor.distill(made)
    shown = capsys.readouterr().err
    assert "class map: vehicle <- thing 20, thing 80, thing 83\n" in shown
    assert "class map: void <- thing 3, thing 5" in shown
    assert "and 130 more" in shown
    assert "kt, logits: student 5 x 8 x 12, teacher 5 x 8 x 12: equal grids" in shown
    rows = {row["class"]: row["from"] for row in result.results["class_map"]}
    assert list(rows) == [*NAMES, "void"]
    assert (len(rows["void"]), rows["way"]) == (142, ["thing 0", "thing 1"])
    page = result.report.read_text()
    assert '<h2 id="class-map">Class map</h2>' in page
    assert '<td class="text">thing 20, thing 80, thing 83</td>' in page
    scored = {row["role"]: row for row in result.results["rows"]}
    assert scored["teacher"]["miou"] > 0
    assert load_model(result.folder).num_classes == 5

    path, scores = tmp_path / "map.yaml", tmp_path / "scores.json"
    path.write_text(yaml.safe_dump(MAP))
    words = ["evaluate", str(ade), "--class-map", str(path), "--json", str(scores)]
    words += [item for key, value in data.items() for item in (f"--data.{key}", str(value))]
    assert run(words, monkeypatch) == 0
    assert "person" in capsys.readouterr().out
    found = json.loads(scores.read_text())
    assert found["miou"] == pytest.approx(scored["teacher"]["miou"], abs=1e-6)
    assert found["class_map"] == result.results["class_map"]
    assert run([*words[:2], *words[4:]], monkeypatch) == 2
    message = capsys.readouterr().err
    assert "the model has 150 classes but the data set has 5" in message
    assert "--class-map FILE" in message


def test_a_comparison_shows_the_map(tmp_path: Path, data: dict[str, Any], ade: Path) -> None:
    made = recipe(tmp_path, data, {"weights": str(ade), "class_map": MAP}, arms={"kd": "kd"}, seeds=[0])
    del made["method"]
    result = segtailor.compare(made)
    plan = json.loads((result.folder / "comparison.json").read_text())
    assert {"class": "sky", "from": ["thing 2"]} in plan["class_map"]
    assert '<h2 id="class-map">Class map</h2>' in result.report.read_text()


def test_a_mapped_teachers_score_is_that_of_summed_probabilities(data: dict[str, Any], ade: Path) -> None:
    """Against plain loops: each pixel's class is the one whose members' probabilities add up to most."""
    config = segtailor.config.TeacherConfig(weights=str(ade), class_map=MAP)
    val = create_dataset(DataConfig(**data), "val", training=False)
    teacher = make_teacher(config, val)
    result = evaluate_model(teacher, val)
    confusion = torch.zeros(5, 5, dtype=torch.int64)
    indices = {0: 0, 1: 0, 20: 1, 80: 1, 83: 1, 4: 2, 2: 3, 12: 4}
    for index in range(len(val)):
        sample = val[index]
        with torch.no_grad():
            shares = teacher.model(sample.image[None]).logits.double().softmax(1)
        summed = torch.zeros(1, 5, *shares.shape[2:], dtype=torch.float64)
        for source, target in indices.items():
            summed[:, target] += shares[:, source]
        logits = teacher.upsample(summed.log().float(), (32, 48))
        for true, guess in zip(sample.target.flatten().tolist(), logits[0].argmax(0).flatten().tolist(), strict=True):
            confusion[true, guess] += 1
    assert (result.confusion - confusion).abs().sum() <= 4  # ties of enlarged logits


@pytest.mark.parametrize("kind", ["onnx", "onnx, fixed size and batch"])
def test_a_teacher_from_a_file_teaches(tmp_path: Path, data: dict[str, Any], kind: str) -> None:
    method: Any = [{"name": "dist"}, {"name": "kd"}]
    if kind == "onnx":
        path = write_onnx(tmp_path / "t.onnx", Tiny("feature"), free=ANY, outputs=("out", "inner"))
        teacher = {"model": str(path), "taps": {"feature": "inner"}}
        method = [{"name": "kt"}, {"name": "cwd"}]
    else:
        teacher = {"weights": f"onnx:{write_onnx(tmp_path / 't.onnx', Tiny())}"}
    teacher |= {"preprocess": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    result = segtailor.distill(recipe(tmp_path, data, teacher, method=method))
    row = result.results["rows"][0]
    assert row["role"] == "teacher"
    assert row["parameters"] > 1000
    assert row["multiply_adds"] is None
    records = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    values = [value for record in records for value in record.get("terms", {}).values()]
    assert values
    assert np.isfinite(values).all()
    assert all("teacher" in line for line in result.results["alignment"])


def test_a_comparison_with_a_teacher_from_a_file(tmp_path: Path, data: dict[str, Any]) -> None:
    teacher = {
        "weights": str(write_onnx(tmp_path / "t.onnx", Tiny(), free=ANY)),
        "class_map": {**FILE, 3: "void", 2: 3},
    }
    teacher["class_map"][4] = "plant"
    made = recipe(tmp_path, data, teacher, arms={"kt": {"name": "kt", "ft": 0, "lt_all": 1.0}}, seeds=[0])
    del made["method"]
    with pytest.raises(SegtailorError, match=r"maps nothing to 1 classes of the data \(person\)"):
        segtailor.compare(made)
    made["teacher"]["class_map"] = {**FILE, 0: "person", 4: "way"}
    result = segtailor.compare(made)
    assert {arm.arm: list(arm.scores) for arm in result.board.arms} == {"none": [0], "kt": [0]}
    assert list((result.folder / "tailoring").glob("*.png"))


def test_files_cannot_be_students(tmp_path: Path, data: dict[str, Any], ade: Path) -> None:
    path = write_onnx(tmp_path / "t.onnx", Tiny(), free=ANY)
    teacher = {"weights": str(ade), "class_map": MAP}
    for student in ({"model": f"onnx:{path}"}, {"model": str(path)}, {"model": "", "weights": "onnx:net.onnx"}):
        with pytest.raises(SegtailorError, match="cannot be trained: it can be a teacher only") as caught:
            segtailor.distill(recipe(tmp_path, data, teacher, student=student))
        assert "\n" not in str(caught.value)


def test_a_method_that_needs_a_feature_names_model_method_and_what_to_do(tmp_path: Path, data: dict[str, Any]) -> None:
    path = write_onnx(tmp_path / "t.onnx", Tiny(), free=ANY)
    for method in ("kt", "cwd", "fitnet", "cirkd", "skd", "ifvd"):
        with pytest.raises(SegtailorError) as caught:
            segtailor.distill(recipe(tmp_path, data, {"weights": str(path)}, method=method))
        message = str(caught.value)
        assert message.startswith(
            f"method {method} needs the feature in front of the classifier, and the teacher onnx:{path}"
        )
        assert "teacher.taps: {feature: PATH}" in message
        assert "\n" not in message
    with pytest.raises(SegtailorError, match=r"method feature, teacher onnx:.*: unknown tap of the teacher 'stages.0'"):
        segtailor.distill(recipe(tmp_path, data, {"weights": str(path)}, method={"name": "feature", "tap": "stages.0"}))


def test_a_student_without_a_feature_is_named(ade: Path) -> None:
    class Bare(Network):
        has_aux, tap_channels, stage_strides = False, {}, ()

        def __init__(self) -> None:
            super().__init__()
            self.name, self.num_classes = "bare", 5

        def forward_normalized(self, inputs: torch.Tensor) -> SegOutput:
            raise NotImplementedError

        upsample = spec = forward_normalized

    from segtailor.config import MethodConfig, ModelConfig

    with pytest.raises(SegtailorError, match=r"the student bare gives none; .*student.taps: \{feature: PATH\}"):
        make_methods([MethodConfig(name="kt")], Bare(), Teacher(load_model(ade)), ModelConfig(model="bare"), 0)


def test_other_classes_without_a_map_propose_one(tmp_path: Path, data: dict[str, Any], ade: Path) -> None:
    with pytest.raises(SegtailorError, match=r"has 150 classes where 5 are asked for; .* for a teacher a class_map"):
        segtailor.distill(recipe(tmp_path, data, {"weights": str(ade)}))
    path = write_onnx(tmp_path / "t.onnx", Tiny("feature first"), free=ANY, outputs=("inner", "out"))
    with pytest.raises(SegtailorError, match=r"has 12 classes where 5 are asked for; .* for a teacher a class_map"):
        segtailor.distill(recipe(tmp_path, data, {"weights": str(path)}))
    assert CLASSES == 5


def test_a_map_that_misses_a_class_stops_the_run(tmp_path: Path, data: dict[str, Any], ade: Path) -> None:
    half = {key: value for key, value in MAP.items() if key != "others"}
    with pytest.raises(SegtailorError, match=r"class_map misses 142 classes of the teacher .*others: void"):
        segtailor.distill(recipe(tmp_path, data, {"weights": str(ade), "class_map": half}))
    assert not (tmp_path / "student").exists()


def test_tokens_of_the_feature_are_refused_with_a_map(tmp_path: Path, data: dict[str, Any], ade: Path) -> None:
    method = {"name": "maskd", "tap": "feature", "token_steps": 2}
    with pytest.raises(SegtailorError, match=r"maskd, tap feature: .*teacher.class_map\); set tap: logits"):
        segtailor.distill(recipe(tmp_path, data, {"weights": str(ade), "class_map": MAP}, method=method))


def test_tokens_are_learnt_anew_for_another_map(tmp_path: Path, data: dict[str, Any], ade: Path) -> None:
    """What a stage learnt under one map is not taken for another."""
    method = {"name": "maskd", "token_steps": 2}
    other = {**MAP, "thing 0": "person", "thing 12": "way"}
    for name, given in (("one", MAP), ("same", MAP), ("other", other)):
        made = recipe(tmp_path, data, {"weights": str(ade), "class_map": given}, method=method)
        segtailor.distill({**made, "run": {"folder": str(tmp_path), "name": name}})
    assert len(list((tmp_path / "stages").glob("tokens-*.safetensors"))) == 2


def test_the_label_assisted_teacher_is_not_mapped(tmp_path: Path, data: dict[str, Any], ade: Path) -> None:
    method = {"name": "lad", "teacher_steps": 2}
    result = segtailor.distill(recipe(tmp_path, data, {"weights": str(ade), "class_map": MAP}, method=method))
    assert [row["role"] for row in result.results["rows"]] == ["teacher", "assisted", "distilled"]
    assert all("teacher 5 x" in line for line in result.results["alignment"] if "logits" in line)


def test_alignment_shows_the_mapped_logits() -> None:
    student = create_model("fcn-lcnet_035", 2)
    teacher = Teacher(create_model("fcn-lcnet_035", 4), ClassMap([0, 1, 1, -1], 2))
    method = create_method("kt", 2, student.tap_channels, teacher.tap_channels, kd_aux=1)
    lines = align(student, teacher, {"kt": method}, (64, 64))
    assert lines[0] == "kt, logits: student 2 x 8 x 8, teacher 2 x 8 x 8: equal grids"
    assert lines[1].startswith("kt, aux_logits: student 2 x 8 x 8, teacher 2 x 8 x 8")
    assert teacher.class_map.order.device.type == "cpu"  # the teacher itself was not touched
    assert teacher(torch.zeros(1, 3, 64, 64)).logits.shape[1] == 2


def test_a_transformers_teacher_of_150_classes(tmp_path: Path, data: dict[str, Any]) -> None:
    """The image processor's own statistics, its labels' names, and a map in a file."""
    transformers = pytest.importorskip("transformers")
    labels = dict(enumerate(ADE))
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16,
        id2label=labels, label2id={name: index for index, name in labels.items()},
    )  # fmt: skip
    folder = tmp_path / "segformer"
    torch.manual_seed(0)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder)
    processor = transformers.SegformerImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.1])
    processor.save_pretrained(folder)
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(MAP))
    teacher = {"weights": f"hf:{folder}", "class_map": str(tmp_path / "map.yaml")}
    result = segtailor.distill(recipe(tmp_path, data, teacher, method=["kt", "dist"]))
    assert {"class": "sky", "from": ["thing 2"]} in result.results["class_map"]
    assert result.results["rows"][0]["model"].startswith("hf:")


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_exported_programs_name_their_successor(tmp_path: Path, data: dict[str, Any], ade: Path, role: str) -> None:
    made = recipe(tmp_path, data, {"weights": str(ade), "class_map": MAP})
    made[role] = {"model": "", "weights": "pt2:net.pt2"}
    with pytest.raises(SegtailorError, match=r"pt2.*no longer read; export .* as ONNX .*onnx:net\.onnx") as caught:
        segtailor.distill(made)
    assert "\n" not in str(caught.value)
