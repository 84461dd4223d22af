"""DiffKD: the student is a noisy teacher, and a diffusion model trained on the teacher denoises it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.func import functional_call

from segtailor.losses import Step, pixel_kl, pixel_mean, recomputed, valid_counts
from segtailor.methods.base import Channels, Method, VariantOptions, option, read_pair, widths_of
from segtailor.methods.dist import correlation, intra_by_image, probabilities
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
        self.pairs = nn.ModuleDict()
        for key in ("logits", "aux"):
            if getattr(options, key):
                self.pairs[key] = DiffusedPair(self.num_classes, self.num_classes, options)
        self.inputs = frozenset(TAPS[key] for key in self.pairs)
        if options.feature:
            self.pairs["feature"] = DiffusedPair(*widths_of(student, teacher), options, options.encoder_width)
            self.inputs |= {"feature", options.feature_tap}
        self.labels = "ignore_mask" if options.clean and self.pairs else "unused"
        # A network may turn out to have no auxiliary logits; then that pair's parameters are never used.
        freezes = options.feature and options.encoder_width is not None and options.freeze_encoder_after < 1
        self.sparse_gradients = bool(options.aux or freezes)

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the terms of every pair that both networks have."""
        options, terms = self.options, dict[str, Tensor]()
        labels = target if options.clean else None
        for key, pair in self.pairs.items():
            if key == "aux" and (student.aux_logits is None or teacher.aux_logits is None):
                continue
            tap = options.feature_tap if key == "feature" else TAPS[key]
            own, guide = read_pair(student, teacher, tap)
            suffix = "" if key == "logits" else f"_{key}"
            learns = options.freeze_encoder_after == 1 or step.progress <= options.freeze_encoder_after
            result = pair(own, guide, None if labels is None else valid_counts(labels, own.shape[-2:]), learns)
            kind = "mse" if key == "feature" else options.distance
            terms[f"kd{suffix}"] = getattr(options, key) * distance(kind, result.refined, result.goal, labels, step)
            if result.ddim is not None:
                terms[f"ddim{suffix}"] = options.ddim * pixel_mean(result.ddim, labels, step)
            if result.rec is not None:
                terms[f"rec{suffix}"] = options.rec * pixel_mean(result.rec, labels, step)
        return terms


TIMES = 1000
Prediction = Callable[[Tensor, Tensor], Tensor]
"""Takes noisy maps (B,C,h,w) and the time of each (B,), returns the noise in them."""


def alpha_bars() -> Tensor:
    """Return alpha-bar of every time, the product of ``1 - beta`` up to it, beta linear: float64 (1000,).

    >>> [round(value, 6) for value in alpha_bars()[[400, 0]].tolist()]
    [0.193572, 0.9999]
    """
    return (1 - torch.linspace(1e-4, 0.02, TIMES, dtype=torch.float64)).cumprod(0)


def chain_times(steps: int) -> list[int]:
    """Return the times of a chain of ``steps`` steps: the last half of a grid of twice as many over all times.

    >>> chain_times(5)
    [400, 300, 200, 100, 0]
    """
    stride = TIMES // (2 * steps)
    return [stride * index for index in reversed(range(steps))]


def chain_times_from(start: Tensor, steps: int) -> Tensor:
    """Return ``steps`` evenly spaced times from each ``start`` (B,) down to 0: int64 (steps,B).

    A single step starts where it should and ends at the clean map.

    >>> chain_times_from(torch.tensor([400, 10]), 5).T.tolist()
    [[400, 300, 200, 100, 0], [10, 7, 5, 2, 0]]
    """
    if steps == 1:
        return start.unsqueeze(0)
    left = torch.arange(steps - 1, -1, -1, device=start.device).unsqueeze(1)
    return torch.div(start * left, steps - 1, rounding_mode="floor")


def time_of(alpha_bar: Tensor, table: Tensor) -> Tensor:
    """Return the first time at which ``table`` (T,) is no larger than each ``alpha_bar`` (B,), at most the last.

    >>> time_of(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.9, 0.6, 0.4, 0.1])).tolist()
    [0, 2, 3]
    """
    return (table > alpha_bar.unsqueeze(1)).sum(1).clamp(max=len(table) - 1)


def noised(clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return ``clean`` at the noise level ``alpha_bar``."""
    return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise


def ddim_step(noisy: Tensor, noise: Tensor, now: Tensor, after: Tensor) -> Tensor:
    """Take ``noisy`` from the level ``now`` to ``after``, both alpha-bar, with the ``noise`` predicted in it.

    >>> one = torch.tensor(1.0)
    >>> round(ddim_step(torch.tensor(2.0), one, torch.tensor(0.64), one).item(), 4)
    1.75
    """
    clean = (noisy - (1 - now).sqrt() * noise) / now.sqrt()
    return noised(clean, noise, after)


def denoise(noisy: Tensor, predict: Prediction, table: Tensor, times: Tensor) -> Tensor:
    """Take ``noisy`` (B,C,h,w) down the chain ``times`` (steps,B) to the clean map; gradient passes every step.

    ``table`` is alpha-bar of every time. Of each step only its input is kept for backward.
    """

    def step(noisy: Tensor, time: Tensor, now: Tensor, after: Tensor) -> Tensor:
        return ddim_step(noisy, predict(noisy, time), now, after)

    levels = table[times].to(noisy.dtype).view(*times.shape, 1, 1, 1)
    for index, time in enumerate(times):
        after = levels[index + 1] if index + 1 < len(times) else torch.ones_like(levels[index])
        noisy = recomputed(step, noisy, time, levels[index], after)
    return noisy


TIME_ROWS = 1280
"""Rows of the published table of times, of which the schedule's 1000 are read."""


class BatchNorm(nn.BatchNorm2d):
    """Batch norm by the statistics of the batch, which leaves a single position as it is instead of refusing it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the normalized maps (B,C,h,w), scaled and shifted."""
        if maps.numel() == maps.shape[1]:
            # One value for each channel has no spread: mean 0 and variance 1, as fresh running statistics.
            return maps * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return super().forward(maps)


def normed(before: int, after: int, kernel: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the size, and its batch norm."""
    return [nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False), BatchNorm(after)]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with batch norm around a narrower width, plus the input; no ReLU after the sum."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.layers = nn.Sequential(
            *normed(channels, inner), nn.ReLU(), *normed(inner, inner, 3), nn.ReLU(), *normed(inner, channels)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of the same shape (B,C,h,w)."""
        result: Tensor = maps + self.layers(maps)
        return result


class Denoiser(nn.Module):
    """Predicts the noise in maps (B,C,h,w) at the times (B,); a learned vector for the time is added to every position.

    ``kernel`` 3 sees each position's neighbors, 1 only the position.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.times = nn.Embedding(TIME_ROWS, channels)
        wide = 4 * channels
        if kernel == 3:
            self.layers = nn.Sequential(Bottleneck(channels), Bottleneck(channels), *normed(channels, channels))
        else:
            first = [*normed(channels, wide), nn.ReLU(), *normed(wide, channels)]
            self.layers = nn.Sequential(*first, *normed(channels, wide), nn.ReLU(), nn.Conv2d(wide, channels, 1))

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        """Return the predicted noise (B,C,h,w)."""
        result: Tensor = self.layers(noisy + self.times(time)[:, :, None, None])
        return result


class NoiseAdapter(nn.Module):
    """Predicts for each image how much of the student's map stays when noise is mixed in: gamma in (0,1)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.layers: nn.Module
        if kernel == 3:  # logits have too few channels for the published reduction of 8
            self.layers = Bottleneck(channels, max(1, min(8, channels // 8)))
        else:
            self.layers = nn.Sequential(*normed(channels, 2 * channels), nn.ReLU(), *normed(2 * channels, channels))
        self.gates = nn.Linear(channels, 2)

    def forward(self, maps: Tensor, valid: Tensor | None) -> Tensor:
        """Return gamma (B,) of ``maps`` (B,C,h,w), averaged over space; ``valid`` (B,h*w) weighs the positions."""
        seen: Tensor = self.layers(maps).flatten(2)
        if valid is None:
            pooled = seen.mean(2)
        else:
            pooled = (seen * valid.unsqueeze(1)).sum(2) / valid.sum(1, keepdim=True).clamp(min=1)
        gamma: Tensor = self.gates(pooled).softmax(1)[:, 0]
        return gamma


class AutoEncoder(nn.Module):
    """Linear at each position: the teacher's width to a narrower one, and back."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), BatchNorm(width))
        self.decoder = nn.Conv2d(width, channels, 1)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the code (B,width,h,w) of ``maps`` (B,C,h,w) and what is rebuilt from it."""
        code: Tensor = self.encoder(maps)
        rebuilt: Tensor = self.decoder(code)
        return code, rebuilt


def distance(kind: str, refined: Tensor, goal: Tensor, target: Tensor | None, step: Step) -> Tensor:
    """Return how far two maps (B,C,h,w) are apart.

    ``mse`` is the mean squared error, ``kl`` KL(goal || refined) over classes, pixel by pixel; ``dist`` the two Pearson
    distances of DIST, between and within classes, summed. With ``target`` the second is over one image each, as in the
    method ``dist``; without, over the batch.
    """
    if kind == "mse":
        return pixel_mean((refined - goal).square().mean(1), target, step)
    if kind == "kl":
        return pixel_kl(refined, goal, 1.0, target, step)
    valid = None if target is None else valid_counts(target, refined.shape[-2:])

    def compute(refined: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        own, guide = probabilities(refined), probabilities(goal)
        cells = 1 - correlation(own, guide, 1).view(len(refined), *refined.shape[2:])
        if valid is None:
            return cells, 1 - correlation(own, guide, (0, 2)).mean()
        return cells, intra_by_image(own, guide, valid).mean()

    cells, within = recomputed(compute, refined, goal)
    return pixel_mean(cells, target, step) + within


class PairResult(NamedTuple):
    """The denoised student ``refined`` and its ``goal`` (B,C,h,w), and errors of every position (B,h,w)."""

    refined: Tensor
    goal: Tensor
    ddim: Tensor | None
    rec: Tensor | None


class DiffusedPair(nn.Module):
    """Projector, noise adapter, denoiser, refiner and, where ``encoder_width`` is given, the teacher's auto-encoder."""

    alpha_bars: Tensor
    times: Tensor

    def __init__(
        self, student_width: int, teacher_width: int, options: DiffKDOptions, encoder_width: int | None = None
    ) -> None:
        super().__init__()
        self.options = options
        width = teacher_width if encoder_width is None else min(encoder_width, teacher_width)
        self.projector = nn.Conv2d(student_width, width, 1)
        self.adapter = NoiseAdapter(width, options.kernel)
        self.denoiser = Denoiser(width, options.kernel)
        self.refiner = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), BatchNorm(width))
        self.auto_encoder = None if encoder_width is None else AutoEncoder(teacher_width, width)
        self.register_buffer("alpha_bars", alpha_bars().float(), persistent=False)
        self.register_buffer("times", torch.tensor(chain_times(options.steps)), persistent=False)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        valid: Tensor | None,
        train_encoder: bool = True,
    ) -> PairResult:
        """Denoise ``student`` (B,C_s,h,w) towards the detached ``teacher`` (B,C_t,h,w).

        ``valid`` (B,h*w) counts each position's valid pixels; None means that all count. Void positions are zeroed
        before any module mixes positions, so that what they hold reaches nothing. ``ddim`` and ``rec`` are None where
        their part is not trained.
        """
        keep = None if valid is None else (valid > 0).view(-1, 1, *student.shape[2:])
        goal, rec = self._goal(_kept(teacher, keep), keep, train_encoder)
        lifted = _kept(self.projector(student), keep)
        noisy, times = self._mixed(lifted, self.adapter(lifted, valid))
        refined = self.refiner(denoise(noisy, self._prediction(), self.alpha_bars, times))
        return PairResult(refined, goal, self._ddim(goal) if self.options.ddim else None, rec)

    def _goal(self, teacher: Tensor, keep: Tensor | None, train_encoder: bool) -> tuple[Tensor, Tensor | None]:
        """Return what the student is denoised towards, a constant, and the auto-encoder's errors."""
        if self.auto_encoder is None:
            return teacher, None
        with torch.set_grad_enabled(train_encoder and torch.is_grad_enabled()):
            code, rebuilt = self.auto_encoder(teacher)
        rec = (teacher - rebuilt).square().mean(1) if train_encoder else None
        return _kept(code.detach(), keep), rec

    def _mixed(self, lifted: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Mix noise into ``lifted`` (B,C,h,w) and return it with the times of the chain (steps,B).

        The mixture's share of signal in power is that of a map at alpha-bar gamma^2 / (gamma^2 + (1 - gamma)^2).
        """
        options, share = self.options, gamma.view(-1, 1, 1, 1)
        power = share.square() + (1 - share).square()  # at least 1/2
        noisy = share * lifted + (1 - share) * torch.randn_like(lifted)
        if options.mixing == "variance_preserving":
            noisy = noisy * power.rsqrt()
        if options.start == "fixed":
            return noisy, self.times.unsqueeze(1).expand(-1, len(lifted))
        level = (share.square() / power).detach().flatten()
        return noisy, chain_times_from(time_of(level, self.alpha_bars), options.steps)

    def _prediction(self) -> Prediction:
        """Return the denoiser, its parameters constants where only its own term may train it."""
        if self.options.denoiser_gradient == "shared":
            return self.denoiser
        constants = {name: value.detach() for name, value in self.denoiser.named_parameters()}

        def predict(noisy: Tensor, time: Tensor) -> Tensor:
            result: Tensor = functional_call(self.denoiser, constants, (noisy, time))
            return result

        return predict

    def _ddim(self, goal: Tensor) -> Tensor:
        """Return the squared errors (B,h,w) of the noise predicted in the goal at a random time for each image."""
        noise = torch.randn_like(goal)
        time = torch.randint(0, TIMES, (len(goal),), device=goal.device)

        def errors(goal: Tensor, noise: Tensor, time: Tensor) -> Tensor:
            level = self.alpha_bars[time].view(-1, 1, 1, 1)
            predicted: Tensor = self.denoiser(noised(goal, noise, level), time)
            return (predicted - noise).square().mean(1)

        return recomputed(errors, goal, noise, time)


def _kept(maps: Tensor, keep: Tensor | None) -> Tensor:
    return maps if keep is None else torch.where(keep, maps, 0.0)
