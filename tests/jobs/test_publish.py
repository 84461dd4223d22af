from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml

from segtailor import load_model
from segtailor.config import ModelConfig
from segtailor.errors import SegtailorError
from segtailor.jobs.publish import portable, publish
from segtailor.models import create_model, read_card, save_model
from segtailor.models.store import build_network

CLASSES = ["road", "car", "sky"]


@pytest.fixture
def run(tmp_path):
    """A finished run, as far as publishing reads it."""
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    model = create_model("fcn-lcnet_050", 3)
    model.licenses = {"backbone": "Apache-2.0 (timm lcnet_050)"}
    recipe = {"data": {"name": "folder", "root": "/home/me/street"}, "train": {"seed": 4}}
    card = {
        "classes": CLASSES, "palette": [[0, 0, 7], [0, 0, 8], [0, 0, 9]], "recipe": recipe,
        "metrics": {"miou": 0.5123, "step": 9}, "data_license": "CC0-1.0",
        "licenses": {"teacher's backbone": "cc-by-nc-4.0"},
    }  # fmt: skip
    save_model(model, folder / "student.safetensors", card)
    row = {"label": "Student with kt", "model": "fcn-lcnet_050", "parameters": 1_000_000, "miou": 0.5123}
    row |= {"pixel_accuracy": 0.9, "role": "distilled"}
    teacher = {**row, "role": "teacher", "label": "Teacher", "model": "fcn-resnet18"}
    row["iou"] = [0.25, None, 0.75]
    results = {"version": 1, "method": "kt", "rows": [teacher, row], "data": "/home/me/street"}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "samples" / "00-distilled.png").write_bytes(b"a picture")
    return folder


def test_a_published_folder_is_read_back_with_the_same_logits_and_classes(run, tmp_path):
    to = tmp_path / "repo"
    assert publish(run, f"hf:{to}") == str(to)
    model, own = load_model(f"hf:{to}"), load_model(run)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    assert torch.equal(model(images).logits, own(images).logits)
    assert model.classes == tuple(CLASSES)
    assert model.licenses["teacher's backbone"] == "cc-by-nc-4.0"


def test_the_repository_says_what_the_hub_and_a_reader_need(run, tmp_path):
    publish(run, f"hf:{tmp_path / 'repo'}")
    found = {path.name for path in (tmp_path / "repo").iterdir()}
    assert found == {
        *("model.safetensors", "config.json", "preprocessor_config.json", "recipe.yaml", "results.json"),
        *("README.md", "sample.png"),
    }
    config = json.loads((tmp_path / "repo/config.json").read_text())
    assert config["id2label"] == {"0": "road", "1": "car", "2": "sky"}
    text = (tmp_path / "repo/README.md").read_text()
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["license"] == "other"  # the teacher's weights are non-commercial
    assert matter["model-index"][0]["results"][0]["metrics"][0]["value"] == 51.23
    assert "cc-by-nc-4.0" in text
    assert "| 2 | sky | 0, 0, 9 | 75.00 |" in text
    assert "| Student with kt (fcn-lcnet_050) | 1.00 | 51.23 | 90.00 |" in text
    processor = json.loads((tmp_path / "repo/preprocessor_config.json").read_text())
    assert processor["image_mean"] == load_model(run).preprocess.spec()["mean"]


def test_paths_of_this_machine_stay_here(run, tmp_path):
    publish(run, f"hf:{tmp_path / 'repo'}")
    for path in (tmp_path / "repo").iterdir():
        assert b"/home/me" not in path.read_bytes(), path.name
    assert read_card(tmp_path / "repo/model.safetensors")["recipe"]["data"]["root"] == "street"
    assert portable("C:\\data\\street") == "street"


def test_a_published_model_can_be_a_students_start(run, tmp_path):
    publish(run, f"hf:{tmp_path / 'repo'}")
    student = build_network(ModelConfig(model="fcn-lcnet_050", weights=f"hf:{tmp_path / 'repo'}"), 3)
    for name, tensor in load_model(run).state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor)


def test_publishing_again_replaces_our_own_repository_but_never_other_files(run, tmp_path):
    publish(run, f"hf:{tmp_path / 'repo'}")
    publish(run, f"hf:{tmp_path / 'repo'}")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("dear")
    with pytest.raises(SegtailorError, match=r"holds other files \(thesis.txt\)"):
        publish(run, f"hf:{other}")
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_mistakes_are_told_in_one_line(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for to in ("s3://bucket", "hf:", "hf:nouser", "hf:user/", "hf:a/b/c"):
        with pytest.raises(SegtailorError, match=f"--to is hf:USER/NAME or hf:./FOLDER, not '{to}'"):
            publish(run, to)
    for to, why in (("hf:/proc/zz/yy", "No such file or directory"), ("hf:./run/results.json/x", "Not a directory")):
        with pytest.raises(SegtailorError, match=rf"cannot write \S+: {why}$"):
            publish(run, to)
    with pytest.raises(SegtailorError, match=r"--license is an id of the hub's, .* not 'no such'"):
        publish(run, "hf:./repo", license_id="no such")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(SegtailorError, match="no such file or folder"):
        publish(tmp_path / "nothing", f"hf:{tmp_path / 'repo'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SegtailorError, match="is it a finished run"):
        publish(tmp_path / "empty", f"hf:{tmp_path / 'repo'}")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SegtailorError, match="pip install huggingface_hub"):
        publish(run, "hf:somebody/model")


def test_a_repository_without_its_weights_is_named(run, tmp_path):
    publish(run, f"hf:{tmp_path / 'repo'}")
    (tmp_path / "repo/model.safetensors").unlink()
    with pytest.raises(SegtailorError, match=r"without model\.safetensors"):
        load_model(f"hf:{tmp_path / 'repo'}")


def test_an_upload_that_fails_says_what_to_do(run, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr(hub.HfApi, "create_repo", refuse)
    with pytest.raises(SegtailorError, match=r"cannot upload to somebody/model \(no connection\).*hf auth login"):
        publish(run, "hf:somebody/model")


def test_an_upload_sends_the_whole_folder(run, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    sent = {}

    def upload(self, *, folder_path, repo_id, commit_message):
        sent[repo_id] = sorted(path.name for path in folder_path.iterdir())

    monkeypatch.setattr(hub.HfApi, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload)
    assert publish(run, "hf:somebody/model") == "https://huggingface.co/somebody/model"
    assert "model.safetensors" in sent["somebody/model"]
