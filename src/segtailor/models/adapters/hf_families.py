"""What is known of each family of transformers' segmentation networks: where its maps lie, what sizes it takes."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

ONE_SIZE = ("data2vec-vision", "dpt")
"""Types that take one square size: their tokens are laid out as a square, or as one grid."""
ANY_SIZE = ("mobilenet_v2", "segformer")
COARSEST_STRIDE = 32
MOBILENET_V2_ENDS = (1, 4, 11, 15)
"""MobileNetV2's last layers of a width."""


class Places(NamedTuple):
    """Paths below the network: its encoder, its maps (finest first), the module of its auxiliary logits."""

    encoder: str | None
    stages: tuple[str, ...] | None
    aux: str | None


def one_size(config: Any) -> tuple[int, int] | None:
    """Return the one size (height, width) that the network takes, None where it takes others."""
    if config.model_type not in ONE_SIZE:
        return None
    size = config.image_size
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def size_multiple(config: Any) -> int:
    """Return the multiple that height and width must have.

    Plain transformers need whole patches; networks of a pyramid work on other sizes, but shift their maps.
    """
    if config.model_type in ANY_SIZE:
        return 1
    patch = getattr(getattr(config, "backbone_config", None) or config, "patch_size", None)
    patch = max(patch) if isinstance(patch, list | tuple) else patch
    return int(patch) if patch and patch > 4 else COARSEST_STRIDE


def places(net: nn.Module) -> Places:
    """Return where the maps of ``net`` lie; None where they are to be found by trial."""
    config: Any = net.config
    encoder, stages = _FINDERS.get(config.model_type, _found)(net, config)
    return Places(encoder, stages, _aux(net, config))


def _found(net: nn.Module, config: Any) -> tuple[str | None, tuple[str, ...] | None]:
    return None, None


def _segformer(net: nn.Module, config: Any) -> tuple[str, tuple[str, ...]]:
    return "segformer", tuple(f"segformer.stages.{index}" for index in range(config.num_encoder_blocks))


def _mobilevit(net: nn.Module, config: Any) -> tuple[str, tuple[str, ...]]:
    name = config.model_type
    return name, tuple(f"{name}.encoder.layer.{index}" for index in range(1, 5))


def _mobilenet_v2(net: nn.Module, config: Any) -> tuple[str, tuple[str, ...]]:
    return "mobilenet_v2", tuple(f"mobilenet_v2.layer.{index}" for index in MOBILENET_V2_ENDS)


def _beit(net: nn.Module, config: Any) -> tuple[str, tuple[str, ...]]:
    # its head counts the embedding as 1
    layers = [max(index - 2, 0) for index in config.out_indices]
    name, within = ("beit", "layers") if config.model_type == "beit" else ("data2vec_vision", "encoder.layer")
    return name, tuple(f"{name}.{within}.{layer}" for layer in layers)


def _dpt(net: nn.Module, config: Any) -> tuple[str, tuple[str, ...] | None]:
    if config.is_hybrid:
        return "dpt", None
    return "dpt", tuple(f"dpt.encoder.layer.{layer}" for layer in config.backbone_out_indices)


def _sapiens(net: nn.Module, config: Any) -> tuple[str, tuple[str, ...]]:
    depth = config.num_hidden_layers
    return "model", tuple(f"model.model.layer.{max(depth * part // 4 - 1, 0)}" for part in range(1, 5))


def _backbone(path: str) -> Any:
    def find(net: nn.Module, config: Any) -> tuple[str, tuple[str, ...] | None]:
        # what a backbone hands on goes through these
        norms = getattr(net.get_submodule(path), "hidden_states_norms", None)
        names = [name for name, _ in norms.named_children()] if norms is not None else []
        return path, tuple(f"{path}.hidden_states_norms.{name}" for name in names) or None

    return find


def _tipsv2(net: nn.Module, config: Any) -> tuple[str, tuple[str, ...]]:
    return "backbone", tuple(f"backbone.encoder.layer.{index - 1}" for index in config.backbone_config.out_indices)


def _aux(net: nn.Module, config: Any) -> str | None:
    head = getattr(net, "auxiliary_head", None)
    if head is None:
        return None
    convolutions = [
        name
        for name, module in head.named_modules()
        if isinstance(module, nn.Conv2d) and module.out_channels == config.num_labels
    ]
    return f"auxiliary_head.{convolutions[-1]}" if convolutions else None


_PIXELS = _backbone("model.pixel_level_module.encoder")
_FINDERS: dict[str, Any] = {
    "beit": _beit,
    "data2vec-vision": _beit,
    "dpt": _dpt,
    "mask2former": _PIXELS,
    "maskformer": _PIXELS,
    "mobilenet_v2": _mobilenet_v2,
    "mobilevit": _mobilevit,
    "mobilevitv2": _mobilevit,
    "oneformer": _PIXELS,
    "sapiens2": _sapiens,
    "segformer": _segformer,
    "tipsv2_dpt": _tipsv2,
    "upernet": _backbone("backbone"),
}
