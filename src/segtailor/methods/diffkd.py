"""DiffKD: the student is a noisy teacher, and a diffusion model trained on the teacher denoises it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn

from segtailor.losses import Step, pixel_mean, valid_counts
from segtailor.methods._diffusion import DISTANCES, DiffusedPair, PairSettings
from segtailor.methods.base import Channels, Method, VariantOptions, option, read_pair, widths_of
from segtailor.models.network import SegOutput

TAPS = {"logits": "logits", "aux": "aux_logits", "feature": "feature"}
"""What each pair of taps reads, by the option that weighs it."""
AUTHORS = "authors' classification code"
DERIVED = "reconstructed from code derived from the authors'"


class DiffKDOptions(VariantOptions):
    """Options of ``diffkd``."""

    logits: NonNegativeFloat = option(1.0, "weight of `kd`; 0 drops all terms on the logits", source=DERIVED)
    aux: NonNegativeFloat = option(
        0.4,
        "weight of `kd_aux`, where both networks have auxiliary logits; 0 drops all terms on them",
        source=f"{DERIVED}; 0.4 is DIST's",
    )
    feature: NonNegativeFloat = option(
        0.0,
        "weight of `kd_feature`; 0 drops all terms on the feature in front of the classifier",
        source=f"{DERIVED}, where it is optional",
    )
    distance: Literal["dist", "kl", "mse"] = option(
        "dist", "how denoised logits are compared; the feature by its squared error", source=DERIVED
    )
    ddim: NonNegativeFloat = option(1.0, "weight of the denoiser's own term; 0 turns it off", source=AUTHORS)
    rec: PositiveFloat = option(1.0, "weight of the auto-encoder's term", source=AUTHORS)
    steps: int = option(5, "denoising steps, gradient kept through all of them", ge=1, le=100, source=AUTHORS)
    kernel: Literal[1, 3] = option(
        3, "whether the denoiser sees neighboring positions (3) or one position (1)", source=DERIVED
    )
    mixing: Literal["linear", "variance_preserving"] = option(
        "variance_preserving",
        "noise mixed in as g s + (1 - g) e, or that over sqrt(g^2 + (1 - g)^2), as a chain expects it",
        published="linear",
        source="our choice; published: authors' classification code",
    )
    start: Literal["fixed", "from_noise"] = option(
        "fixed",
        "whether the chain starts at the same time always, or at the one that fits each image's g",
        source=AUTHORS,
    )
    denoiser_gradient: Literal["shared", "ddim_only"] = option(
        "shared", "whether `kd` trains the denoiser too, or its own term alone does", source=AUTHORS
    )
    encoder_width: PositiveInt | None = option(
        256, "width to which an auto-encoder brings the teacher's feature, at most its own; null: none", source=DERIVED
    )
    freeze_encoder_after: Annotated[float, Field(gt=0, le=1)] = option(
        1.0,
        "fraction of the run after which the auto-encoder is frozen",
        source="never, as in the authors' classification code",
    )

    @field_validator("denoiser_gradient")
    @classmethod
    def _somebody_trains_the_denoiser(cls, value: str, info: ValidationInfo) -> str:
        if value == "ddim_only" and info.data.get("ddim") == 0:
            raise ValueError("Input should be 'shared' where ddim is 0, or nothing trains the denoiser")
        return value


class DiffKD(Method[DiffKDOptions]):
    """The student's map, taken for the teacher's with noise in it, is denoised and then compared (Huang et al., 2023).

    Reconstructed: the official segmentation code is in no public repository. ``published`` has the parts of the
    authors' classification code at the settings of a third party's segmentation code; no published figure checks it.

    For each pair of taps a 1x1 convolution brings the student to the teacher's width, an adapter sets how much noise to
    mix in (g, one number for each image), a small network denoises in a few deterministic steps, and one more 1x1
    convolution refines. ``kd`` compares the result with the teacher: DIST on logits (or the KL over classes, or the
    squared error), the squared error on the feature. ``ddim`` teaches the denoiser alone to find the noise in the
    teacher's map; ``rec`` teaches alone the auto-encoder that narrows the teacher's feature. Terms on auxiliary logits
    end in ``_aux`` (left out where a network has none), those on the feature in ``_feature``.

    ``published`` counts void like any pixel, mixes linearly, so that the variance does not fit the chain's start, and
    reads the feature after dropout. ``clean`` zeroes void positions before any module mixes positions, leaves them out
    of the adapter's average and of every loss, keeps the variance, and reads the feature before dropout. Zeroed
    positions still count in the batch norms' statistics. With kernel 3 the adapter narrows by min(8, channels // 8); by
    8 in the authors' classification code, by 1 in the code derived from it.

        kd = d(P(chain(g f + (1 - g) e)), t), f = projected s, e noise, g learned, chain of DDIM steps, P refiner
        ddim = mean_x mean_c (D(sqrt(a) t + sqrt(1 - a) e, time) - e)^2, a of a random time, D the denoiser
        rec = mean_x mean_c (t - decoded(encoded(t)))^2; then t is encoded(t) in kd and ddim

    - Extra modules: for each pair projector, noise adapter, denoiser with a table of times, refiner; for a feature an
      auto-encoder
    - Published figures: Cityscapes val, DeepLabV3-R101 to R18: 77.78 (KT's README; from code that is not public)
    - Limitations: tiny batches of small crops, since its batch norms see one batch at a time; two classes, where the
      logits' denoiser is one channel wide inside and `dist` has no gradient within a pixel; where training time counts:
      every step runs each denoiser six times
    - Source: Huang et al., NeurIPS 2023 (arXiv 2305.15712); reconstructed, the official segmentation code is not public
    """

    name = "diffkd"
    summary = "DiffKD: the student's logits are denoised by a diffusion model of the teacher's"
    channel_alignment = "a trained 1x1 convolution lifts the student to the teacher's, or the auto-encoder's, width"
    sparse_gradients = True

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        settings = PairSettings(options.steps, options.kernel, options.mixing, options.start, options.denoiser_gradient)
        self.pairs = nn.ModuleDict()
        for key in ("logits", "aux"):
            if getattr(options, key):
                self.pairs[key] = DiffusedPair(self.num_classes, self.num_classes, settings)
        self.inputs = frozenset(TAPS[key] for key in self.pairs)
        if options.feature:
            self.pairs["feature"] = DiffusedPair(*widths_of(student, teacher), settings, options.encoder_width)
            self.inputs |= {"feature", options.feature_tap}
        self.labels = "ignore_mask" if options.clean and self.pairs else "unused"
        # A network may turn out to have no auxiliary logits; then that pair's parameters are never used.
        freezes = options.feature and options.encoder_width is not None and options.freeze_encoder_after < 1
        self.sparse_gradients = bool(options.aux or freezes)

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the terms of every pair that both networks have."""
        terms: dict[str, Tensor] = {}
        for key, pair in self.pairs.items():
            if key == "aux" and (student.aux_logits is None or teacher.aux_logits is None):
                continue
            tap = self.options.feature_tap if key == "feature" else TAPS[key]
            terms |= self._pair(key, pair, *read_pair(student, teacher, tap), target, step)
        return terms

    def _pair(
        self, key: str, pair: nn.Module, student: Tensor, teacher: Tensor, target: Tensor, step: Step
    ) -> dict[str, Tensor]:
        options, suffix = self.options, "" if key == "logits" else f"_{key}"
        counted = target if options.clean else None
        result = pair(
            student,
            teacher,
            None if counted is None else valid_counts(counted, student.shape[-2:]),
            train_denoiser=options.ddim > 0,
            train_encoder=options.freeze_encoder_after == 1 or step.progress <= options.freeze_encoder_after,
        )
        distance = DISTANCES["mse" if key == "feature" else options.distance]
        terms = {f"kd{suffix}": getattr(options, key) * distance(result.refined, result.goal, counted, step)}
        if result.ddim is not None:
            terms[f"ddim{suffix}"] = options.ddim * pixel_mean(result.ddim, counted, step)
        if result.rec is not None:
            terms[f"rec{suffix}"] = options.rec * pixel_mean(result.rec, counted, step)
        return terms
