"""Taps by module path: what they hold, and that compiling, checkpointing, copying and data parallelism keep them."""

from __future__ import annotations

import gc
import re
import socket
import weakref
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segtailor import create_method, create_model, load_model
from segtailor.cli import app
from segtailor.config import TeacherConfig
from segtailor.errors import SegtailorError
from segtailor.jobs.distill import distill
from segtailor.models import Network, Teacher, save_model
from segtailor.models.inspect import list_paths
from segtailor.models.store import load_teacher
from tiny import TINY_MODEL, tiny_distill

from .foreign import photo
from .tap_processes import gradients, on_two_processes

pytest.importorskip("segmentation_models_pytorch")

NETWORKS = {
    "fcn-test_resnet": "backbone.net.layer2",
    "smp:Linknet/tu-test_resnet": "encoder.model.layer2",
    "fcn-test_vit": "backbone.net.model.blocks.3",
    "module:models.foreign:SmallNet": "encoder.2",
}
"""Networks of ours and of others, and the path of a map inside."""
OWN, SMP, _, MODULE = NETWORKS


def tapped(name: str) -> Network:
    torch.manual_seed(0)
    return create_model(name, 3, taps={"mine": NETWORKS[name]})


def inner(network: Network, name: str) -> nn.Module:
    root = network.get_submodule("net") if ":" in name else network
    return root.get_submodule(NETWORKS[name])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tap_is_the_modules_output_as_a_map(name: str) -> None:
    network = tapped(name).eval()
    seen: list[Tensor] = []
    inner(network, name).register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        output = network(photo(64, 96, 2))
    value = output.tap("mine")
    assert value is not None
    assert value.shape[1] == network.tap_channels["mine"]
    if "vit" in name:  # tokens, the class token in front
        assert value.shape[-2:] == (4, 6)
        torch.testing.assert_close(value.flatten(2).transpose(1, 2), seen[0][:, 1:])
    else:
        assert value is seen[0]


@pytest.mark.parametrize("name", [OWN, MODULE])
def test_compiled_taps_hold_the_same(name: str) -> None:
    network = tapped(name).eval()
    plain = deepcopy(network)
    compiled: Any = torch.compile(network, backend="aot_eager")
    for images in (photo(64, 96, 2), photo(64, 96, 2).flip(-1)):
        expected, found = plain(images), compiled(images)
        assert found.taps.keys() == {"mine"}
        torch.testing.assert_close(found.taps["mine"], expected.taps["mine"])
        torch.testing.assert_close(found.logits, expected.logits)
        for output in (expected, found):
            output.taps["mine"].square().sum().backward()
    for one, other in zip(plain.parameters(), network.parameters(), strict=True):
        if one.grad is not None:
            assert other.grad is not None
            torch.testing.assert_close(one.grad, other.grad)
        else:  # compiled graphs give zeros where nothing was asked for
            assert other.grad is None or not other.grad.any()


def recompute(network: Network, name: str, use_reentrant: bool) -> None:
    """Have what holds the module of the tap run under activation checkpointing, as libraries do in their forwards."""
    around = network.get_submodule("net.encoder.model" if name.startswith("smp:") else "backbone.net")
    forward = around.forward
    around.forward = lambda *args: checkpoint(forward, *args, use_reentrant=use_reentrant)  # type: ignore[method-assign]


@pytest.mark.parametrize("name", [OWN, SMP])
def test_gradients_pass_through_a_tap_in_a_checkpointed_block(name: str) -> None:
    networks = [tapped(name).eval() for _ in range(2)]
    recompute(networks[1], name, use_reentrant=False)
    for network in networks:
        output = network(photo(64, 96))
        (output.taps["mine"].square().sum() + output.logits.sum()).backward()
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)
    taps: Any = networks[1]._taps
    assert taps.values == {}  # the second run, in the backward pass, has left nothing behind
    with torch.no_grad():
        assert networks[1](photo(64, 96)).taps.keys() == {"mine"}


@pytest.mark.parametrize("name", [OWN, SMP])
def test_a_tap_that_no_gradient_reaches_is_an_error(name: str) -> None:
    network = tapped(name).eval()
    recompute(network, name, use_reentrant=True)
    images = photo(64, 96)
    with pytest.raises(
        SegtailorError, match=r"no gradient reaches the tap '.*'; .* re-entrant .*: use use_reentrant=Fa"
    ):
        network(images)
    with torch.no_grad():
        assert network(images).taps["mine"] is not None
    for parameter in network.parameters():  # frozen, it is no mistake
        parameter.requires_grad_(False)
    assert network(images).taps["mine"] is not None


@pytest.mark.parametrize("name", [OWN, MODULE])
def test_a_copy_has_separate_taps(name: str) -> None:
    network = tapped(name).eval()
    copy = deepcopy(network)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.mul_(0.5)
        before, moved = network(photo(64, 96)), copy(photo(64, 96))
        again = network(photo(64, 96))
    assert not torch.equal(before.taps["mine"], moved.taps["mine"])
    torch.testing.assert_close(before.taps["mine"], again.taps["mine"])


def test_two_processes_average_the_gradients_of_a_tap() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    taps = {name: NETWORKS[name] for name in (OWN, MODULE)}
    both = on_two_processes(port, taps)
    for name, path in taps.items():
        alone = gradients(name, path, photo(64, 96, 2))
        reached = {key: value for key, value in alone.items() if value.any()}
        assert len(reached) >= 4
        for key, value in reached.items():
            torch.testing.assert_close(both[name][key], value, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", [OWN, MODULE])
def test_no_tensor_is_kept_after_a_forward(name: str) -> None:
    network = tapped(name).train()
    output = network(photo(64, 96))
    value = output.taps["mine"]
    held = weakref.ref(value)
    value.sum().backward()
    del output, value
    gc.collect()
    assert held() is None

    kept: list[Any] = []

    def fail(module: nn.Module, args: Any, output: Any) -> None:
        kept.append(weakref.ref(output))
        raise torch.OutOfMemoryError("out of memory")

    handle = inner(network, name).register_forward_hook(fail)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        network(photo(64, 96))
    handle.remove()
    gc.collect()
    assert kept[0]() is None


def test_taps_are_stored_and_may_be_named_when_a_network_is_loaded(tmp_path: Path, teacher_run: Path) -> None:
    save_model(tapped("fcn-test_resnet"), tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors", taps={"early": "backbone.net.layer1"})
    assert {"mine", "early"} <= again.tap_channels.keys()
    config = TeacherConfig(weights=str(teacher_run), taps={"mine": "backbone.net.blocks.3"})
    teacher = Teacher(load_teacher(config, load_model(teacher_run).num_classes))
    output = teacher(photo(64, 96))
    assert output.taps["mine"].shape[1] == teacher.tap_channels["mine"]
    bgr = load_model(tmp_path / "m.safetensors", preprocess={"channel_order": "bgr"})
    assert bgr.preprocess.channel_order == "bgr"
    assert bgr.preprocess.spec()["mean"] == again.preprocess.spec()["mean"]


@pytest.mark.parametrize(
    ("name", "taps", "message"),
    [
        (
            "fcn-lcnet_050",
            {"mine": "backbone.net.block.3"},
            r"'backbone.net.block.3'; nearest: backbone.net.blocks.3, ",
        ),
        (
            "fcn-lcnet_050",
            {"mine": "backbone.net.blocks.5.0.se.gate"},
            r"a tensor of shape \[1, 128, 1, 1\], no map of",
        ),
        ("fcn-lcnet_050", {"feature": "head.block"}, r"has a tap 'feature' already; choose another name"),
        ("fcn-lcnet_050", {"stages.1": "head.block"}, r"has a tap 'stages.1' already; choose another name"),
        (
            "smp:Linknet/tu-test_resnet",
            {"mine": "encoder.layer2"},
            r"nearest: encoder.model.layer2, .*--paths` lists all",
        ),
    ],
)
def test_wrong_taps_are_one_line(name: str, taps: dict[str, str], message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as raised:
        create_model(name, 3, taps=taps)
    assert "\n" not in str(raised.value)
    if "nearest" in message:
        assert str(raised.value).count(", ") >= 4


def test_methods_read_the_tap_that_both_recipes_name(tmp_path: Path, teacher_run: Path) -> None:
    recipe = tiny_distill(tmp_path, teacher_run, steps=1)
    recipe["teacher"]["taps"] = {"mine": "backbone.net.blocks.3"}
    recipe["student"] = {"model": "smp:Linknet/tu-test_resnet", "taps": {"mine": "encoder.model.layer3"}}
    recipe["data"] |= {"size": [64, 96], "crop": [64, 96]}
    names = ["mine", "feature"]
    recipe["method"] = [{"name": "kt", "feature_taps": names}, {"name": "at", "taps": names}]
    recipe["evaluate"]["every"] = 1
    result = distill(recipe)
    text = (result.folder / "metrics.jsonl").read_text()
    assert all(re.search(rf'"{method}\.[^"]*\.mine"', text) for method in ("kt", "at"))
    assert sum("mine" in line for line in result.results["alignment"]) == 2


def test_a_tap_that_one_network_does_not_name_is_named() -> None:
    channels = create_model(TINY_MODEL, 3).tap_channels
    with pytest.raises(SegtailorError, match="'mine'"):
        create_method("at", num_classes=3, student_channels=channels, teacher_channels=channels, taps="mine")


def test_paths_are_listed_with_shape_stride_and_proposal(capsys: pytest.CaptureFixture[str]) -> None:
    network = create_model(OWN, 3)
    found = {row.path: row for row in list_paths(network, (64, 96)).paths}
    assert found["backbone.net.layer2"] == ("backbone.net.layer2", (48, 8, 12), 8, ("stages.1",))
    assert found["head.block"].taps == ("feature",)
    assert found["head.classifier"].taps == ("logits",)
    ran = set()
    for path, module in network.named_modules():
        module.register_forward_hook(lambda *_, path=path: ran.add(path))
    network(photo(64, 96, 2))
    assert found.keys() == ran - {"", "preprocess"}
    run("inspect", "smp:FPN/tu-test_resnet", "--paths", "--height", "64", "--width", "96", "--classes", "3")
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "encoder.model.layer3 192 x 4 x 6 16 stages.2" in rows
    assert "decoder 128 x 16 x 24 4 feature" in rows
    assert "segmentation_head.0 3 x 16 x 24 4 logits" in rows


def test_what_is_no_map_has_a_shape_and_no_stride() -> None:
    rows = {row.path: row for row in list_paths(create_model("fcn-lcnet_035", 3), (64, 96)).paths}
    assert rows["backbone.net.blocks.5.0.se.gate"].shape[1:] == (1, 1)
    assert rows["backbone.net.blocks.5.0.se.gate"].stride is None


def run(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


def test_shapes_are_those_of_a_forward() -> None:
    network = create_model("smp:DPT/tu-test_vit", 3, config={"decoder_intermediate_channels": [8] * 4}).eval()
    rows = list_paths(network, (64, 96)).paths
    for row in rows:
        if row.taps and row.taps[0].startswith("stages"):
            with torch.no_grad():
                assert network(photo(64, 96)).tap(row.taps[0]).shape[1:] == row.shape  # type: ignore[union-attr]
    assert sum(bool(row.taps) for row in rows) == 6
