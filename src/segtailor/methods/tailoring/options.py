"""Options of Knowledge Tailoring, what they are taken from, and which of them the published computation has."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationInfo,
    field_validator,
)

from segtailor.methods.base import Channels, VariantOptions

DECODER = "decoder"
ALL = "all"
CHOSEN = "our choice, on CamVid's dev split (docs/study.md); published: KT's code"
CLEAN_ONLY = {"tailors": ("none",), "recombination": ("trained",)}
"""Values that the published computation has nothing like."""


class KnowledgeTailoringOptions(VariantOptions):
    """Options of ``kt``."""

    sources: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("kd", "kd_aux", "lt_all", "lt_class", "lt_nonclass", "ft", "contrastive"), CHOSEN),
        "temperature": CHOSEN,
        "margin": "our choice, for vectors of unit norm; published: PyTorch's default",
        "tuning_point": CHOSEN,
        "tailors": CHOSEN,
        "seed": "our choice; KT's code sets none",
        "sharpness": "our choice",
        "feature_taps": CHOSEN,
        "recombination": f"{CHOSEN}; trained: as in feature regression (FitNet)",
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {
            "kd": 1.0,
            "kd_aux": 0.4,
            "lt_all": 1.0,
            "lt_class": 1.0,
            "lt_nonclass": 1.0,
            "ft": 1.0,
            "contrastive": 1.0,
            "temperature": 4.0,
            "margin": 1.0,
            "tuning_point": 0.25,
            "tailors": "frozen",
            "feature_taps": DECODER,
            "recombination": "correlation",
        }
    }
    kd: NonNegativeFloat = Field(
        1.0,
        description="weight of the channel-wise KL on logits; 0 leaves the tailored ones (lt_all) as their only goal",
    )
    kd_aux: NonNegativeFloat = Field(
        0.0, description="weight of the same on auxiliary logits, where both have them, whatever kd is"
    )
    lt_all: NonNegativeFloat = Field(0.0, description="weight of logit tailoring over all pixels")
    lt_class: NonNegativeFloat = Field(0.0, description="weight of logit tailoring inside each class")
    lt_nonclass: NonNegativeFloat = Field(0.0, description="weight of logit tailoring outside each class")
    ft: NonNegativeFloat = Field(8.0, description="weight of feature tailoring")
    contrastive: NonNegativeFloat = Field(
        0.0, description="weight of the triplet on tailored features; needs recombination: correlation"
    )
    temperature: PositiveFloat = Field(4.0, description="divides maps before a softmax over space")
    margin: PositiveFloat = Field(0.4, description="margin of the triplet")
    tuning_point: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="fraction of the run at which the teacher, not the student, begins to be recombined; 1: never"
    )
    tailors: Literal["trained", "frozen", "none"] = Field(
        "none", description="whether the tailors learn with the student; none (clean): channels are only recombined"
    )
    seed: NonNegativeInt = Field(0, description="seed of the tailors' first values, the same on every process")
    sharpness: PositiveFloat = Field(0.1, description="divides correlations before the softmax over channels (clean)")
    feature_taps: str | Annotated[list[str], Field(min_length=1)] = Field(
        ALL,
        description="`decoder` (the feature in front of the classifier), `stages.N`, a list of taps, or `all`: the "
        "decoder's feature and the stages, as far as both networks have them",
    )
    recombination: Literal["correlation", "trained"] = Field(
        "trained",
        validate_default=True,
        description="how channels are recombined (clean): by their correlation, or by a 1x1 convolution for each phase "
        "that learns with the student, which needs contrastive: 0",
    )

    @field_validator(*CLEAN_ONLY)
    @classmethod
    def _is_of_the_variant(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("variant") == "published" and value in CLEAN_ONLY[str(info.field_name)]:
            raise ValueError("KT's code has nothing like it; leave it out, or take variant: clean")
        return value

    @field_validator("recombination")
    @classmethod
    def _has_a_complement(cls, value: str, info: ValidationInfo) -> str:
        if value == "trained" and info.data.get("contrastive"):
            raise ValueError(
                "the triplet needs the correlation's complement, which a convolution lacks; set contrastive: 0, or "
                "recombination: correlation"
            )
        return value

    def taps(self, student_channels: Channels, teacher_channels: Channels) -> list[str]:
        """Return the chosen taps without repeats, in order; `all` is what both networks have, or the decoder."""
        if self.feature_taps == ALL:
            common = student_channels.keys() & teacher_channels.keys()
            stages = sorted(
                (tap for tap in common if tap.startswith("stages.")), key=lambda tap: int(tap.split(".")[1])
            )
            return [DECODER, *stages] if "feature" in common or not stages else stages
        chosen = [self.feature_taps] if isinstance(self.feature_taps, str) else self.feature_taps
        return list(dict.fromkeys(DECODER if tap == "feature" else tap for tap in chosen))
