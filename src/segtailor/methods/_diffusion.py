"""The parts of DiffKD: the noise schedule and its steps, the networks, and what is done with one pair of taps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from segtailor.losses import Step, pixel_kl, pixel_mean, recomputed, valid_counts
from segtailor.methods.dist import correlation, intra_by_image, probabilities

TIMES = 1000
Prediction = Callable[[Tensor, Tensor], Tensor]
"""Takes noisy maps (B,C,h,w) and the time of each (B,), returns the noise in them."""


def alpha_bars(count: int = TIMES, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Return alpha-bar of every time, the product of ``1 - beta`` up to it, beta linear: float64 (count,).

    >>> [round(value, 6) for value in alpha_bars()[[400, 0]].tolist()]
    [0.193572, 0.9999]
    """
    return (1 - torch.linspace(first, last, count, dtype=torch.float64)).cumprod(0)


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


Kernel = Literal[1, 3]
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


def normed(before: int, after: int, kernel: Kernel = 1) -> list[nn.Module]:
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

    def __init__(self, channels: int, kernel: Kernel) -> None:
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

    def __init__(self, channels: int, kernel: Kernel) -> None:
        super().__init__()
        self.layers: nn.Module = (
            Bottleneck(channels, adapter_reduction(channels))
            if kernel == 3
            else nn.Sequential(*normed(channels, 2 * channels), nn.ReLU(), *normed(2 * channels, channels))
        )
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


def adapter_reduction(channels: int) -> int:
    """Return by how much the adapter narrows inside: 8, less where few channels, such as logits, come in.

    >>> [adapter_reduction(channels) for channels in (2, 19, 256)]
    [1, 2, 8]
    """
    return max(1, min(8, channels // 8))


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


def mse(refined: Tensor, goal: Tensor, target: Tensor | None, step: Step) -> Tensor:
    """Return the mean squared error of two maps (B,C,h,w)."""
    return pixel_mean((refined - goal).square().mean(1), target, step)


def kl(refined: Tensor, goal: Tensor, target: Tensor | None, step: Step) -> Tensor:
    """Return KL(goal || refined) over classes, pixel by pixel."""
    return pixel_kl(refined, goal, 1.0, target, step)


def dist(refined: Tensor, goal: Tensor, target: Tensor | None, step: Step) -> Tensor:
    """Return the two Pearson distances of DIST, between and within classes, summed.

    With ``target`` the second is over one image each, as in the method ``dist``; without, over the batch.
    """
    valid = None if target is None else valid_counts(target, refined.shape[-2:])

    def compute(refined: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        own, guide = probabilities(refined), probabilities(goal)
        cells = 1 - correlation(own, guide, 1).view(len(refined), *refined.shape[2:])
        if valid is None:
            return cells, 1 - correlation(own, guide, (0, 2)).mean()
        return cells, intra_by_image(own, guide, valid).mean()

    cells, within = recomputed(compute, refined, goal)
    return pixel_mean(cells, target, step) + within


DISTANCES: dict[str, Callable[[Tensor, Tensor, Tensor | None, Step], Tensor]] = {"dist": dist, "kl": kl, "mse": mse}


@dataclass(frozen=True)
class PairSettings:
    """How a pair is denoised; see the options of ``diffkd``."""

    steps: int = 5
    kernel: Kernel = 3
    mixing: Literal["linear", "variance_preserving"] = "linear"
    start: Literal["fixed", "from_noise"] = "fixed"
    denoiser_gradient: Literal["shared", "ddim_only"] = "shared"


@dataclass
class PairResult:
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
        self, student_width: int, teacher_width: int, settings: PairSettings, encoder_width: int | None = None
    ) -> None:
        super().__init__()
        self.settings = settings
        width = teacher_width if encoder_width is None else min(encoder_width, teacher_width)
        self.projector = nn.Conv2d(student_width, width, 1)
        self.adapter = NoiseAdapter(width, settings.kernel)
        self.denoiser = Denoiser(width, settings.kernel)
        self.refiner = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), BatchNorm(width))
        self.auto_encoder = None if encoder_width is None else AutoEncoder(teacher_width, width)
        self.register_buffer("alpha_bars", alpha_bars().float(), persistent=False)
        self.register_buffer("times", torch.tensor(chain_times(settings.steps)), persistent=False)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        valid: Tensor | None,
        train_denoiser: bool = True,
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
        return PairResult(refined, goal, self._ddim(goal) if train_denoiser else None, rec)

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
        settings, share = self.settings, gamma.view(-1, 1, 1, 1)
        power = share.square() + (1 - share).square()  # at least 1/2
        noisy = share * lifted + (1 - share) * torch.randn_like(lifted)
        if settings.mixing == "variance_preserving":
            noisy = noisy * power.rsqrt()
        if settings.start == "fixed":
            return noisy, self.times.unsqueeze(1).expand(-1, len(lifted))
        level = (share.square() / power).detach().flatten()
        return noisy, chain_times_from(time_of(level, self.alpha_bars), settings.steps)

    def _prediction(self) -> Prediction:
        """Return the denoiser, its parameters constants where only its own term may train it."""
        if self.settings.denoiser_gradient == "shared":
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
