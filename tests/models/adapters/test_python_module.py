"""Networks made by a user's factory function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.foreign import photo
from segtailor import create_model, load_model
from segtailor.config import ModelConfig, TeacherConfig
from segtailor.errors import SegtailorError
from segtailor.models import Network, save_model
from segtailor.models.adapters.python_module import adapt
from segtailor.models.store import build_network, load_teacher

SOURCE = """
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, num_classes, form="tensor", ends="logits", pretrained=False):
        super().__init__()
        self.form, self.ends, self.pretrained = form, ends, pretrained
        self.encoder = nn.ModuleDict({
            "one": nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU()),
            "two": nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU()),
        })
        self.norm = nn.BatchNorm2d(12)
        self.dropout = nn.Dropout2d(0.5)
        self.classifier = nn.Conv2d(12, num_classes, 1)
        self.side = nn.Conv2d(8, num_classes, 1)

    def forward(self, x):
        one = self.encoder["one"](x)
        small = self.classifier(self.dropout(self.norm(self.encoder["two"](one))))
        full = F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=True)
        full = full.softmax(1) if self.ends == "softmax" else full
        side = self.side(one)
        if self.form == "two in training":
            return (full, side) if self.training else full
        return FORMS[self.form](full, side)


class Result(NamedTuple):
    logits: torch.Tensor
    aux: torch.Tensor


class Fields:
    def __init__(self, masks):
        self.masks = masks


FORMS = {
    "tensor": lambda full, side: full,
    "tuple": lambda full, side: (full, side),
    "list": lambda full, side: [full, side],
    "dict": lambda full, side: {"aux": side, "out": full},
    "one entry": lambda full, side: {"semseg": full, "loss": torch.zeros(())},
    "named tuple": lambda full, side: Result(full, side),
    "object": lambda full, side: Fields(full),
    "text": lambda full, side: "text",
    "unnamed": lambda full, side: {"a": full, "b": side},
}


def make(num_classes):
    torch.manual_seed(1)
    return Net(num_classes)


def make_fixed():
    return Net(3)


def make_any(**arguments):
    return Net(**arguments)


def make_pretrained(num_classes, pretrained):
    return Net(num_classes, pretrained=pretrained)


def make_broken(num_classes):
    return {}["nothing"]


def make_list(num_classes):
    return [Net(num_classes)]


def make_pickled(path, /, num_classes=2):
    return Net(num_classes)


number = 3
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the user's, in the folder where the command runs."""
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    forms = "\n".join(
        f"\n\ndef make_{index}(num_classes):\n    torch.manual_seed(1)\n    return Net(num_classes, {form!r}).eval()"
        for index, form in enumerate(FORMS)
    )
    (package / "nets.py").write_text(
        f"{SOURCE}{forms}\n\n\ndef make_softmax(num_classes):\n    return Net(num_classes, ends='softmax')\n"
    )
    (package / "broken.py").write_text("x = 1 / 0\n")
    (package / "needy.py").write_text("import a_library_that_is_missing\n")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)


FORMS = ("tensor", "tuple", "list", "dict", "one entry", "named tuple", "object", "two in training")


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_in_whatever_it_returns(form: str) -> None:
    network = create_model(f"module:mine.nets:make_{FORMS.index(form)}", 3)
    images = photo(66, 90)
    assert network.tap_channels["feature"] == 12
    for training in (True, False):
        network.train(training)
        output = network(images)
        assert output.logits.shape == (1, 3, 9, 12)
    with torch.no_grad():
        output = network(images)
        plain = create_model("module:mine.nets:make", 3).eval().get_submodule("net")
        plain.load_state_dict(network.get_submodule("net").state_dict())
        torch.testing.assert_close(network.upsample(output.logits, (66, 90)), plain(network.preprocess(images)))
        classifier: Callable[..., torch.Tensor] = network.get_submodule("net.classifier")
        torch.testing.assert_close(classifier(output.feature), output.logits)
    assert network.has_aux == (form in ("dict", "named tuple"))


def test_probabilities_are_taken_back_to_logits() -> None:
    network = create_model("module:mine.nets:make_softmax", 3).eval()
    images = photo(66, 90)
    with torch.no_grad():
        output = network(images)
        expected = network.get_submodule("net")(network.preprocess(images))
    assert output.feature is not None
    torch.testing.assert_close(network.upsample(output.logits, (66, 90)).softmax(1), expected)


def test_the_classifier_and_taps_are_given_by_path() -> None:
    taps = {"early": "encoder.one"}
    network = create_model("module:mine.nets:make", 3, classifier="classifier", taps=taps)
    output = network(photo(64, 96))
    assert output.taps["early"].shape == (1, 8, 16, 24)
    assert network.tap_channels["early"] == 8
    with pytest.raises(SegtailorError, match="the output of side, enlarged, is not the network's logits"):
        create_model("module:mine.nets:make", 3, classifier="side")
    with pytest.raises(
        SegtailorError, match=r"for 'classifier' 'clasifier'; nearest: classifier, .*inspect MODEL --pa"
    ):
        create_model("module:mine.nets:make", 3, classifier="clasifier")
    with pytest.raises(SegtailorError, match=r"unknown module .* for 'early' 'encoder.ones'; nearest: encoder.one, "):
        create_model("module:mine.nets:make", 3, taps={"early": "encoder.ones"})


def test_preprocessing_is_the_recipes(tmp_path: Path) -> None:
    given = {"mean": (0.1, 0.2, 0.3), "channel_order": "bgr", "size_multiple": 8}
    network = create_model("module:mine.nets:make", 3, preprocess=given)
    assert network.preprocess.spec()["mean"] == [0.1, 0.2, 0.3]
    assert network.preprocess.input_size((60, 90)) == (64, 96)
    with pytest.raises(SegtailorError, match=r"^module:mine.nets:make: .*unexpected keyword argument 'means'"):
        create_model("module:mine.nets:make", 3, preprocess={"means": 1})


def test_factories_get_what_they_take() -> None:
    assert create_model("module:mine.nets:make_fixed", 3).num_classes == 3
    assert create_model("module:mine.nets:make_any", 4).num_classes == 4
    assert create_model("module:mine.nets:Net", 4).num_classes == 4
    assert create_model("module:mine.nets:make_pretrained", 3, pretrained=True).get_submodule("net").pretrained
    with pytest.raises(SegtailorError, match="takes no `pretrained`"):
        create_model("module:mine.nets:make", 3, pretrained=True)
    with pytest.raises(SegtailorError, match=r"gives logits of shape \[1, 3, 96, 128\] .*, not \(1,4,h,w\); check"):
        create_model("module:mine.nets:make_fixed", 4)


def test_a_weights_file_makes_it_a_teacher(tmp_path: Path) -> None:
    trained = create_model("module:mine.nets:make", 3)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    torch.save({"state_dict": trained.get_submodule("net").state_dict()}, tmp_path / "w.pth")
    name = "module:mine.nets:make"
    teacher = load_teacher(TeacherConfig(model=name, weights=str(tmp_path / "w.pth")), 3)
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in teacher.state_dict().items())
    with pytest.raises(SegtailorError, match="has 3 classes where 2 are asked for"):
        load_teacher(TeacherConfig(model=name, weights=str(tmp_path / "w.pth")), 2)
    with pytest.raises(SegtailorError, match="is a network without weights; name it as `model`"):
        load_model(name)


def test_a_student_is_stored_and_loaded_where_its_code_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(model="module:mine.nets:make", taps={"early": "encoder.one"}, classifier="classifier")
    student = build_network(config, 3)
    save_model(student, tmp_path / "s.safetensors")
    again: Network = load_model(tmp_path / "s.safetensors")
    with torch.no_grad():
        output = again(photo(64, 96))
        torch.testing.assert_close(output.logits, student.eval()(photo(64, 96)).logits)
    assert output.taps["early"].shape[1] == 8
    (tmp_path / "mine" / "nets.py").rename(tmp_path / "mine" / "moved.py")
    monkeypatch.delitem(sys.modules, "mine.nets")
    with pytest.raises(SegtailorError, match=r"cannot import mine.nets \(.*\); is it on PYTHONPATH"):
        load_model(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("module:mine.nets", "write module:package.module:factory"),
        ("module::make", "write module:package.module:factory"),
        ("module:mine.netz:make", r"cannot import mine.netz \(No module named 'mine.netz'\); is it on PYTHONPATH"),
        ("module:mine.needy:make", r"cannot import mine.needy \(.*\); install a_library_that_is_missing$"),
        ("module:mine.broken:make", r"fails when it is imported: ZeroDivisionError: .* \(broken.py, line 1\)$"),
        ("module:mine.nets:mak", r"unknown function or class of mine.nets 'mak'; nearest: make, "),
        ("module:mine.nets:number", "number is a int, no function or class"),
        ("module:mine.nets:make_broken", r"called with \(num_classes=3\): KeyError: 'nothing' \(nets.py, line \d+\)$"),
        ("module:mine.nets:make_pickled", r"TypeError: .*missing 1 required positional argument: 'path'"),
        ("module:mine.nets:make_list", "returns list, not a torch.nn.Module"),
    ],
)
def test_what_goes_wrong_is_one_line(name: str, message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as raised:
        create_model(name, 3)
    assert "\n" not in str(raised.value)


def test_results_without_logits_are_named() -> None:
    for form, message in (
        ("text", "returns str, no tensor"),
        ("unnamed", "returns a, b; which of them are the logits"),
    ):
        (Path("mine") / f"{form}.py").write_text(
            f"from mine.nets import Net\n\n\ndef make(num_classes):\n    return Net(num_classes, {form!r})\n"
        )
        with pytest.raises(SegtailorError, match=message):
            create_model(f"module:mine.{form}:make", 3)


class TinyObject(nn.Module):
    """A network as a user's notebook holds it: normalized images in, logits at stride 2 out."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images))


def test_an_object_is_a_network_and_its_weights_are_filled_into_another(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = adapt(TinyObject(), 3, preprocess={"scale": 1.0, "size_multiple": 2}, taps={"low": "stem"})
    assert (network.name, network.tap_channels["low"], network.trainable) == ("object:TinyObject", 8, True)
    assert adapt(network, 3) is network
    save_model(network, tmp_path / "s.safetensors")
    again = load_model(tmp_path / "s.safetensors", module=TinyObject())
    images = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    assert again.preprocess.spec() == network.preprocess.spec()
    assert torch.equal(again(images).taps["low"], network.eval()(images).taps["low"])
    assert torch.equal(again(images).logits, network(images).logits)


def test_objects_that_do_not_fit_say_so_in_one_line(tmp_path: Path) -> None:
    save_model(adapt(TinyObject(), 3, "mine"), tmp_path / "s.safetensors")
    save_model(create_model("fcn-lcnet_035", 3), tmp_path / "own.safetensors")
    cases: list[tuple[str, Callable[[], object]]] = [
        (
            r"trained from a Python object \(mine\); build it and pass it",
            lambda: load_model(tmp_path / "s.safetensors"),
        ),
        (
            "does not fit object:mine: 2 of another shape|gives logits of shape",
            lambda: load_model(tmp_path / "s.safetensors", module=TinyObject(4)),
        ),
        ("needs no module; leave it out", lambda: load_model(tmp_path / "own.safetensors", module=TinyObject())),
        ("gives logits of shape .* check the number of classes", lambda: adapt(TinyObject(), 5)),
        ("has 3 classes where 4 are asked for", lambda: adapt(create_model("fcn-lcnet_035", 3), 4)),
        ("no tensor of logits|does not run", lambda: adapt(nn.Linear(2, 2), 3)),
        ("is a torch.nn.Module, not str", lambda: adapt("net", 3)),  # type: ignore[arg-type]
    ]
    for match, action in cases:
        with pytest.raises(SegtailorError, match=match) as caught:
            action()
        assert "\n" not in str(caught.value)
