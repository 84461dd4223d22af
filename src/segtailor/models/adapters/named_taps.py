"""Taps by module path in networks of our own."""

from __future__ import annotations

import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.models.adapters.capture import Source, Store, attach, check_gradients, check_paths, to_map
from segtailor.models.adapters.trace import evaluated, layout_at, trace
from segtailor.models.network import Network

RESERVED = ("feature", "classifier_input", "logits", "aux_logits")
PROBE = (96, 128)


class NamedTaps:
    """Reads named modules' outputs in each forward of a network; ``channels`` holds their widths."""

    def __init__(self) -> None:
        self.channels: dict[str, int] = {}
        self._layouts: dict[str, str] = {}
        self._sources: dict[str, Source] = {}
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
        self._sources = {name: Source(path) for name, path in taps.items()}
        check_paths(network, self._sources, network.name)
        size = network.preprocess.input_size(PROBE)
        with evaluated(network):
            steps, _ = trace(network, lambda: network.forward_normalised(torch.zeros(1, 3, *size)))
        known = {step.path: step for step in steps}
        for name, source in self._sources.items():
            layout = layout_at(source, name, known, network, size, network.name)
            self._layouts[name], self.channels[name] = layout[0], layout[1]
        self._store = attach(network, self._sources, network.name)

    def begin(self) -> None:
        """Start to collect, at the start of a forward."""
        if self._store is not None:
            self._store.begin()

    def end(self) -> dict[str, Tensor]:
        """Stop, also where the forward fails, and return what was seen."""
        return {} if self._store is None else self._store.take()

    def maps(self, seen: dict[str, Tensor], inputs: Tensor, network: Network) -> dict[str, Tensor]:
        """Return what was ``seen`` as maps (B,C,h,w) of ``inputs`` (B,3,H,W).

        Raises SegtailorError for a tap that no gradient reaches while ``network`` is trained.
        """
        found = {name: to_map(value, self._layouts[name], inputs.shape[-2:], name) for name, value in seen.items()}
        if found and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            check_gradients(found, self._sources, network, network.name)
        return found
