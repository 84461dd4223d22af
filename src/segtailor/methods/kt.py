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
    published_contrast,
    published_matching,
    published_terms,
    tailored_map,
)
from segtailor.methods.base import Channels, Method, MethodOptions, VariantOptions, option, read_tap, width_of
from segtailor.methods.stagewise import common_taps
from segtailor.models.network import SegOutput

DECODER = "decoder"
ALL = "all"
CODE = "KT's code"
UNTUNED = f"our choice, not tuned; published: {CODE}"
CHOSEN = f"our choice, on CamVid's dev split (docs/study.md); published: {CODE}"


class KnowledgeTailoringOptions(VariantOptions):
    """Options of ``kt``."""

    retired: ClassVar = {
        "recombination": {
            "trained": "this is the method `stagewise` now; write method: stagewise, its options kd, temperature, "
            "regression (was ft) and taps (was feature_taps)",
            "": "clean kt restructures features to principal components; leave it out",
        },
        "sharpness": {"": "clean kt restructures features to principal components; leave it out"},
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
    lt_all: NonNegativeFloat = option(0.1, "weight of logit tailoring over all pixels", published=1.0, source=UNTUNED)
    lt_class: NonNegativeFloat = option(
        0.03, "weight of logit tailoring inside each class", published=1.0, source=UNTUNED
    )
    lt_nonclass: NonNegativeFloat = option(
        0.03, "weight of logit tailoring outside each class", published=1.0, source=UNTUNED
    )
    ft: NonNegativeFloat = option(8.0, "weight of feature tailoring at each tap", published=1.0, source=CHOSEN)
    feature_taps: str | Annotated[list[str], Field(min_length=1)] = option(
        ALL,
        "`decoder` (the feature in front of the classifier), `stages.N`, a list of taps, or `all`: the "
        "decoder's feature and the stages, as far as both networks have them",
        published=DECODER,
        source=CHOSEN,
    )
    temperature: PositiveFloat = option(4.0, "divides maps before a softmax over space", source=CODE)
    tuning_point: Annotated[float, Field(ge=0, le=1)] = option(
        0.25,
        "fraction of the run at which all components take part; published: at which the teacher, not the student, "
        "begins to be recombined (1: never)",
        source=CODE,
    )
    contrastive: NonNegativeFloat = option(
        0.0, "weight of the triplet on tailored features (published)", published=1.0, source=CODE
    )
    margin: PositiveFloat = option(
        1.0, "margin of the triplet (published)", source="PyTorch's default, as in KT's code"
    )
    tailors: Literal["frozen", "trained"] = option(
        "frozen", "whether the published tailors learn with the student", source=CODE
    )
    seed: NonNegativeInt = option(
        0,
        "seed of the published tailors' first values, the same on every process",
        source="our choice; KT's code sets none",
    )

    @field_validator("contrastive", "margin", "tailors", "seed")
    @classmethod
    def _is_of_the_variant(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        if info.data.get("variant") == "clean" and value != cls.model_fields[name].default:
            raise ValueError("only KT's published computation has it; leave it out, or take variant: published")
        return value

    @property
    def tailors_logits(self) -> bool:
        """Whether any term of logit tailoring has a weight."""
        return bool(self.lt_all or self.lt_class or self.lt_nonclass)

    def taps(self, student_channels: Channels, teacher_channels: Channels) -> list[str]:
        """Return the chosen taps without repeats, in order; `all` is what both networks have, or the decoder."""
        chosen = self.feature_taps
        given = [chosen] if isinstance(chosen, str) and chosen != ALL else chosen
        found = common_taps(given, student_channels, teacher_channels)
        return list(dict.fromkeys(DECODER if tap == "feature" else tap for tap in found))


class KnowledgeTailoring(Method[KnowledgeTailoringOptions]):
    """Logits corrected by the labels, features restructured by the correlation of their channels, and both evolving.

    Terms ``kd``, ``kd_aux``, ``lt_all``, ``lt_class``, ``lt_nonclass``, ``ft``, ``contrastive``; with several taps
    ``ft.TAP`` and ``contrastive.TAP``. A term of weight 0 is left out; ``kd_aux`` also where a network has no auxiliary
    logits.

        kd, kd_aux  = chKL(s, t), KL between softmaxes over space, mean over channels and images
        tailored(t) = max(t, mean of t on class pixels where the teacher is right) inside class k,
                      min(t, mean of t on the others) outside, for each class's logit map
        lt_all      = chKL(s, tailored(t)); lt_class, lt_nonclass: the same inside and outside the class alone

    ``clean`` restructures the teacher's features to the student's width and tailors the student to them: the targets
    are the teacher's principal components, eigenvectors of the correlation between its channels over the first 64
    steps, and a 1x1 convolution P that learns takes the student to them. First 8 components take part, all from the
    tuning point on. Void is left out, and only the teacher's logits are tailored.

        ft          = sum of shares_i (1 - corr(P s, component i)), shares the components' part of the variance

    ``published`` computes what the public code computes: all terms at the decoder's feature, the student recombined
    first, the teacher from the tuning point on, tailors that never learn.

        ft          = chKL(tailor(corr(t, s) s), t) before the tuning point, chKL(s, tailor(corr(s, t) t)) after it
        contrastive = relu(|anchor(s) - tailor(R .)| - |anchor(s) - tailor((1 - R) .)| + margin), R = corr

    - Extra modules: a 1x1 convolution per tap; as published two tailors of three 1x1 convolutions and a 1x1 projector
    - Published figures: DeepLabV3-R101 to DeepLabV3-R18 and PSPNet-R18 (KT's README; best of 50 validations):
      Cityscapes 77.98, 76.49; VOC 76.49, 75.52; ADE20K 35.64, 35.77; to DeepLabV3-MobileNetV2: Cityscapes 76.17. Ours,
      CamVid val, five seeds: published 41.8, the student alone 39.6 (docs/study.md)
    - Limitations: teachers without a feature, with which `ft: 0` leaves the logits; a teacher whose stages mean
      something else than the student's (then `feature_taps: decoder`); data without labels (then `lt_all: 0`,
      `lt_class: 0`, `lt_nonclass: 0`); as published also very short trainings, where the late phase has no time
    - Source: Knowledge Tailoring, Pattern Recognition 2025, doi 10.1016/j.patcog.2025.112399
    """

    name = "kt"
    summary = "Knowledge Tailoring: logits corrected by the labels, features restructured by channel correlation"
    channel_alignment = "a trained 1x1 convolution takes the student to the teacher's principal components"

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        self.tailoring = nn.ModuleDict()
        self.tap_names: dict[str, str] = {}
        if options.ft or options.contrastive:
            for index, tap in enumerate(options.taps(student, teacher)):
                own, guide = _tap_width(student, tap, "student"), _tap_width(teacher, tap, "teacher")
                self.tailoring[_key(tap)] = (
                    Components(own, guide)
                    if options.clean
                    else FeatureTailoring(own, guide, options.tailors == "trained", options.seed + index)
                )
                self.tap_names[tap] = options.feature_tap if tap == DECODER else tap
        tailored = options.tailors_logits
        taps = {"logits": options.kd or tailored, "aux_logits": options.kd_aux, "feature": DECODER in self.tap_names}
        self.inputs = frozenset(self.tap_names.values()) | {tap for tap, needed in taps.items() if needed}
        if tailored:
            self.labels = "classes"
        else:
            self.labels = "ignore_mask" if options.clean else "unused"
        self.sparse_gradients = options.tailors == "trained" and bool(self.tap_names)
        if not options.clean:
            self.channel_alignment = "channels are recombined by their correlation"

    @classmethod
    def altered_logits(cls, options: MethodOptions) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Return the tailoring of logits; None where no term of it has a weight."""
        assert isinstance(options, KnowledgeTailoringOptions)
        return partial(tailored_map, published=not options.clean) if options.tailors_logits else None

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0."""
        terms = self._kd(student, teacher, target) | self._logit_tailoring(student, teacher, target)
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

    def _logit_tailoring(self, student: SegOutput, teacher: SegOutput, target: Tensor) -> dict[str, Tensor]:
        options, own = self.options, student.logits
        if not options.tailors_logits:
            return {}
        weights = {"lt_all": options.lt_all, "lt_class": options.lt_class, "lt_nonclass": options.lt_nonclass}
        guide = to_grid(teacher.logits, own.shape[-2:])
        compute = clean_terms if options.clean else published_terms
        values = recomputed(compute, own, guide, target, options.temperature)
        return {name: weight * value for (name, weight), value in zip(weights.items(), values, strict=True) if weight}

    def _feature_tailoring(
        self, student: SegOutput, teacher: SegOutput, target: Tensor, tap: str, step: Step
    ) -> dict[str, Tensor]:
        options, name, module, values = self.options, self.tap_names[tap], self.tailoring[_key(tap)], {}
        own, guide = read_tap(student, name, "student"), read_tap(teacher, name, "teacher")
        guide = guide if guide.shape[-2:] == own.shape[-2:] else to_grid(guide, own.shape[-2:])
        # The last step's progress is 1, too: at 1 there is no late phase.
        progress, point = step.progress, options.tuning_point
        early = point == 1 or progress < point
        if isinstance(module, Components):
            grown = progress / point if progress < point else 1.0
            values["ft"] = options.ft * module(own, guide, valid_counts(target, own.shape[-2:]), grown, step)
        else:
            assert isinstance(module, FeatureTailoring)
            own, guide, tailor = full_precision(own), full_precision(guide), module.tailor(early)
            if options.ft:
                values["ft"] = options.ft * published_matching(own, guide, tailor, early, options.temperature)
            if options.contrastive:
                projector = module.projector(early)
                triplet = published_contrast(own, guide, projector, tailor, early, options.margin)
                values["contrastive"] = options.contrastive * triplet
        suffix = f".{tap}" if len(self.tap_names) > 1 else ""
        return {f"{term}{suffix}": value for term, value in values.items()}


def _key(tap: str) -> str:
    return tap.replace(".", "_")


def _tap_width(channels: Channels, tap: str, role: str) -> int:
    named = {DECODER if name == "feature" else name: width for name, width in channels.items()}
    return width_of(named, tap, role)
