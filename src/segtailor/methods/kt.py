"""Knowledge Tailoring: the teacher's knowledge is cut to the student, in logits and in features."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from segtailor.losses import channel_kl, full_precision, recomputed, to_grid, valid_counts
from segtailor.methods.base import Channels, Method, MethodOptions, VariantOptions, read_tap, width_of
from segtailor.methods.tailoring import features_clean, features_published, logits
from segtailor.methods.tailoring.recombination import FeatureTailoring
from segtailor.models.output import SegOutput

DECODER = "decoder"
TUNED = "our choice, from short runs on toy; published: KT's code"


class KnowledgeTailoringOptions(VariantOptions):
    """Options of ``kt``."""

    sources: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("kd", "kd_aux", "lt_all", "lt_class", "lt_nonclass", "ft", "contrastive"), TUNED),
        "temperature": TUNED,
        "margin": "our choice, for vectors of unit norm; published: PyTorch's default",
        "tuning_point": TUNED,
        "tailors": "our choice; KT's code never trains them",
        "seed": "our choice; KT's code sets none",
        "sharpness": "our choice",
        "feature_taps": "KT's code",
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
        }
    }
    kd: NonNegativeFloat = Field(6.0, description="weight of the channel-wise KL on logits")
    kd_aux: NonNegativeFloat = Field(2.4, description="weight of the same on auxiliary logits, where both have them")
    lt_all: NonNegativeFloat = Field(6.0, description="weight of logit tailoring over all pixels")
    lt_class: NonNegativeFloat = Field(0.1, description="weight of logit tailoring inside each class")
    lt_nonclass: NonNegativeFloat = Field(0.1, description="weight of logit tailoring outside each class")
    ft: NonNegativeFloat = Field(0.5, description="weight of feature tailoring")
    contrastive: NonNegativeFloat = Field(0.1, description="weight of the triplet on tailored features")
    temperature: PositiveFloat = Field(1.0, description="divides maps before a softmax over space")
    margin: PositiveFloat = Field(0.4, description="margin of the triplet")
    tuning_point: Annotated[float, Field(ge=0, le=1)] = Field(
        0.75, description="fraction of the run at which the teacher, not the student, begins to be recombined"
    )
    tailors: Literal["trained", "frozen"] = Field("trained", description="whether the tailors learn with the student")
    seed: NonNegativeInt = Field(0, description="seed of the tailors' first values, the same on every process")
    sharpness: PositiveFloat = Field(0.1, description="divides correlations before the softmax over channels (clean)")
    feature_taps: str | Annotated[list[str], Field(min_length=1)] = Field(
        DECODER, description="`decoder` (the feature in front of the classifier), `stages.N`, or a list of taps"
    )

    def taps(self) -> list[str]:
        """Return the chosen taps without repeats, in order."""
        chosen = [self.feature_taps] if isinstance(self.feature_taps, str) else self.feature_taps
        return list(dict.fromkeys(DECODER if tap == "feature" else tap for tap in chosen))


class KnowledgeTailoring(Method):
    """KD, logit tailoring, feature tailoring and a triplet, switching direction at the tuning point.

    Terms ``kd``, ``kd_aux``, ``lt_all``, ``lt_class``, ``lt_nonclass``, ``ft``, ``contrastive``; with several taps
    ``ft.TAP`` and ``contrastive.TAP``. A term of weight 0 is left out; ``kd_aux`` also where a network has no auxiliary
    logits. ``published`` computes what the public code computes; ``clean`` leaves void out, recombines standardised
    features by convex weights that carry no gradient, and trains the tailors. Its later tuning point and its weights
    come from short runs on the toy data, where feature tailoring helped while the student was recombined, and hurt
    when the teacher was from the first step.
    """

    name: ClassVar[str] = "kt"
    summary: ClassVar[str] = "Knowledge Tailoring: logits tailored by the labels, features by channel correlation"
    formula: ClassVar[str] = (
        "kd, kd_aux  = chKL(s, t), KL between softmaxes over space, mean over channels and images\n"
        "tailored(t) = max(t, mean of t on class pixels where the teacher is right) inside class k,\n"
        "              min(t, mean of t on the others) outside, for each class's logit map\n"
        "lt_all      = chKL(s, tailored(t)); lt_class, lt_nonclass: the same inside and outside the class alone\n"
        "R           = softmax_j(corr(channel i of one, channel j of the other) / sharpness)\n"
        "ft          = 1 - corr(tailor(R s), t) before the tuning point, 1 - corr(s, tailor(R t)) after it\n"
        "contrastive = relu(|anchor(s) - tailor(R .)| - |anchor(s) - tailor(R' .)| + margin), R' from 1 - corr"
    )
    source: ClassVar[str] = "Knowledge Tailoring, Pattern Recognition 2025, doi 10.1016/j.patcog.2025.112399"
    widths: ClassVar[str] = "channels are recombined by their correlation with the other network's; tailors act on them"
    extra_modules: ClassVar[str] = "per tap two tailors of three 1x1 convolutions, and a 1x1 projector for the triplet"
    figures: ClassVar[str] = (
        "Cityscapes val: DeepLabV3-R18 77.98, DeepLabV3-MobileNetV2 76.17, PSPNet-R18 76.49; VOC val 76.49 and 75.52 "
        "(R18, PSPNet-R18); ADE20K 35.64 (KT's README; best of 50 validations, one run)"
    )
    unsuited: ClassVar[str] = (
        "data without labels (logit tailoring reads them); teachers without a feature, with which `ft: 0` and "
        "`contrastive: 0` leave the logit terms; very short trainings, where its late phase has no time"
    )
    Options: ClassVar[type[MethodOptions]] = KnowledgeTailoringOptions
    phases = True
    options: KnowledgeTailoringOptions

    def __init__(
        self,
        num_classes: int,
        student_channels: Channels,
        teacher_channels: Channels,
        options: KnowledgeTailoringOptions,
    ) -> None:
        super().__init__(num_classes, student_channels, teacher_channels, options)
        self.tailoring = nn.ModuleDict()
        self.tap_names: dict[str, str] = {}
        if options.ft or options.contrastive:
            for index, tap in enumerate(options.taps()):
                own, guide = _tap_width(student_channels, tap, "student"), _tap_width(teacher_channels, tap, "teacher")
                trained = options.tailors == "trained"
                self.tailoring[tap.replace(".", "_")] = FeatureTailoring(own, guide, trained, options.seed + index)
                decoder = "feature" if options.variant == "clean" else "classifier_input"
                self.tap_names[tap] = decoder if tap == DECODER else tap
        reads = set(self.tap_names.values())
        self.reads = frozenset(reads | ({"feature"} if DECODER in self.tap_names else set()))
        self.void_only = not (options.lt_all or options.lt_class or options.lt_nonclass)
        labels = options.variant == "clean" or not self.void_only
        conditions = {"labels": labels, "aux_logits": options.kd_aux, "feature": DECODER in self.tap_names}
        self.needs = frozenset(name for name, needed in conditions.items() if needed)
        self.compares_logits = bool(options.kd or options.lt_all or options.lt_class or options.lt_nonclass)
        self.phases = options.tailors == "trained" and bool(self.tap_names)
        self.minimal_at_teacher = frozenset(
            {"kd", "kd_aux"} | ({"lt_class", "lt_nonclass"} if options.variant == "published" else set())
        )

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0."""
        terms = self._kd(student, teacher, target) | self._logit_tailoring(student, teacher, target)
        for tap in self.tap_names:
            suffix = f".{tap}" if len(self.tap_names) > 1 else ""
            features = self._feature_tailoring(student, teacher, target, tap, progress)
            terms |= {f"{term}{suffix}": value for term, value in features.items()}
        return terms

    def _valid(self, target: Tensor, size: tuple[int, int]) -> Tensor | None:
        return valid_counts(target, size) if self.options.variant == "clean" else None

    def _kd(self, student: SegOutput, teacher: SegOutput, target: Tensor) -> dict[str, Tensor]:
        pairs = {
            "kd": (self.options.kd, student.logits, teacher.logits),
            "kd_aux": (self.options.kd_aux, student.aux_logits, teacher.aux_logits),
        }
        terms = {}
        for name, (weight, own, guide) in pairs.items():
            if weight and own is not None and guide is not None:
                size = (own.shape[-2], own.shape[-1])
                valid = self._valid(target, size)
                multiplicity = None if valid is None else valid.unsqueeze(1)
                terms[name] = weight * channel_kl(own, to_grid(guide, size), self.options.temperature, multiplicity)
        return terms

    def _logit_tailoring(self, student: SegOutput, teacher: SegOutput, target: Tensor) -> dict[str, Tensor]:
        options = self.options
        weights = {"lt_all": options.lt_all, "lt_class": options.lt_class, "lt_nonclass": options.lt_nonclass}
        if not any(weights.values()):
            return {}
        compute = logits.clean_terms if options.variant == "clean" else logits.published_terms
        guide = to_grid(teacher.logits, (student.logits.shape[-2], student.logits.shape[-1]))
        values = recomputed(compute, student.logits, guide, target, options.temperature)
        return {name: weight * value for (name, weight), value in zip(weights.items(), values, strict=True) if weight}

    def _feature_tailoring(
        self, student: SegOutput, teacher: SegOutput, target: Tensor, tap: str, progress: float
    ) -> dict[str, Tensor]:
        options, name = self.options, self.tap_names[tap]
        own = full_precision(read_tap(student, name, "student"))
        size = (own.shape[-2], own.shape[-1])
        guide = to_grid(read_tap(teacher, name, "teacher"), size)
        module = self.tailoring[tap.replace(".", "_")]
        assert isinstance(module, FeatureTailoring)
        early = progress < options.tuning_point
        tailor, anchor = module.tailor(early), module.anchor(early)
        valid, terms = self._valid(target, size), {}
        if valid is None:
            if options.ft:
                terms["ft"] = features_published.matching(own, guide, tailor, early, options.temperature)
            if options.contrastive:
                terms["contrastive"] = features_published.contrast(own, guide, anchor, tailor, early, options.margin)
        else:
            mixing = features_clean.mixing_weights(own, guide, valid, early, options.sharpness)
            if options.ft:
                terms["ft"] = features_clean.matching(own, guide, valid, tailor, mixing[0], early)
            if options.contrastive:
                terms["contrastive"] = features_clean.contrast(
                    own, guide, valid, anchor, tailor, mixing, early, options.margin
                )
        return {name: getattr(options, name) * value for name, value in terms.items()}


def _tap_width(channels: Channels, tap: str, role: str) -> int:
    named = {DECODER if name == "feature" else name: width for name, width in channels.items()}
    return width_of(named, tap, role)
