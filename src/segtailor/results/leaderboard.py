"""Every arm's figures: what it gains over the student alone, how sure that is, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from segtailor.results.model import Comparison, Outcome
from segtailor.results.statistics import (
    MIN_SEEDS,
    RESAMPLES,
    ImageBootstrap,
    Interval,
    Spread,
    bootstrap_difference,
    gap_closed,
    holm,
    paired_differences,
    ranks,
    spread,
    t_interval,
    t_test,
    verdict,
)


@dataclass(frozen=True)
class ArmResult:
    """One arm over its finished seeds; scores and differences in [0, 1], of the last checkpoint unless named best.

    ``differences`` are to the baseline, ``to_best_other`` to the other arm of the highest mean, both seed by seed;
    ``over_seeds`` is the t interval of their mean, ``over_images`` the paired bootstrap of the images. ``p`` is the
    t test's value and ``p_holm`` the same corrected for all arms tested; both only from 5 paired seeds on.
    ``rank`` is the mean over the seeds that every arm with a result has finished. Times are means over seeds in
    seconds, ``peak_bytes`` is the highest of the seeds.
    """

    arm: str
    scores: dict[int, float]
    last: Spread | None
    best: Spread | None
    failed: dict[int, str] = field(default_factory=dict)
    unfinished: tuple[int, ...] = ()
    damaged: tuple[int, ...] = ()
    differences: dict[int, float] = field(default_factory=dict)
    difference: Spread | None = None
    over_seeds: Interval | None = None
    over_images: ImageBootstrap | None = None
    p: float | None = None
    p_holm: float | None = None
    verdict: str = "no result"
    rank: float | None = None
    gap_closed: float | None = None
    best_other: str | None = None
    to_best_other: dict[int, float] = field(default_factory=dict)
    seconds: float | None = None
    seconds_shared: float | None = None
    seconds_alone: float | None = None
    stage_seconds: float | None = None
    peak_bytes: int | None = None
    parameters: int | None = None
    multiply_adds: int | None = None

    @property
    def miou(self) -> float | None:
        """The mean of the last checkpoints' scores."""
        return self.last.mean if self.last else None

    @property
    def gain(self) -> float | None:
        """The mean of the differences to the baseline."""
        return self.difference.mean if self.difference else None

    @property
    def lead(self) -> float | None:
        """The mean of the differences to the best other arm."""
        values = self.to_best_other.values()
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Leaderboard:
    """All arms of a comparison, highest mean of the last checkpoints first, arms without a result at the end.

    ``tested`` counts the arms whose p values Holm's correction took together; ``rank_seeds`` are the seeds ranked.
    """

    comparison: Comparison
    arms: tuple[ArmResult, ...]
    tested: int
    rank_seeds: tuple[int, ...]

    def __getitem__(self, arm: str) -> ArmResult:
        """Return the result of the arm of this name."""
        return next(result for result in self.arms if result.arm == arm)


def summarise(comparison: Comparison, resamples: int = RESAMPLES, seed: int = 0) -> Leaderboard:
    """Return the figures of every arm; ``resamples`` and ``seed`` are the bootstrap's."""
    runs = {arm: comparison.finished(arm) for arm in comparison.arms}
    results = {arm: _arm(comparison, arm, runs, resamples, seed) for arm in comparison.arms}
    p_values = {arm: result.p for arm, result in results.items() if result.p is not None}
    for arm, p in zip(p_values, holm(list(p_values.values())), strict=True):
        results[arm] = replace(results[arm], p_holm=p, verdict=verdict(len(results[arm].differences), p))
    ranked = [arm for arm in comparison.arms if runs[arm]]
    rank_seeds = tuple(seed for seed in comparison.seeds if ranked and all(seed in runs[arm] for arm in ranked))
    if rank_seeds:
        places = ranks([[runs[arm][seed].miou for arm in ranked] for seed in rank_seeds]).mean(0)
        for arm, place in zip(ranked, places, strict=True):
            results[arm] = replace(results[arm], rank=float(place))
    ordered = sorted(results.values(), key=lambda result: 1.0 if result.miou is None else -result.miou)
    return Leaderboard(comparison, tuple(ordered), len(p_values), rank_seeds)


def _arm(comparison: Comparison, arm: str, runs: dict[str, dict[int, Outcome]], resamples: int, seed: int) -> ArmResult:
    own, scores = list(runs[arm].values()), _scores(runs[arm])
    baseline, best_other = comparison.baseline, _best_other(arm, runs)
    alone = runs[baseline] if baseline is not None and arm != baseline and own else {}
    differences = paired_differences(scores, _scores(alone))
    values, teacher = list(differences.values()), comparison.teacher_miou
    outcome = "baseline" if arm == baseline else "no baseline" if baseline is None else verdict(len(values), None)
    return ArmResult(
        arm=arm,
        scores=scores,
        last=spread(list(scores.values())),
        best=spread([run.best_miou for run in own]),
        failed={run.seed: run.reason for run in comparison.with_status(arm, "failed")},
        unfinished=tuple(run.seed for run in comparison.with_status(arm, "running", "missing")),
        damaged=tuple(run.seed for run in comparison.with_status(arm, "damaged")),
        differences=differences,
        difference=spread(values),
        over_seeds=t_interval(values),
        over_images=_over_images(runs[arm], alone, resamples, seed),
        p=t_test(values) if len(values) >= MIN_SEEDS else None,
        verdict=outcome if own else "no result",
        gap_closed=gap_closed(scores, _scores(alone), teacher) if teacher is not None else None,
        best_other=best_other,
        to_best_other=paired_differences(scores, _scores(runs[best_other])) if best_other is not None else {},
        seconds=_mean([run.seconds for run in own]),
        seconds_shared=_mean([run.seconds_shared for run in own]),
        seconds_alone=_mean([run.seconds_alone for run in own]),
        stage_seconds=_mean([run.stage_seconds for run in own]),
        peak_bytes=max((run.peak_bytes for run in own if run.peak_bytes is not None), default=None),
        parameters=own[0].parameters if own else None,
        multiply_adds=own[0].multiply_adds if own else None,
    )


def _best_other(arm: str, runs: dict[str, dict[int, Outcome]]) -> str | None:
    """Return the other arm of the highest mean among those that share the most seeds with this one.

    The most seeds first: an arm with one lucky seed is not the best.
    """
    shared = {other: len(runs[arm].keys() & runs[other].keys()) for other in runs if other != arm}
    most = max(shared.values(), default=0)
    if most == 0:
        return None
    means = {other: np.mean(list(_scores(runs[other]).values())) for other, count in shared.items() if count == most}
    return max(means, key=means.__getitem__)


def _over_images(
    arm: dict[int, Outcome], alone: dict[int, Outcome], resamples: int, seed: int
) -> ImageBootstrap | None:
    """Bootstrap over all paired seeds; None when a run has no counts of each image, or only one image."""
    seeds = sorted(arm.keys() & alone.keys())
    ours, theirs = ([images for seed in seeds if (images := runs[seed].images)] for runs in (arm, alone))
    if not seeds or len(ours) < len(seeds) or len(theirs) < len(seeds) or ours[0].images < 2:
        return None
    return bootstrap_difference(ours, theirs, resamples, seed)


def _scores(runs: dict[int, Outcome]) -> dict[int, float]:
    return {seed: run.miou for seed, run in runs.items()}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None
