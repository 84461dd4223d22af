"""Every Python snippet of the README, the docs and a model's card runs, and gives the score that was recorded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor

import segtailor
from quick import QUICK
from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.jobs.publish import publish
from segtailor.models import create_model, save_model

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?P<note><!-- not run: (?P<why>.+?) -->\n\s*\n?)?^```python\n(?P<code>.*?)^```$", re.M | re.S)


class Snippet(NamedTuple):
    """A Python block of a page, and why it is not run (empty: it is)."""

    code: str
    why: str


def snippets(text: str) -> list[Snippet]:
    """Return the Python blocks of a page in order; `<!-- not run: why -->` before a block excludes it."""
    return [Snippet(match["code"], match["why"] or "") for match in BLOCK.finditer(text)]


def run(page: str, text: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a page's snippets one after another in one namespace, and return it."""
    for snippet in snippets(text):
        if not snippet.why:
            exec(compile(snippet.code, page, "exec"), names)
    return names


def test_snippets_are_found_with_the_reason_why_one_is_not_run() -> None:
    text = "```python\na = 1\n```\n<!-- not run: needs a GPU -->\n```python\nb = 2\n```\n```yaml\nc: 3\n```\n"
    assert snippets(text) == [("a = 1\n", ""), ("b = 2\n", "needs a GPU")]


def test_no_page_holds_the_marks_of_a_merge() -> None:
    marked = [str(path) for path in PAGES if re.search(r"^(<{7}|={7}$|>{7})", path.read_text(encoding="utf-8"), re.M)]
    assert not marked


PAGES_WITH_CODE = [path for path in PAGES if snippets(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", PAGES_WITH_CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_page_runs(path: Path, workplace: Path, shorter: None) -> None:
    names = run(str(path), path.read_text(encoding="utf-8"), {"__name__": "page"})
    if path.name == "README.md" and path.parent == ROOT:
        student, rows = names["student"], names["result"].results["rows"]
        data = create_dataset(DataConfig(name="toy", size=(96, 128)), "val", training=False)

        def labels(image: Tensor) -> Tensor:
            return student.upsample(student(image).logits, image.shape[-2:]).argmax(1)

        scored = next(row["miou"] for row in rows if row["role"] == "distilled")
        assert miou([(sample.image, sample.target) for sample in data], labels) == pytest.approx(scored, abs=1e-6)


def test_the_snippet_on_a_published_card_gives_the_score_on_the_card(workplace: Path) -> None:
    photos = draw_folder(workplace / "street")
    data = {"name": "folder", "root": str(photos), "size": [48, 64], "crop": [48, 64], "workers": 0}
    train = {"steps": 4, "batch": 4, "threads": 1, "optimizer": {"lr": 0.01}}
    recipe = {"data": data, "model": {"model": "fcn-lcnet_035"}, "train": train, "evaluate": {"every": 4, "samples": 0}}
    finished = segtailor.train({**recipe, "run": {"folder": "runs", "name": "street"}})
    publish(finished.folder, "hf:./card")
    card = (workplace / "card" / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"^\| Model .*?\| [\d.]+ \| ([\d.]+) \|", card, re.M)
    assert stated is not None

    def labels(image: Tensor) -> Tensor:
        Image.fromarray(image[0].permute(1, 2, 0).numpy()).save("photo.png")
        names = run("card", card.replace("photo.jpg", "photo.png"), {})
        return torch.from_numpy(names["labels"])[None]

    images = sorted((photos / "images" / "val").iterdir())
    pairs = [(read(path), read(photos / "masks" / "val" / path.name)[0]) for path in images]
    assert round(100 * miou(pairs, labels), 2) == float(stated[1])


def miou(pairs: list[tuple[Tensor, Tensor]], labels: Callable[[Tensor], Tensor]) -> float:
    """Return the mean IoU over the classes that occur in a target or a prediction, in plain loops."""
    hits, unions = torch.zeros(256), torch.zeros(256)
    for image, target in pairs:
        with torch.inference_mode():
            found = labels(image[None])[0]
        valid = target != 255
        for index in range(255):
            mine, wanted = (found == index) & valid, (target == index) & valid
            hits[index] += (mine & wanted).sum()
            unions[index] += (mine | wanted).sum()
    return float((hits[unions > 0] / unions[unions > 0]).mean())


def read(path: Path) -> Tensor:
    with Image.open(path) as file:
        array = torch.frombuffer(bytearray(file.tobytes()), dtype=torch.uint8)
        return array.view(file.height, file.width, -1).permute(2, 0, 1)


def draw_folder(root: Path) -> Path:
    """Write toy scenes of 96 x 128 as a folder data set of images and index masks."""
    for split in ("train", "val"):
        data = create_dataset(DataConfig(name="toy", size=(96, 128), length=8), split, training=False)
        for index in range(8):
            sample = data[index]
            for kind, array in (("images", sample.image.permute(1, 2, 0)), ("masks", sample.target)):
                path = root / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.numpy()).save(path)
    names = "\n".join(f"  - {name}" for name in data.classes)
    (root / "classes.yaml").write_text(f"classes:\n{names}\n")
    return root


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the pages take as given: a toy teacher and a folder of photos."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "street-more").mkdir()
    Image.new("RGB", (64, 48), (120, 130, 140)).save(tmp_path / "street-more" / "a.png")
    teacher = create_model("deeplabv3plus-tf_efficientnet_lite0", 9)
    (tmp_path / "runs" / "toy-teacher").mkdir()
    save_model(teacher, tmp_path / "runs" / "toy-teacher" / "model.safetensors")
    return tmp_path


@pytest.fixture
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pages' runs a few steps long."""
    few = {**QUICK, "train.steps": 6, "train.batch": 4, "evaluate.every": 6, "teacher.check": False, "baseline": "none"}
    distill = segtailor.distill

    def short(recipe: Any, given: dict[str, Any] | None = None, **objects: Any) -> Any:
        return distill(recipe, {**(given or {}), **few}, **objects)

    monkeypatch.setattr(segtailor, "distill", short)
