"""Networks: built by name, loaded, saved and inspected."""

from __future__ import annotations

from segtailor.models.create import create_model, is_published, list_models
from segtailor.models.output import SegOutput
from segtailor.models.preprocess import Preprocess
from segtailor.models.segmenter import Segmenter
from segtailor.models.store import load_model, read_card, save_model
from segtailor.models.teacher import Teacher

__all__ = [
    "Preprocess",
    "SegOutput",
    "Segmenter",
    "Teacher",
    "create_model",
    "is_published",
    "list_models",
    "load_model",
    "read_card",
    "save_model",
]
