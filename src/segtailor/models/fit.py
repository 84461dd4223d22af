"""Whether a file's tensors fit a network: names and shapes, told in one line."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from segtailor.errors import SegtailorError


def check_fit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str, network: str) -> None:
    """Raise SegtailorError unless ``given`` has exactly the names and shapes of ``expected``."""
    problems = [
        count_names("missing", [name for name in expected if name not in given]),
        count_names("unexpected", [name for name in given if name not in expected]),
        count_names(
            "of another shape",
            [name for name, tensor in given.items() if name in expected and expected[name].shape != tensor.shape],
        ),
    ]
    if any(problems):
        raise SegtailorError(f"{source} does not fit {network}: {'; '.join(filter(None, problems))}")


def count_names(kind: str, names: list[str]) -> str:
    """Return how many ``names`` there are and the first five of them, or nothing.

    >>> count_names("missing", ["head.weight", "head.bias"])
    '2 missing (head.weight, head.bias)'
    """
    if not names:
        return ""
    return f"{len(names)} {kind} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
