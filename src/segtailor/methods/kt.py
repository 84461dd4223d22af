"""Knowledge Tailoring: the teacher's knowledge is cut to the student, in logits and in features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, ValidationInfo, field_validator
from torch import Tensor, nn

from segtailor.losses import Step, channel_kl, full_precision, recomputed, to_grid, valid_counts
from segtailor.methods._kt_terms import (
    Components,
    FeatureTailoring,
    clean_terms,
    contrast,
    exchanged,
    matching,
    mixing_weights,
    published_contrast,
    published_matching,
    published_terms,
    tailored_map,
)
from segtailor.methods.base import Channels, Method, MethodOptions, VariantOptions, option, read_tap, width_of
from segtailor.models.network import SegOutput

DECODER = "decoder"
ALL = "all"
CHOSEN = "our choice, on CamVid's dev split (docs/study.md); published: KT's code"
CLEAN_ONLY = {"tailors": ("none",), "restructuring": ("components",)}
"""Values that the published computation does not have."""


class KnowledgeTailoringOptions(VariantOptions):
    """Options of ``kt``."""

    retired: ClassVar = {
        "recombination": {
            "trained": "this is the method `stagewise` now; write method: stagewise, its options kd, temperature, "
            "regression (was ft) and taps (was feature_taps)",
            "": "kt always recombines by correlation; leave it out",
        }
    }

    kd: NonNegativeFloat = option(
        1.0,
        "weight of the channel-wise KL on logits; 0 leaves the tailored ones (lt_all) as their only goal",
        published=1.0,
        source=CHOSEN,
    )
    kd_aux: NonNegativeFloat = option(
        0.0,
        "weight of the same on auxiliary logits, where both have them, whatever kd is",
        published=0.4,
        source=CHOSEN,
    )
    lt_all: NonNegativeFloat = option(0.0, "weight of logit tailoring over all pixels", published=1.0, source=CHOSEN)
    lt_class: NonNegativeFloat = option(
        0.0, "weight of logit tailoring inside each class", published=1.0, source=CHOSEN
    )
    lt_nonclass: NonNegativeFloat = option(
        0.0, "weight of logit tailoring outside each class", published=1.0, source=CHOSEN
    )
    ft: NonNegativeFloat = option(8.0, "weight of feature tailoring", published=1.0, source=CHOSEN)
    contrastive: NonNegativeFloat = option(
        0.0,
        "weight of the triplet on tailored features; needs recombination: correlation",
        published=1.0,
        source=CHOSEN,
    )
    temperature: PositiveFloat = option(4.0, "divides maps before a softmax over space", published=4.0, source=CHOSEN)
    margin: PositiveFloat = option(
        0.4,
        "margin of the triplet",
        published=1.0,
        source="our choice, for vectors of unit norm; published: PyTorch's default",
    )
    tuning_point: Annotated[float, Field(ge=0, le=1)] = option(
        1.0,
        "fraction of the run at which the teacher, not the student, begins to be recombined; 1: never",
        published=0.25,
        source=CHOSEN,
    )
    tailors: Literal["trained", "frozen", "none"] = option(
        "none",
        "whether the tailors learn with the student; none (clean): channels are only recombined",
        published="frozen",
        source=CHOSEN,
    )
    seed: NonNegativeInt = option(
        0, "seed of the tailors' first values, the same on every process", source="our choice; KT's code sets none"
    )
    sharpness: PositiveFloat = option(
        0.1, "divides correlations before the softmax over channels (clean)", source="our choice"
    )
    feature_taps: str | Annotated[list[str], Field(min_length=1)] = option(
        ALL,
        "`decoder` (the feature in front of the classifier), `stages.N`, a list of taps, or `all`: the "
        "decoder's feature and the stages, as far as both networks have them",
        published=DECODER,
        source=CHOSEN,
    )
    lt_temperature: PositiveFloat | None = option(
        None, "the same for logit tailoring (clean); none: temperature", source="tried"
    )
    lt_target: Literal["tailored", "corrective"] = option(
        "tailored", "what is changed (clean): all of a class, or only what the teacher gets wrong", source="tried"
    )
    lt_cap: Annotated[float, Field(gt=0, lt=1)] | None = option(
        None, "quantile of the other pixels that caps them (clean); none: their mean", source="tried"
    )
    lt_weighting: Literal["classes", "roots", "pixels"] = option(
        "classes",
        "how classes count in lt_class (clean): equally, by the root of their pixels, or by these",
        source="tried",
    )
    lt_start: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0, "fraction of the run at which logit tailoring begins; it is at full weight a tenth later", source="tried"
    )
    exchange: NonNegativeFloat = option(
        0.0,
        "weight of a KL over classes to a teacher whose wrong pixels have the top logit and the label's exchanged",
        source="tried",
    )
    exchange_at: Literal["all", "edges"] = option(
        "all", "cells of the exchange: all, or those at edges", source="tried"
    )
    restructuring: Literal["correlation", "components"] = option(
        "correlation",
        "of features (clean): channels recombined by correlation, or the teacher's principal components, whose number "
        "grows over the run",
        source="tried",
    )

    @field_validator(*CLEAN_ONLY)
    @classmethod
    def _is_of_the_variant(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("variant") == "published" and value in CLEAN_ONLY[str(info.field_name)]:
            raise ValueError("KT's code has nothing like it; leave it out, or take variant: clean")
        return value

    @property
    def tailors_logits(self) -> bool:
        """Whether any term of logit tailoring has a weight."""
        return bool(self.lt_all or self.lt_class or self.lt_nonclass or self.exchange)

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


class KnowledgeTailoring(Method[KnowledgeTailoringOptions]):
    """KL on the logits and regression of the teacher's maps, at the decoder and all stages; or KT's terms as published.

    Terms ``kd``, ``kd_aux``, ``lt_all``, ``lt_class``, ``lt_nonclass``, ``ft``, ``contrastive``; with several taps
    ``ft.TAP`` and ``contrastive.TAP``. A term of weight 0 is left out; ``kd_aux`` also where a network has no auxiliary
    logits. ``published`` computes what the public code computes: all terms at the decoder's feature, the student
    recombined first, the teacher from the tuning point on, tailors that never learn. ``clean`` computes the same
    terms with void left out, on standardized features, and its defaults were the best under an equal recipe.

    1 - corr is half the mean squared distance of standardized channels, so ``ft`` is a standardized regression: by
    default of a linear projection of the student, at every tap, from the first step to the last. KT's other components
    did not help (docs/study.md) and are off by default: the tailored logits (by their weights), tailors
    (``tailors: trained``), ``recombination: correlation``, the late phase (``tuning_point`` below 1).

        kd, kd_aux  = chKL(s, t), KL between softmaxes over space, mean over channels and images
        tailored(t) = max(t, mean of t on class pixels where the teacher is right) inside class k,
                      min(t, mean of t on the others) outside, for each class's logit map
        lt_all      = chKL(s, tailored(t)); lt_class, lt_nonclass: the same inside and outside the class alone
        R           = softmax_j(corr(channel i of one, channel j of the other) / sharpness), or a trained matrix
        ft          = 1 - corr(tailor(R s), t) before the tuning point, 1 - corr(s, tailor(R t)) after it
        contrastive = relu(|anchor(s) - tailor(R .)| - |anchor(s) - tailor(R' .)| + margin), R' from 1 - corr

    - Extra modules: a 1x1 convolution per tap, and one back where there is a late phase; as published two tailors of
      three 1x1 convolutions and a 1x1 projector for the triplet
    - Published figures: DeepLabV3-R101 to DeepLabV3-R18 and PSPNet-R18 (KT's README; best of 50 validations):
      Cityscapes 77.98, 76.49; VOC 76.49, 75.52; ADE20K 35.64, 35.77; to DeepLabV3-MobileNetV2: Cityscapes 76.17. Ours,
      CamVid val, five seeds: clean 50.8, published 41.8, the student alone 39.6 (docs/study.md)
    - Limitations: teachers without a feature, with which `ft: 0` leaves the logits; a teacher whose stages mean
      something else than the student's (then `feature_taps: decoder`); as published also data without labels and very
      short trainings, where the late phase has no time
    - Source: Knowledge Tailoring, Pattern Recognition 2025, doi 10.1016/j.patcog.2025.112399
    """

    name = "kt"
    summary = "Knowledge Tailoring: the teacher's maps regressed at all stages; published: tailored logits"
    channel_alignment = "channels are recombined, by default by a trained 1x1 convolution"
    sparse_gradients = True

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        self.tailoring = nn.ModuleDict()
        late = options.tuning_point < 1
        self.tap_names: dict[str, str] = {}
        if options.ft or options.contrastive:
            for index, tap in enumerate(options.taps(student, teacher)):
                own, guide = _tap_width(student, tap, "student"), _tap_width(teacher, tap, "teacher")
                if options.restructuring == "components":
                    self.tailoring[_key(tap)] = Components(own, guide)
                    self.tap_names[tap] = options.feature_tap if tap == DECODER else tap
                    continue
                self.tailoring[_key(tap)] = FeatureTailoring(
                    own,
                    guide,
                    options.tailors != "frozen",
                    options.seed + index,
                    options.tailors != "none",
                    not options.clean or options.contrastive > 0,
                )
                self.tap_names[tap] = options.feature_tap if tap == DECODER else tap
        tailored = options.tailors_logits
        taps = {"logits": options.kd or tailored, "aux_logits": options.kd_aux, "feature": DECODER in self.tap_names}
        self.inputs = frozenset(self.tap_names.values()) | {tap for tap, needed in taps.items() if needed}
        if tailored:
            self.labels = "classes"
        else:
            self.labels = "ignore_mask" if options.clean else "unused"
        trained = any(parameter.requires_grad for parameter in self.tailoring.parameters())
        self.sparse_gradients = trained and (late or options.tailors == "trained")

    @classmethod
    def altered_logits(cls, options: MethodOptions) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Return the tailoring of logits; None where no term of it has a weight."""
        assert isinstance(options, KnowledgeTailoringOptions)
        return partial(tailored_map, published=not options.clean) if options.tailors_logits else None

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0."""
        terms = self._kd(student, teacher, target) | self._logit_tailoring(student, teacher, target, step.progress)
        for tap in self.tap_names:
            terms |= self._feature_tailoring(student, teacher, target, tap, step)
        return terms

    def _kd(self, student: SegOutput, teacher: SegOutput, target: Tensor) -> dict[str, Tensor]:
        options = self.options
        pairs = {
            "kd": (options.kd, student.logits, teacher.logits),
            "kd_aux": (options.kd_aux, student.aux_logits, teacher.aux_logits),
        }
        terms = {}
        for name, (weight, own, guide) in pairs.items():
            if weight and own is not None and guide is not None:
                size = own.shape[-2:]
                multiplicity = valid_counts(target, size).unsqueeze(1) if options.clean else None
                terms[name] = weight * channel_kl(own, to_grid(guide, size), options.temperature, multiplicity)
        return terms

    def _logit_tailoring(
        self, student: SegOutput, teacher: SegOutput, target: Tensor, progress: float
    ) -> dict[str, Tensor]:
        options, own = self.options, student.logits
        if not options.tailors_logits:
            return {}
        weights = {"lt_all": options.lt_all, "lt_class": options.lt_class, "lt_nonclass": options.lt_nonclass}
        guide = to_grid(teacher.logits, own.shape[-2:])
        compute = partial(clean_terms, options=options) if options.clean else published_terms
        temperature = options.lt_temperature or options.temperature
        values = recomputed(compute, own, guide, target, temperature)
        ramp = min(max((progress - options.lt_start) / 0.1, 0.0), 1.0) if options.lt_start else 1.0
        terms = {
            name: ramp * weight * value for (name, weight), value in zip(weights.items(), values, strict=True) if weight
        }
        if options.exchange:
            terms["exchange"] = (
                ramp * options.exchange * exchanged(own, guide, target, temperature, options.exchange_at)
            )
        return terms

    def _feature_tailoring(
        self, student: SegOutput, teacher: SegOutput, target: Tensor, tap: str, step: Step
    ) -> dict[str, Tensor]:
        options, name = self.options, self.tap_names[tap]
        own, guide = read_tap(student, name, "student"), read_tap(teacher, name, "teacher")
        size = own.shape[-2:]
        # The last step's progress is 1, too: at 1 there is no late phase.
        module, early = self.tailoring[_key(tap)], options.tuning_point == 1 or step.progress < options.tuning_point
        suffix = f".{tap}" if len(self.tap_names) > 1 else ""
        if isinstance(module, Components):
            value = module(
                own, to_grid(guide, size), valid_counts(target, size), _share(step.progress, options.tuning_point)
            )
            return {f"ft{suffix}": options.ft * value}
        assert isinstance(module, FeatureTailoring)
        if guide.shape[-2:] != size:
            guide = to_grid(guide, size)
        if options.clean:
            values = self._features(own, guide, valid_counts(target, size), module, early)
        else:
            values = self._published_features(full_precision(own), full_precision(guide), module, early)
        weights = {"ft": options.ft, "contrastive": options.contrastive}
        suffix = f".{tap}" if len(self.tap_names) > 1 else ""
        return {f"{term}{suffix}": weights[term] * value for term, value in values.items()}

    def _published_features(
        self, own: Tensor, guide: Tensor, module: FeatureTailoring, early: bool
    ) -> dict[str, Tensor]:
        options, tailor, values = self.options, module.tailor(early), {}
        if options.ft:
            values["ft"] = published_matching(own, guide, tailor, early, options.temperature)
        if options.contrastive:
            projector = module.projector(early)
            values["contrastive"] = published_contrast(own, guide, projector, tailor, early, options.margin)
        return values

    def _features(
        self, own: Tensor, guide: Tensor, valid: Tensor, module: FeatureTailoring, early: bool
    ) -> dict[str, Tensor]:
        options, values = self.options, {}
        tailor = module.tailor(early) if module.tailored else None
        own, guide = full_precision(own), full_precision(guide)
        pair = mixing_weights(own, guide, valid, early, options.sharpness)
        if options.ft:
            values["ft"] = matching(own, guide, valid, tailor, pair[0], early)
        if options.contrastive:
            projector = module.projector(early)
            values["contrastive"] = contrast(own, guide, valid, projector, tailor, pair, early, options.margin)
        return values


def _share(progress: float, whole: float) -> float:
    return progress / whole if progress < whole else 1.0


def _key(tap: str) -> str:
    return tap.replace(".", "_")


def _tap_width(channels: Channels, tap: str, role: str) -> int:
    named = {DECODER if name == "feature" else name: width for name, width in channels.items()}
    return width_of(named, tap, role)
