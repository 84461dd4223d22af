"""From a teacher's classes to the data's: many to one, or to void."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from segtailor.errors import SegtailorError, unknown
from segtailor.models.fit import count_names
from segtailor.models.network import Network
from segtailor.models.output import SegOutput

VOID = -1
"""What stands for void in `ClassMap`'s indices."""
OTHERS = "others"
"""In a map, all classes of the teacher that it does not name."""


class ClassMap(nn.Module):
    """Turns logits of the teacher's classes into logits of ``num_classes`` others.

    ``indices[k]`` is the class that the teacher's class k belongs to, or -1 for none. A class's logit is the log of the
    summed exponentials of its members, so its softmax is the sum of their probabilities, divided by what the mapped
    classes hold together. A class without members gets the least finite logit.
    """

    members: Tensor

    def __init__(self, indices: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        members = torch.zeros(num_classes, len(indices))
        for source, index in enumerate(indices):
            if index != VOID:
                members[index, source] = 1
        self.register_buffer("members", members, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return logits (B,K,h,w), float32, of the teacher's (B,L,h,w)."""
        logits = logits.float()
        kept = self.members.sum(0) > 0
        top = logits.masked_fill(~kept.view(1, -1, 1, 1), -torch.inf).amax(1, keepdim=True)
        shares = torch.einsum("kl,blhw->bkhw", self.members, (logits - top).clamp(max=0).exp())
        return shares.clamp(min=torch.finfo(torch.float32).tiny).log() + top

    def map_output(self, output: SegOutput) -> SegOutput:
        """Return ``output`` with both kinds of logits mapped; features stay."""
        output.logits = self(output.logits)
        if output.aux_logits is not None:
            output.aux_logits = self(output.aux_logits)
        return output


def read_class_map(given: Path | Mapping[Any, Any], network: Network, classes: Sequence[str]) -> ClassMap:
    """Return the map from the classes of ``network`` to ``classes``.

    ``given`` maps a class of the network (name or number) to one of ``classes`` (name or number) or to ``void``, or is a
    YAML file of that; ``others`` stands for all that it does not name. Raises SegtailorError for a class that neither
    side has, for a class of the network that is not mapped, and for one of ``classes`` that nothing is mapped to.
    """
    where = f"class_map {given}" if isinstance(given, Path) else "class_map"
    mapping = _read(given) if isinstance(given, Path) else dict(given)
    own = network.classes or tuple(str(index) for index in range(network.num_classes))
    indices: list[int | None] = [None] * network.num_classes
    rest: int | None = None
    for source, target in mapping.items():
        index = VOID if target == "void" else _index(target, classes, f"class of the data in {where}")
        if source == OTHERS:
            rest = index
        else:
            indices[_index(source, own, f"class of {network.name} in {where}")] = index
    missed = [own[source] for source, index in enumerate(indices) if index is None]
    if missed and rest is None:
        raise SegtailorError(
            f"{where} misses {count_names('classes of the teacher', missed)}; map each to a class of the data or to void"
            f" (`{OTHERS}: void` for all of them)"
        )
    final = [rest if index is None else index for index in indices]
    empty = [name for index, name in enumerate(classes) if index not in final]
    if empty:
        raise SegtailorError(
            f"{where} maps nothing to {count_names('classes of the data', empty)}; the teacher cannot teach them: map a "
            "class of it to each, or leave them out of the data's classes"
        )
    return ClassMap([VOID if index is None else index for index in final], len(classes))


def _read(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SegtailorError(f"no such file: {path} (teacher.class_map)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SegtailorError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SegtailorError(f"{path} holds no mapping; write lines like `bus: car` or `others: void`")
    return content


def _index(given: Any, classes: Sequence[str], kind: str) -> int:
    """Return the number of the class that ``given``, a name or a number, means."""
    text = str(given)
    if text in classes:
        return classes.index(text)
    if text.isdigit() and int(text) < len(classes):
        return int(text)
    raise unknown(kind, text, classes)
