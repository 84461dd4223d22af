"""The heads by name."""

from __future__ import annotations

from segtailor.models.heads.base import Head, HeadOutput
from segtailor.models.heads.deeplabv3 import DeepLabV3
from segtailor.models.heads.deeplabv3plus import DeepLabV3Plus
from segtailor.models.heads.fcn import FCN
from segtailor.models.heads.pspnet import PSPNet
from segtailor.models.heads.segformer import SegFormer

HEADS: dict[str, type[Head]] = {
    "deeplabv3": DeepLabV3,
    "deeplabv3plus": DeepLabV3Plus,
    "fcn": FCN,
    "pspnet": PSPNet,
    "segformer": SegFormer,
}

__all__ = ["FCN", "HEADS", "DeepLabV3", "DeepLabV3Plus", "Head", "HeadOutput", "PSPNet", "SegFormer"]
