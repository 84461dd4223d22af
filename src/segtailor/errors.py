"""The exception for users' mistakes, and the nearest-name lists in its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXTRAS = {
    "export": "onnx onnxruntime",
    "hf": "transformers datasets",
    "pack": "litdata",
    "smp": "segmentation-models-pytorch",
}
"""The packages of each extra in pyproject.toml."""


class SegtailorError(Exception):
    """A user's mistake: one line with the problem, its place, and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """


def nearest(name: str, choices: Iterable[str], count: int = 5) -> list[str]:
    """Return the ``count`` members of ``choices`` most like ``name``, best first.

    >>> nearest("deeplabv3-resnet81", ["pspnet-resnet18", "deeplabv3-resnet18", "toy"], 1)
    ['deeplabv3-resnet18']
    """
    return difflib.get_close_matches(name, sorted(set(choices)), n=count, cutoff=0.0)


def unknown(kind: str, name: str, choices: Iterable[str], hint: str = "") -> SegtailorError:
    """Build the error for a name that is not among ``choices``; it lists the five nearest names."""
    near = nearest(name, choices)
    listed = f"; nearest: {', '.join(near)}" if near else ""
    return SegtailorError(f"unknown {kind} '{name}'{listed}{'. ' + hint if hint else ''}")


def install(extra: str) -> str:
    """Return the command that installs the packages of ``extra``, for a message.

    >>> install("hf")
    'pip install transformers datasets'
    """
    return f"pip install {EXTRAS[extra]}"


def reason(error: BaseException) -> str:
    """Return the first line of ``error``'s message, or its type's name when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def causes(error: BaseException) -> list[BaseException]:
    """Return ``error`` and what it came from, the innermost last."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain
