"""Evaluation: confusion matrix and its figures, whole-image and sliding-window inference, pictures of the result."""

from __future__ import annotations

from segtailor.evaluation.boundary import BoundarySettings
from segtailor.evaluation.confusion import MIOU_RULE, EvaluationResult
from segtailor.evaluation.evaluate import Metrics, check_classes, evaluate_model
from segtailor.evaluation.inference import InferenceSettings, evaluating, inference_settings, predict_logits

__all__ = [
    "MIOU_RULE",
    "BoundarySettings",
    "EvaluationResult",
    "InferenceSettings",
    "Metrics",
    "check_classes",
    "evaluate_model",
    "evaluating",
    "inference_settings",
    "predict_logits",
]
