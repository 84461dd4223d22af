"""What DiffKD does with one pair of taps: the student's map is denoised towards the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from segtailor.losses import recomputed
from segtailor.methods.diffusion.modules import AutoEncoder, BatchNorm, Denoiser, Kernel, NoiseAdapter
from segtailor.methods.diffusion.scheduler import (
    TIMES,
    Prediction,
    alpha_bars,
    chain_times,
    chain_times_from,
    denoise,
    noised,
    time_of,
)


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
