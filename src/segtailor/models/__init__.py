"""Networks: built by name, loaded, saved and inspected."""

from __future__ import annotations

from segtailor.models.inspect import (
    Inspection,
    count_multiply_adds,
    count_parameters,
    inspect_model,
    published_multiply_adds,
)
from segtailor.models.network import Network, Preprocess, SegOutput
from segtailor.models.segmenter import Segmenter, create_model, is_published, list_models
from segtailor.models.store import load_model, read_card, save_model
from segtailor.models.teacher import Teacher

__all__ = [
    "Inspection",
    "Network",
    "Preprocess",
    "SegOutput",
    "Segmenter",
    "Teacher",
    "count_multiply_adds",
    "count_parameters",
    "create_model",
    "inspect_model",
    "is_published",
    "list_models",
    "load_model",
    "published_multiply_adds",
    "read_card",
    "save_model",
]
