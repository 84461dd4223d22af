"""From a teacher's classes to the data's: many to one, or to void."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from segtailor.errors import SegtailorError, unknown
from segtailor.models.adapters.weights import count_names
from segtailor.models.network import Network, SegOutput

VOID = -1
"""The index of void in `ClassMap`'s indices."""
OTHERS = "others"
"""In a map, all classes of the teacher that it does not name."""
LEAST = -87.0
"""How far below a pixel's largest logit another may lie: a probability that float32 can still hold."""
SHOWN = 12
"""How many of a class's members a line names."""


class ClassMap(nn.Module):
    """Turns logits of the teacher's classes into logits of ``num_classes`` others.

    ``indices[k]`` is the class that the teacher's class k belongs to, or -1 for none. A class's logit is the log of the
    summed exponentials of its members, so its softmax is the sum of their probabilities, divided by what the mapped
    classes hold together. A logit is at most 87 below the pixel's largest, a probability of 0 in effect; so is
    that of a class without members. ``sources`` and ``targets`` are both sides' names, for `rows`.
    """

    order: Tensor

    def __init__(
        self, indices: Sequence[int], num_classes: int, sources: Sequence[str] = (), targets: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.indices, self.num_classes = tuple(indices), num_classes
        self.sources = tuple(sources) or tuple(str(source) for source in range(len(indices)))
        self.targets = tuple(targets) or tuple(str(target) for target in range(num_classes))
        members = [self.members(target) for target in range(num_classes)]
        self._counts = [len(group) for group in members]
        self.register_buffer("order", torch.tensor([source for group in members for source in group]), persistent=False)

    def members(self, target: int) -> list[int]:
        """Return the teacher's classes that belong to the class ``target``; -1 means void."""
        return [source for source, index in enumerate(self.indices) if index == target]

    def forward(self, logits: Tensor) -> Tensor:
        """Return logits (B,K,h,w), float32, of the teacher's (B,L,h,w)."""
        groups = torch.split(logits.float().index_select(1, self.order), self._counts, 1)
        mapped = torch.cat([group.logsumexp(1, keepdim=True) for group in groups], 1)
        # -inf, as of a logarithm of 0, would make 0 * inf of a divergence
        mapped = mapped.clamp(min=torch.finfo(torch.float32).min / 2)
        return torch.maximum(mapped, mapped.amax(1, keepdim=True) + LEAST)

    def map_output(self, output: SegOutput) -> SegOutput:
        """Return ``output`` with both kinds of logits mapped; features stay."""
        output.logits = self(output.logits)
        if output.aux_logits is not None:
            output.aux_logits = self(output.aux_logits)
        return output

    def rows(self) -> list[dict[str, Any]]:
        """Return each class with the teacher's classes that belong to it, void last, for results and reports."""
        named = [*enumerate(self.targets), (VOID, "void")]
        found = [(name, [self.sources[index] for index in self.members(target)]) for target, name in named]
        return [{"class": name, "from": members} for name, members in found if members]

    def lines(self) -> list[str]:
        """Return the same as lines; of many members the first are named.

        >>> ClassMap([0, 1, 1, -1], 2, ["road", "car", "bus", "sky"], ["way", "vehicle"]).lines()
        ['class map: way <- road', 'class map: vehicle <- car, bus', 'class map: void <- sky']
        """
        shown = []
        for row in self.rows():
            names, rest = row["from"][:SHOWN], len(row["from"]) - SHOWN
            more = f" and {rest} more" if rest > 0 else ""
            shown.append(f"class map: {row['class']} <- {', '.join(names)}{more}")
        return shown


def read_class_map(given: Path | Mapping[Any, Any], network: Network, classes: Sequence[str]) -> ClassMap:
    """Return the map from the classes of ``network`` to ``classes``.

    ``given`` maps a class of the network (name or number) to one of ``classes`` (name or number) or to ``void``, or is
    a YAML file of that; ``others`` means all that it does not name. Raises SegtailorError for a class that neither
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
            continue
        place = _index(source, own, f"class of {network.name} in {where}")
        if indices[place] not in (None, index):
            raise SegtailorError(f"{where} maps the teacher's class {own[place]} twice, to two classes; keep one line")
        indices[place] = index
    missed = [own[source] for source, index in enumerate(indices) if index is None]
    if missed and rest is None:
        raise SegtailorError(
            f"{where} misses {count_names('classes of the teacher', missed)}; map each to a class of the data or to "
            f"void (`{OTHERS}: void` for all of them)"
        )
    final = [rest if index is None else index for index in indices]
    empty = [name for index, name in enumerate(classes) if index not in final]
    if empty:
        raise SegtailorError(
            f"{where} maps nothing to {count_names('classes of the data', empty)}; the teacher cannot teach them: map "
            "a class of it to each, or leave them out of the data's classes"
        )
    return ClassMap([VOID if index is None else index for index in final], len(classes), own, classes)


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
    if list(classes).count(text) > 1:
        places = ", ".join(str(place) for place, name in enumerate(classes) if name == text)
        raise SegtailorError(f"'{text}' names several classes ({kind}); give their numbers instead: {places}")
    if text in classes:
        return classes.index(text)
    if text.isdigit() and int(text) < len(classes):
        return int(text)
    raise unknown(kind, text, classes)
