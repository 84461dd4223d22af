"""Tiny transformers networks with random weights, saved as a repository is: config, weights, image processor."""

from __future__ import annotations

import copy
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

CLASSES = ("road", "car", "sky", "tree", "sign")
SWIN: dict[str, Any] = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 2,
    "image_size": 64,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
CONVNEXT = {
    "model_type": "convnext",
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 16,
}
UPERNET: dict[str, Any] = {"hidden_size": 16, "auxiliary_channels": 8}
BEIT: dict[str, Any] = {**VIT, "out_indices": [1, 2, 3, 4], "auxiliary_channels": 8, "layer_norm_eps": 1e-6}
DETR: dict[str, Any] = {"num_attention_heads": 2, "num_queries": 6}

# family -> (configuration class, its arguments, network class, image processor class, its arguments)
FAMILIES: dict[str, tuple[str, dict[str, Any], str, str, dict[str, Any]]] = {
    "segformer": (
        "SegformerConfig",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
        | {"decoder_hidden_size": 16},
        "SegformerForSemanticSegmentation",
        "SegformerImageProcessor",
        {"size": {"height": 128, "width": 128}, "do_reduce_labels": True},
    ),
    "upernet-convnext": (
        "UperNetConfig",
        {**UPERNET, "backbone_config": CONVNEXT},
        "UperNetForSemanticSegmentation",
        "SegformerImageProcessor",
        {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.1]},
    ),
    "upernet-swin": (
        "UperNetConfig",
        {**UPERNET, "backbone_config": SWIN},
        "UperNetForSemanticSegmentation",
        "SegformerImageProcessor",
        {},
    ),
    "dpt": (
        "DPTConfig",
        {**VIT, "image_size": 96, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 16, 16]}
        | {"fusion_hidden_size": 16, "layer_norm_eps": 1e-6},
        "DPTForSemanticSegmentation",
        "DPTImageProcessor",
        {"size": {"height": 96, "width": 96}},
    ),
    "beit": (
        "BeitConfig",
        {**BEIT, "image_size": 64, "use_relative_position_bias": True},
        "BeitForSemanticSegmentation",
        "BeitImageProcessor",
        {"size": {"height": 64, "width": 64}},
    ),
    "data2vec-vision": (
        "Data2VecVisionConfig",
        {**BEIT, "image_size": 96, "use_relative_position_bias": True},
        "Data2VecVisionForSemanticSegmentation",
        "BeitImageProcessor",
        {"size": {"height": 96, "width": 96}},
    ),
    "mobilevit": (
        "MobileViTConfig",
        {"hidden_sizes": [16, 16, 24], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32], "num_attention_heads": 2}
        | {"aspp_out_channels": 16, "output_stride": 16},
        "MobileViTForSemanticSegmentation",
        "MobileViTImageProcessor",
        {"size": {"shortest_edge": 144}, "crop_size": {"height": 128, "width": 128}, "do_normalize": True},
    ),
    "mobilevitv2": (
        "MobileViTV2Config",
        {"width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1], "base_attn_unit_dims": [16, 16, 16]}
        | {"aspp_out_channels": 16, "output_stride": 16},
        "MobileViTV2ForSemanticSegmentation",
        "MobileViTImageProcessor",
        {"size": {"shortest_edge": 144}, "crop_size": {"height": 128, "width": 128}},
    ),
    "mobilenet_v2": (
        "MobileNetV2Config",
        {"depth_multiplier": 0.25, "output_stride": 8},
        "MobileNetV2ForSemanticSegmentation",
        "MobileNetV2ImageProcessor",
        {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
    ),
    "sapiens2": (
        "Sapiens2Config",
        {**VIT, "image_size": [96, 64], "num_register_tokens": 2, "num_key_value_attention_heads": 1}
        | {"head_config": {"upsample_out_channels": [16, 8], "conv_out_channels": [8]}},
        "Sapiens2ForSemanticSegmentation",
        "Sapiens2ImageProcessor",
        {},
    ),
    "tipsv2_dpt": (
        "Tipsv2DptConfig",
        {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}
        | {
            "backbone_config": {
                "model_type": "tipsv2_vision_model",
                **VIT,
                "image_size": 64,
                "out_indices": [1, 2, 3, 4],
            }
            | {"reshape_hidden_states": False}
        },
        "Tipsv2DptForSemanticSegmentation",
        "Tipsv2DptImageProcessor",
        {},
    ),
    "mask2former": (
        "Mask2FormerConfig",
        {**DETR, "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
        | {"encoder_layers": 1, "decoder_layers": 2, "dim_feedforward": 16, "backbone_config": SWIN},
        "Mask2FormerForUniversalSegmentation",
        "Mask2FormerImageProcessor",
        {"size_divisor": 32},
    ),
    "maskformer": (
        "MaskFormerConfig",
        {"fpn_feature_size": 32, "mask_feature_size": 32, "backbone_config": SWIN}
        | {
            "decoder_config": {"model_type": "detr", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
            | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
            | {"encoder_ffn_dim": 16, "num_queries": 6}
        },
        "MaskFormerForInstanceSegmentation",
        "MaskFormerImageProcessor",
        {"size_divisor": 32},
    ),
    "oneformer": (
        "OneFormerConfig",
        {**DETR, "conv_dim": 32, "mask_dim": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16, "encoder_layers": 1}
        | {"decoder_layers": 2, "dim_feedforward": 16, "query_dec_layers": 1, "backbone_config": SWIN}
        | {"text_encoder_width": 16, "text_encoder_num_layers": 1, "norm": "GN"},
        "OneFormerForUniversalSegmentation",
        "OneFormerImageProcessor",
        {},
    ),
}
MASKS = ("mask2former", "maskformer", "oneformer")
LOGITS = tuple(family for family in FAMILIES if family not in MASKS)


def configuration(family: str, **changes: Any) -> Any:
    """Return the tiny configuration of ``family`` with the five classes."""
    name, arguments, *_ = FAMILIES[family]
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {label: i for i, label in enumerate(CLASSES)}}
    return getattr(transformers, name)(**{**arguments, **labels, **changes})


def build(family: str, **changes: Any) -> Any:
    """Return the tiny network of ``family`` with random weights that no two classes or positions share."""
    torch.manual_seed(0)
    net = getattr(transformers, FAMILIES[family][2])(configuration(family, **changes))
    with torch.no_grad():
        for name, value in net.named_buffers():
            if name.endswith("running_mean"):
                value.uniform_(-0.1, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.8, 1.2)
        for name, value in net.named_parameters():
            if not value.any() or "position" in name:
                value.normal_(std=0.02)
    return net.eval()


def processor(family: str, **changes: Any) -> Any:
    """Return the image processor of ``family``."""
    *_, name, arguments = FAMILIES[family]
    return getattr(transformers, name)(**{**arguments, **changes})


@cache
def _saved(family: str) -> tuple[Any, TemporaryDirectory[str]]:
    net, folder = build(family), TemporaryDirectory()
    net.save_pretrained(folder.name)
    processor(family).save_pretrained(folder.name)
    return net, folder


def save(family: str, folder: Path, **changes: Any) -> Any:
    """Write a tiny repository of ``family`` into ``folder`` and return its network."""
    known, place = _saved(family)
    shutil.copytree(place.name, folder, dirs_exist_ok=True)
    if not changes:
        return copy.deepcopy(known)
    net = build(family, **changes)
    net.save_pretrained(folder)
    return net
