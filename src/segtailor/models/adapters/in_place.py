"""Networks that others run, in a training loop of theirs: their inner tensors are read in place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError
from segtailor.models.adapters.wrapper import Adapted, read_result
from segtailor.models.network import Network, Preprocess, SegOutput
from segtailor.models.taps import Capture, Taps
from segtailor.models.teacher import Teacher


class Foreign(Adapted):
    """A network of another library, whose taps are read by hooks in its forward."""

    def __init__(
        self, role: str, module: nn.Module, num_classes: int, taps: Mapping[str, str], size: tuple[int, int] | None
    ) -> None:
        net = bare(module)
        kinds = [(part, type(part)) for part in net.modules()]
        paths = dict(taps)
        classifier, aux = paths.pop("logits", None), paths.pop("aux_logits", None)
        try:
            super().__init__(
                f"the {role} {type(net).__name__}", num_classes, net, Preprocess((0, 0, 0), (1, 1, 1), 1.0, size=size),
                classifier=classifier, taps=paths, aux=aux,
            )  # fmt: skip
        finally:
            for part, kind in kinds:
                part.__class__ = kind
        self.role, self._whole = role, [module]
        self._begin = net.register_forward_pre_hook(partial(_begin, self._taps, role == "teacher"))

    def run_whole(self, images: Tensor) -> Any:
        """Return what the module, wrapped as it was given, returns for ``images``."""
        self._taps.begin()
        return self._whole[0](images)

    def collect(self, result: Any, images: Tensor) -> SegOutput:
        """Return ``result`` with the inner tensors of the forward that gave it."""
        seen = self._taps.take()
        lacking = sorted(self._taps.sources.keys() - seen.keys())
        if lacking:
            path = self._taps.sources[lacking[0]].path
            raise SegtailorError(
                f"{self.name}: {path} was not run since the last call, or by code that was compiled before "
                f"create_method; run the {self.role} once before each loss"
                f"{', with gradients' if self.role == 'student' else ''}, and compile it after create_method "
                "(torch.compiler.reset() forgets earlier code)"
            )
        return self.assemble(read_result(result, self.name), seen, images.shape[-2:])

    def close(self) -> None:
        """Remove the hooks."""
        self._begin.remove()
        for part in self.net.modules():
            for key, hook in list(part._forward_hooks.items()):
                if isinstance(hook, Capture) and hook.taps is self._taps:
                    part._forward_hooks.pop(key)
                    part._forward_hooks_with_kwargs.pop(key, None)

    @property
    def places(self) -> dict[str, str]:
        """The path of the module that gives each tap."""
        return {name: source.path for name, source in self.tap_sources.items()}


class Ours:
    """A network of segtailor, which returns all taps."""

    def __init__(self, role: str, module: nn.Module, net: Network | Teacher) -> None:
        self.net, self.run_whole = net, module
        self.name, self.tap_channels = f"the {role} {net.name}", net.tap_channels
        self.places: dict[str, str] = {}

    def collect(self, result: Any, images: Tensor) -> SegOutput:
        """Return ``result``."""
        if not isinstance(result, SegOutput):
            raise SegtailorError(f"{self.name} returns a SegOutput, not {type(result).__name__}; pass that")
        return result

    def close(self) -> None:
        """Do nothing: there are no hooks of a loop's."""


def _begin(taps: Taps, always: bool, module: nn.Module, args: tuple[Any, ...]) -> None:
    """Start to collect when a network is run, whoever runs it; the student's tensors when it is run to be trained."""
    if always or torch.is_grad_enabled():
        taps.begin()


def view_of(
    role: str, module: nn.Module, num_classes: int, taps: Mapping[str, str], size: tuple[int, int] | None
) -> Foreign | Ours:
    """Return ``module``, the ``role`` of a loop, with the interface of our networks; it runs as it was given."""
    net = bare(module)
    if not isinstance(net, Network | Teacher):
        return Foreign(role, module, num_classes, taps, size)
    if net.num_classes != num_classes:
        raise SegtailorError(f"the {role} has {net.num_classes} classes, not num_classes={num_classes}")
    if taps:
        raise SegtailorError(f"the {role} is a network of segtailor, whose taps have names; leave out {role}_taps")
    return Ours(role, module, net)


def bare(module: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of data parallelism and compilation."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner
