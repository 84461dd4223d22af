"""Knowledge Tailoring: the teacher's knowledge is cut to the student, in logits and in features."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from segtailor.losses import channel_kl, full_precision, recomputed, to_grid, valid_counts
from segtailor.methods.base import Channels, Method, MethodOptions, read_tap, width_of
from segtailor.methods.tailoring import features_clean, features_published, logits
from segtailor.methods.tailoring.balance import GradientBalance, Part
from segtailor.methods.tailoring.boundary import boundary_band, weigh_cells
from segtailor.methods.tailoring.options import DECODER, KnowledgeTailoringOptions
from segtailor.methods.tailoring.recombination import FeatureTailoring
from segtailor.methods.tailoring.running import Agreement
from segtailor.models.output import SegOutput


class KnowledgeTailoring(Method):
    """KD, logit tailoring, feature tailoring and a triplet, switching direction at the tuning point.

    Terms ``kd``, ``kd_aux``, ``lt_all``, ``lt_class``, ``lt_nonclass``, ``ft``, ``contrastive``; with several taps
    ``ft.TAP`` and ``contrastive.TAP``. A term of weight 0 is left out; ``kd_aux`` also where a network has no auxiliary
    logits. ``published`` computes what the public code computes; ``clean`` leaves void out, recombines standardised
    features by convex weights that carry no gradient, and trains the tailors. Its later tuning point and its weights
    come from short runs on the toy data, where feature tailoring helped while the student was recombined, and hurt
    when the teacher was from the first step.

    1 - corr is half the mean squared distance of standardised channels, so ``ft`` is a standardised regression; with
    ``recombination: trained`` and ``tailors: none`` that of a linear projection, of the student early and of the
    teacher late. With ``switch: agreement`` both phases of ``ft`` and ``contrastive`` count, the late one
    by a, the early one by 1 - a, where a is the running mean (decay 0.99, from 0, over the training batches of all
    processes) of the early correlation. ``boundary`` lets pixels near another class count 1 + boundary times in every
    mean and softmax of ``kd``, ``kd_aux`` and the ``lt`` terms. With ``balance: gradient`` each term is multiplied by
    |gradient of the cross-entropy| / |gradient of the term|, a running mean of it (decay 0.9, each at most 1e4). Both
    are measured where the term compares: at the logits, the auxiliary logits (with their own cross-entropy) or the
    tapped feature. This cross-entropy takes the labels to the logits' grid, by counts. A tap that the logits do not
    depend on keeps the factor 1. Measuring costs another backward pass of each term, and of the part of the student
    between the tap and the logits.
    """

    name: ClassVar[str] = "kt"
    summary: ClassVar[str] = "Knowledge Tailoring: logits tailored by the labels, features by channel correlation"
    formula: ClassVar[str] = (
        "kd, kd_aux  = chKL(s, t), KL between softmaxes over space, mean over channels and images\n"
        "tailored(t) = max(t, mean of t on class pixels where the teacher is right) inside class k,\n"
        "              min(t, mean of t on the others) outside, for each class's logit map\n"
        "lt_all      = chKL(s, tailored(t)); lt_class, lt_nonclass: the same inside and outside the class alone\n"
        "R           = softmax_j(corr(channel i of one, channel j of the other) / sharpness), or a trained matrix\n"
        "ft          = 1 - corr(tailor(R s), t) before the tuning point, 1 - corr(s, tailor(R t)) after it\n"
        "contrastive = relu(|anchor(s) - tailor(R .)| - |anchor(s) - tailor(R' .)| + margin), R' from 1 - corr"
    )
    source: ClassVar[str] = "Knowledge Tailoring, Pattern Recognition 2025, doi 10.1016/j.patcog.2025.112399"
    widths: ClassVar[str] = "channels are recombined by their correlation with the other network's; tailors act on them"
    extra_modules: ClassVar[str] = (
        "per tap two tailors of three 1x1 convolutions, and a 1x1 projector for the triplet, or two 1x1 convolutions "
        "that recombine (recombination: trained)"
    )
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
        self.agreements = nn.ModuleDict()
        self.tap_names: dict[str, str] = {}
        if options.ft or options.contrastive:
            for index, tap in enumerate(options.taps()):
                own, guide = _tap_width(student_channels, tap, "student"), _tap_width(teacher_channels, tap, "teacher")
                self.tailoring[_key(tap)] = FeatureTailoring(
                    own,
                    guide,
                    options.tailors != "frozen",
                    options.seed + index,
                    options.tailors != "none",
                    options.recombination == "trained",
                )
                if options.switch == "agreement":
                    self.agreements[_key(tap)] = Agreement()
                decoder = "feature" if options.variant == "clean" else "classifier_input"
                self.tap_names[tap] = decoder if tap == DECODER else tap
        reads = set(self.tap_names.values())
        self.reads = frozenset(reads | ({"feature"} if DECODER in self.tap_names else set()))
        self.balance = GradientBalance(self._term_names()) if options.balance == "gradient" else None
        tailored = bool(options.lt_all or options.lt_class or options.lt_nonclass)
        self.void_only = not (tailored or options.boundary or self.balance is not None)
        labels = options.variant == "clean" or tailored
        conditions = {"labels": labels, "aux_logits": options.kd_aux, "feature": DECODER in self.tap_names}
        self.needs = frozenset(name for name, needed in conditions.items() if needed)
        self.compares_logits = bool(options.kd or tailored)
        self.phases = any(parameter.requires_grad for parameter in self.tailoring.parameters())
        together = options.moments == "batch" and bool(self.tap_names)
        self.couples_images = self.balance is not None or len(self.agreements) > 0 or together
        minimal = {"kd", "kd_aux"} | ({"lt_class", "lt_nonclass"} if options.variant == "published" else set())
        self.minimal_at_teacher = frozenset(term for term in minimal if getattr(options, term))

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0."""
        options, band = self.options, None
        if options.boundary:
            band = boundary_band(target, self.num_classes, options.boundary_width)
        parts = self._kd(student, teacher, target, band) | self._logit_tailoring(student, teacher, target, band)
        for tap in self.tap_names:
            parts |= self._feature_tailoring(student, teacher, target, tap, progress)
        if self.balance is None:
            return {name: part.weight * part.value for name, part in parts.items()}
        if self.training and torch.is_grad_enabled():
            self.balance.measure(parts, target)
        return {name: part.weight * self.balance.factor(name) * part.value for name, part in parts.items()}

    def _term_names(self) -> list[str]:
        on_logits = ("kd", "kd_aux", "lt_all", "lt_class", "lt_nonclass")
        on_features = [self._named(term, tap) for tap in self.tap_names for term in ("ft", "contrastive")]
        return [*on_logits, *on_features]

    def _named(self, term: str, tap: str) -> str:
        return f"{term}.{tap}" if len(self.tap_names) > 1 else term

    def _kd(self, student: SegOutput, teacher: SegOutput, target: Tensor, band: Tensor | None) -> dict[str, Part]:
        options = self.options
        pairs = {
            "kd": (options.kd, student.logits, teacher.logits),
            "kd_aux": (options.kd_aux, student.aux_logits, teacher.aux_logits),
        }
        parts = {}
        for name, (weight, own, guide) in pairs.items():
            if weight and own is not None and guide is not None:
                size, multiplicity = (own.shape[-2], own.shape[-1]), None
                if options.variant == "clean":
                    multiplicity = weigh_cells(target, band, options.boundary, size).unsqueeze(1)
                value = channel_kl(own, to_grid(guide, size), options.temperature, multiplicity)
                parts[name] = Part(weight, value, own, own)
        return parts

    def _logit_tailoring(
        self, student: SegOutput, teacher: SegOutput, target: Tensor, band: Tensor | None
    ) -> dict[str, Part]:
        options, own = self.options, student.logits
        weights = {"lt_all": options.lt_all, "lt_class": options.lt_class, "lt_nonclass": options.lt_nonclass}
        if not any(weights.values()):
            return {}
        guide = to_grid(teacher.logits, (own.shape[-2], own.shape[-1]))
        if options.variant == "clean":
            values = recomputed(logits.clean_terms, own, guide, target, options.temperature, band, options.boundary)
        else:
            values = recomputed(logits.published_terms, own, guide, target, options.temperature)
        named = zip(weights.items(), values, strict=True)
        return {name: Part(weight, value, own, own) for (name, weight), value in named if weight}

    def _feature_tailoring(
        self, student: SegOutput, teacher: SegOutput, target: Tensor, tap: str, progress: float
    ) -> dict[str, Part]:
        options, name = self.options, self.tap_names[tap]
        place = read_tap(student, name, "student")
        own = full_precision(place)
        size = (own.shape[-2], own.shape[-1])
        guide = to_grid(read_tap(teacher, name, "teacher"), size)
        module, early = self.tailoring[_key(tap)], progress < options.tuning_point
        assert isinstance(module, FeatureTailoring)
        if options.variant == "published":
            values = self._published_features(own, guide, module, early)
        else:
            valid = valid_counts(target, size)
            if options.moments == "batch":
                own, guide, valid = features_clean.as_one_image(own, guide, valid)
            if options.switch == "agreement":
                values = self._mixed_features(own, guide, valid, module, tap)
            else:
                values = self._features(own, guide, valid, module, early)
        fade = 1.0 if options.ft_end == 1 else 1 + progress * (options.ft_end - 1)
        weights = {"ft": options.ft * fade, "contrastive": options.contrastive}
        return {
            self._named(term, tap): Part(weights[term], value, place, student.logits) for term, value in values.items()
        }

    def _published_features(
        self, own: Tensor, guide: Tensor, module: FeatureTailoring, early: bool
    ) -> dict[str, Tensor]:
        options, tailor, values = self.options, module.tailor(early), {}
        if options.ft:
            values["ft"] = features_published.matching(own, guide, tailor, early, options.temperature)
        if options.contrastive:
            anchor = module.anchor(early)
            values["contrastive"] = features_published.contrast(own, guide, anchor, tailor, early, options.margin)
        return values

    def _features(
        self, own: Tensor, guide: Tensor, valid: Tensor, module: FeatureTailoring, early: bool
    ) -> dict[str, Tensor]:
        options, values = self.options, {}
        tailor = module.tailor(early) if module.tailored else None
        if module.recombined:
            mixing = module.trained_mixing(early, len(own))
            return {"ft": features_clean.matching(own, guide, valid, tailor, mixing, early)}
        pair = features_clean.mixing_weights(own, guide, valid, early, options.sharpness)
        if options.ft:
            values["ft"] = features_clean.matching(own, guide, valid, tailor, pair[0], early)
        if options.contrastive:
            anchor = module.anchor(early)
            values["contrastive"] = features_clean.contrast(
                own, guide, valid, anchor, tailor, pair, early, options.margin
            )
        return values

    def _mixed_features(
        self, own: Tensor, guide: Tensor, valid: Tensor, module: FeatureTailoring, tap: str
    ) -> dict[str, Tensor]:
        early, late = (self._features(own, guide, valid, module, phase) for phase in (True, False))
        agreement = self.agreements[_key(tap)]
        assert isinstance(agreement, Agreement)
        mixed = {term: agreement.mix(early[term], late[term]) for term in early}
        if self.training and torch.is_grad_enabled():
            agreement.follow(early["ft"], valid)
        return mixed


def _key(tap: str) -> str:
    return tap.replace(".", "_")


def _tap_width(channels: Channels, tap: str, role: str) -> int:
    named = {DECODER if name == "feature" else name: width for name, width in channels.items()}
    return width_of(named, tap, role)
