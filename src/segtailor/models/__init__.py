"""Networks: built by name, loaded, saved and inspected."""

from __future__ import annotations

from segtailor.models.create import create_model, is_published, list_models
from segtailor.models.inspect import Inspection, inspect_model
from segtailor.models.network import Network
from segtailor.models.output import SegOutput
from segtailor.models.preprocess import Preprocess
from segtailor.models.profile import count_multiply_adds, count_parameters, published_multiply_adds
from segtailor.models.segmenter import Segmenter
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
