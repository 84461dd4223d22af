"""Taps by module path in networks of our own."""

from __future__ import annotations

import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.models.adapters.capture import Source, Store, attach, check_paths, to_map
from segtailor.models.network import Network

RESERVED = ("feature", "classifier_input", "logits", "aux_logits")
PROBE = (96, 128)


class NamedTaps:
    """Reads named modules' outputs in each forward of a network; ``channels`` holds their widths."""

    def __init__(self) -> None:
        self.channels: dict[str, int] = {}
        self._layouts: dict[str, str] = {}
        self._store: Store | None = None

    def name(self, network: Network, taps: dict[str, str]) -> None:
        """Read ``taps`` (name -> path below ``network``) from now on; their widths are told by a small image.

        Raises SegtailorError for a path that the network does not have, or whose output is no map.
        """
        if not taps:
            return
        taken = [name for name in taps if name in RESERVED or name.startswith("stages.")]
        if taken:
            raise SegtailorError(f"{network.name} has a tap '{taken[0]}' already; choose another name")
        sources = {name: Source(path) for name, path in taps.items()}
        check_paths(network, sources, network.name)
        self._measure(network, taps)
        self._store = attach(network, sources, network.name)

    def begin(self) -> None:
        """Start to collect, at the start of a forward."""
        if self._store is not None:
            self._store.begin()

    def take(self, size: torch.Size) -> dict[str, Tensor]:
        """Return the taps of the forward that ends, whose inputs had ``size`` (H,W)."""
        seen = {} if self._store is None else self._store.take()
        return {name: to_map(value, self._layouts[name], size, name) for name, value in seen.items()}

    def _measure(self, network: Network, taps: dict[str, str]) -> None:
        from segtailor.models.adapters.trace import layout_of, trace

        modes = [(module, module.training) for module in network.modules()]
        network.eval()
        size = network.preprocess.input_size(PROBE)
        try:
            steps, _ = trace(network, lambda: network.forward_normalised(torch.zeros(1, 3, *size)))
        finally:
            for module, mode in modes:
                module.training = mode
        known = {step.path: step.output for step in steps}
        for name, path in taps.items():
            tensor = known.get(path)
            layout = None if tensor is None else layout_of(tensor, size)
            if layout is None:
                raise SegtailorError(f"{network.name}: {path} gives no map of the image; choose another tap")
            self._layouts[name], self.channels[name] = layout[0], layout[1]
