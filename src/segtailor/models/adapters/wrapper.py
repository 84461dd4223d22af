"""A network of another library, with the interface of ours: logits before enlarging, feature, stages and taps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError, reason
from segtailor.models.adapters.discovery import (
    LEAST_PROBABILITY,
    are_probabilities,
    find_classifier,
    find_encoder,
    find_stages,
)  # fmt: skip
from segtailor.models.heads import PooledBatchNorm2d, resize
from segtailor.models.network import Network, Preprocess, SegOutput
from segtailor.models.taps import Side, Source, Taps, evaluated, trace

CLASSIFIER, AUX = "classifier:output", "aux:output"
_SHOWN = {CLASSIFIER: "logits", AUX: "aux_logits"}
PROBES = ((96, 128), (192, 256))
"""Sizes of the image with which a network is tried, the larger when the smaller is too small for it; made larger to
the network's multiple."""
LOGITS_NAMES, AUX_NAMES = ("out", "logits", "masks", "pred", "preds"), ("aux", "aux_logits")
"""Names under which networks give their logits."""
REFUSALS = (AssertionError, RuntimeError, ValueError)
"""Types, subclasses excluded, that networks raise at a size that they do not take."""


T = TypeVar("T")


class Ran(NamedTuple):
    """The result of a foreign network: logits (B,K,h,w) at any size, auxiliary logits, and a feature."""

    logits: Tensor
    aux_logits: Tensor | None = None
    feature: Tensor | None = None


def make_preprocess(name: str, values: dict[str, Any]) -> Preprocess:
    """Return the preprocessing of the network ``name``; SegtailorError where a recipe's ``values`` are wrong."""
    try:
        return Preprocess(**values)
    except (TypeError, ValueError) as error:
        raise SegtailorError(f"{name}: {error}") from error


def read_result(result: Any, network: str) -> Ran:
    """Return the logits in ``result``: itself, the entry or field of a usual name, or the first map in a tuple.

    Raises SegtailorError where there is none, or where several entries of a mapping may be meant.
    """
    if isinstance(result, Tensor):
        return Ran(result)
    fields = result if isinstance(result, Mapping) else _fields(result)
    if fields:
        named = next((fields[name] for name in LOGITS_NAMES if isinstance(fields.get(name), Tensor)), None)
        aux = next((fields[name] for name in AUX_NAMES if _is_map(fields.get(name))), None)
        maps = [value for value in fields.values() if _is_map(value)]
        if named is not None or len(maps) == 1:
            return Ran(maps[0] if named is None else named, aux if named is not None else None)
        raise SegtailorError(
            f"{network} returns {', '.join(map(str, fields))}; which of them are the logits (B,K,h,w)? Call them 'out' "
            "or 'logits'"
        )
    if isinstance(result, tuple | list):
        first = next((value for value in result if _is_map(value)), None)
        if first is not None:
            return Ran(first)
    raise SegtailorError(f"{network} returns {type(result).__name__}, no tensor of logits (B,K,h,w)")


def refusal(error: Exception, network: str, size: Sequence[int]) -> SegtailorError:
    """Return what to raise where ``network`` fails at ``size`` (height, width)."""
    return SegtailorError(
        f"{network} does not run on an image of {size[0]} x {size[1]} ({reason(error)[:160]}); if it needs a certain "
        "size, set preprocess.size or preprocess.size_multiple (create_method: image_size)"
    )


def run_on_noise(run: Callable[[Tensor], T], preprocess: Preprocess, network: str) -> tuple[T, tuple[int, int]]:
    """Return what ``run`` gives for noise (1,3,H,W) of the first of `PROBES` that works, and its height and width."""
    problem: Exception | None = None
    for probe in PROBES:
        size = preprocess.input_size(probe)
        try:
            return run(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))), size
        except SegtailorError:
            raise
        except Exception as error:  # foreign code may fail in any way
            problem = problem or error
    assert problem is not None
    raise refusal(problem, network, size) from problem


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


def _fields(result: Any) -> dict[str, Any]:
    """Return the tensors among an object's fields; a plain tuple has none."""
    if isinstance(result, tuple | list):
        names = getattr(result, "_fields", ())
        return {name: getattr(result, name) for name in names}
    return {name: value for name, value in getattr(result, "__dict__", {}).items() if isinstance(value, Tensor)}


class Adapted(Network):
    """Wraps ``net``, a network of another library; a family overrides `run` where its call differs.

    The module that computes the logits is found by trying the network on a small image, or is the path ``classifier``:
    the logits are its output, before the network enlarges them, ``feature`` is its input, before dropout. ``taps``
    names further module paths below ``net``, whose outputs are offered under those names (``feature`` and ``stages.N``
    may be named, too). A network without such a module gives its full-size logits and no feature. ``encoder`` is the
    path of the part whose maps are the stages, and ``stages`` are those maps' paths, finest first, where known;
    ``aux`` is the path of the module that computes auxiliary logits. ``options`` go into `spec`, for `create_model`.
    A network in another precision than float32 keeps it; what comes out is float32.

    Raises SegtailorError for a network that does not run, gives no class maps, or has no such path.
    """

    own_layout = ""
    """The project, as `weights.LAYOUTS` calls it, whose files fit this network."""

    def __init__(
        self,
        name: str,
        num_classes: int,
        net: nn.Module,
        preprocess: Preprocess,
        *,
        classifier: str | None = None,
        taps: dict[str, str] | None = None,
        encoder: str | None = None,
        stages: Sequence[str] | None = None,
        aux: str | None = None,
        options: dict[str, Any] | None = None,
        licenses: dict[str, str] | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.name, self.num_classes, self.net, self.preprocess = name, num_classes, net, preprocess
        self.licenses, self.classes = dict(licenses or {}), classes
        self.options = {**(options or {}), **({"classifier": classifier} if classifier else {})}
        self.options |= {"taps": dict(taps)} if taps else {}
        self.align_corners = False
        self._taps, self._enlarges = Taps(name), False
        # a pooled branch leaves one value a channel where an image is alone in its batch
        for module in net.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = PooledBatchNorm2d
        self._find(classifier, taps or {}, encoder, stages, aux)
        self._taps.attach(net)

    def run(self, inputs: Tensor) -> Ran:
        """Return what the network gives for normalized ``inputs`` (B,3,H,W)."""
        return read_result(self.net(inputs), self.name)

    def fitting(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return those of ``tensors``, read from another project's file, that have a place in this network.

        A family may also take parts from the network that the file does not have.
        """
        return tensors

    @property
    def tap_sources(self) -> dict[str, Source]:
        """Where every tap is read; ``logits`` and ``aux_logits`` where modules give them."""
        return {_SHOWN.get(name, name): source for name, source in self._taps.sources.items()}

    @property
    def classifier(self) -> str | None:
        """The path of the module that computes the logits, where there is one."""
        return self._taps.sources[CLASSIFIER].path if CLASSIFIER in self._taps.sources else None

    def forward_normalized(self, inputs: Tensor) -> SegOutput:
        """Return the output for ``inputs`` (B,3,H,W) that are preprocessed already."""
        self._taps.begin()
        try:
            ran = self.run(inputs.to(self._own_dtype()) if self._converts else inputs)
        except REFUSALS as error:
            if type(error) not in REFUSALS:  # out of memory, say
                raise
            raise refusal(error, self.name, inputs.shape[-2:]) from error
        finally:
            seen = self._taps.take()
        return self.assemble(ran, seen, inputs.shape[-2:])

    def assemble(self, ran: Ran, seen: dict[str, Tensor], size: torch.Size) -> SegOutput:
        """Return the output of a forward on inputs of ``size``, from what it gave and which taps were ``seen``."""
        if self._converts:
            ran = Ran(ran.logits.float(), *(None if value is None else value.float() for value in ran[1:]))
            seen = {name: value.float() for name, value in seen.items()}
        found = self._taps.maps(seen, size, self.net, ran.logits)
        logits, aux_logits = found.pop(CLASSIFIER, ran.logits), found.pop(AUX, ran.aux_logits)
        if self._probabilities:
            logits = logits.clamp(min=LEAST_PROBABILITY).log()
        stages = tuple(found.pop(f"stages.{index}") for index in range(len(self.stage_strides)))
        feature = found.pop("feature", ran.feature)
        return SegOutput(logits, aux_logits, feature, found.pop("classifier_input", feature), stages, found)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the part whose maps are the stages."""
        return list(self.net.get_submodule(self._encoder).parameters()) if self._encoder else []

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``logits`` (B,K,h,w) at ``size``, bilinear, with the corner rule that the network itself has.

        A network of one size that enlarges its logits itself does so to that size; the rest is enlarged from there.
        """
        own = self.preprocess.size
        if own is not None and self._enlarges and tuple(size) != own:
            return resize(resize(logits, own, self.align_corners), size, False)
        return resize(logits, size, self.align_corners)

    def spec(self) -> dict[str, Any]:
        """Return what `create_model` needs to build the same network, as plain values."""
        own = {"name": self.name, "num_classes": self.num_classes, "preprocess": self.preprocess.spec()}
        return {**own, **self.options}

    def _own_dtype(self) -> torch.dtype:
        return next((value.dtype for value in self.net.parameters() if value.is_floating_point()), torch.float32)

    def _find(
        self,
        classifier: str | None,
        taps: dict[str, str],
        encoder: str | None,
        stages: Sequence[str] | None,
        aux: str | None,
    ) -> None:
        device = next((value.device for value in self.net.parameters()), torch.device("cpu"))
        dtype = self._own_dtype()
        if device.type == "meta":
            raise SegtailorError(f"{self.name} is on the device meta, without values; give it weights first")
        self._converts = dtype != torch.float32
        with evaluated(self.net):
            (steps, ran), size = run_on_noise(
                lambda noise: trace(self.net, lambda: self.run(noise.to(device, dtype))), self.preprocess, self.name
            )
        if ran.logits.ndim != 4 or ran.logits.shape[1] != self.num_classes:
            raise SegtailorError(
                f"{self.name} gives logits of shape {list(ran.logits.shape)} for an image of {size[0]} x {size[1]}, "
                f"not (1,{self.num_classes},h,w); check the number of classes"
            )
        known = {step.path: step for step in steps}

        def add(tap: str, path: str, side: Side = "output") -> int:
            return self._taps.add(tap, Source(path, side), known, self.net, size)

        self.has_aux = aux is not None or ran.aux_logits is not None
        found = find_classifier(steps, ran.logits, size, self.num_classes, classifier)
        self._probabilities = found is None and are_probabilities(ran.logits)
        if found is not None:
            self.align_corners, self._enlarges = found.align_corners, tuple(ran.logits.shape[-2:]) == size
            add(CLASSIFIER, found.path)
            add("feature", *found.feature)
            if "feature" not in taps:
                add("classifier_input", found.path, "input")
        elif classifier in known:
            raise SegtailorError(f"{self.name}: the output of {classifier}, enlarged, is not the network's logits")
        elif classifier is not None:
            add("classifier", classifier)  # reports why there is no such module
        self._encoder = find_encoder(self.net, found.path if found else None) if encoder is None else encoder
        if stages is None:
            stages = [stage.path for stage in find_stages(steps, self._encoder, size)]
        self.stage_strides = tuple(add(f"stages.{index}", path) for index, path in enumerate(stages))
        if aux is not None:
            add(AUX, aux)
        for name, path in taps.items():
            add(name, path)
        self.tap_channels = {tap: width for tap, width in self._taps.channels.items() if tap not in _SHOWN}
        if ran.feature is not None:
            self.tap_channels.setdefault("feature", ran.feature.shape[1])
        if "feature" in self.tap_channels:
            self.tap_channels.setdefault("classifier_input", self.tap_channels["feature"])
        notes = ["it gives logits alone and no feature"] if "feature" not in self.tap_channels else []
        notes += ["its probabilities are taken as logits by their logarithm"] if self._probabilities else []
        self.note = self.note or "; ".join(notes)
