from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from segtailor.results.leaderboard import Leaderboard, summarise
from segtailor.results.model import read_comparison
from segtailor.results.statistics import bootstrap_difference, holm, t_test

from .folders import write_comparison, write_plan, write_run

FIVE = {
    "none": [0.700, 0.712, 0.695, 0.704, 0.709],
    "kd": [0.730, 0.742, 0.723, 0.735, 0.741],
    "cwd": [0.702, 0.709, 0.699, 0.700, 0.712],
    "kt": [0.745, 0.752, 0.733, 0.742, 0.756],
}


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Leaderboard:
    return summarise(read_comparison(write_comparison(tmp_path_factory.mktemp("five"), FIVE)), resamples=300)


def mious(board: Leaderboard, arm: str) -> np.ndarray:
    folder = board.comparison.folder
    return np.array([json.loads((folder / f"arms/{arm}/seed{s}/outcome.json").read_text())["miou"] for s in range(5)])


def test_every_figure_of_an_arm_by_numpy(five: Leaderboard) -> None:
    alone, own, result = mious(five, "none"), mious(five, "kd"), five["kd"]
    assert result.last is not None
    assert result.best is not None
    assert result.difference is not None
    assert result.over_seeds is not None
    assert (result.last.mean, result.last.std) == pytest.approx((own.mean(), own.std(ddof=1)))
    assert (result.best.mean, result.best.std) == pytest.approx((own.mean() + 0.01, own.std(ddof=1)))
    assert list(result.differences.values()) == pytest.approx(list(own - alone))
    half = 2.7764451052 * (own - alone).std(ddof=1) / math.sqrt(5)
    middle = (own - alone).mean()
    assert (result.over_seeds.low, result.over_seeds.high) == pytest.approx((middle - half, middle + half), abs=1e-9)
    assert result.gap_closed == pytest.approx(middle / (0.9 - alone.mean()))
    assert (result.seconds_shared, result.seconds_alone, result.stage_seconds) == (66.0, 81.0, 1.0)
    assert (result.peak_bytes, result.parameters) == (2**30 + 4, 1_000_000)


def test_arms_stand_by_their_mean(five: Leaderboard) -> None:
    means = [result.last.mean for result in five.arms if result.last]
    assert len(means) == 4
    assert means == sorted(means, reverse=True)


def test_interval_over_images_is_the_bootstrap_of_all_seeds(five: Leaderboard) -> None:
    runs = [[run.images for run in five.comparison.finished(arm).values() if run.images] for arm in ("kd", "none")]
    assert five["kd"].over_images == bootstrap_difference(runs[0], runs[1], resamples=300)


def test_p_values_are_corrected_for_the_arms_tested(five: Leaderboard) -> None:
    arms = ["kd", "cwd", "kt"]
    raw = [t_test(list(mious(five, arm) - mious(five, "none"))) for arm in arms]
    assert [five[arm].p for arm in arms] == pytest.approx(raw)
    assert [five[arm].p_holm for arm in arms] == pytest.approx(holm([p for p in raw if p is not None]))
    assert five.tested == 3
    assert (five["kd"].verdict, five["none"].verdict) == ("differs", "baseline")
    assert five["none"].p is None


def test_the_best_other_arm_is_the_runner_up_for_the_best(five: Leaderboard) -> None:
    assert (five["kt"].best_other, five["kd"].best_other, five["none"].best_other) == ("kd", "kt", "kt")
    assert list(five["kd"].to_best_other.values()) == pytest.approx(list(mious(five, "kd") - mious(five, "kt")))


def test_ranks_are_means_over_seeds(five: Leaderboard) -> None:
    scores = np.stack([mious(five, arm) for arm in FIVE])
    expected = [1 + np.mean([(scores[:, seed] > scores[arm, seed]).sum() for seed in range(5)]) for arm in range(4)]
    assert [five[arm].rank for arm in FIVE] == pytest.approx(expected)
    assert five.rank_seeds == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_fewer_than_five_seeds_never_differ(tmp_path: Path, seeds: int) -> None:
    """However large the difference."""
    board = summarise(read_comparison(write_comparison(tmp_path, {"none": [0.5] * seeds, "kd": [0.9] * seeds})), 100)
    result = board["kd"]
    assert (result.verdict, result.p, result.p_holm, board.tested) == ("too few seeds", None, None, 0)
    assert (result.over_seeds is None) == (seeds < 2)
    assert result.over_images is not None
    assert result.over_images.low > 0


def test_a_seed_counts_for_the_verdict_only_when_the_baseline_has_it_too(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"none": [0.7] * 4, "kd": [0.8] * 5})
    result = summarise(read_comparison(folder), 100)["kd"]
    assert len(result.scores) == 5
    assert sorted(result.differences) == [0, 1, 2, 3]
    assert result.verdict == "too few seeds"


def test_seeds_that_change_nothing_are_said(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"none": [0.7], "kd": [0.8]})
    write_plan(folder, ["none", "kd"], range(5))
    for arm in ("none", "kd"):
        first = folder / f"arms/{arm}/seed0"
        record = json.loads((first / "outcome.json").read_text())
        for seed in range(1, 5):
            copy = folder / f"arms/{arm}/seed{seed}"
            copy.mkdir()
            (copy / "outcome.json").write_text(json.dumps({**record, "seed": seed}))
            (copy / "confusions.npz").write_bytes((first / "confusions.npz").read_bytes())
    result = summarise(read_comparison(folder), 100)["kd"]
    assert (result.verdict, result.p_holm) == ("seeds change nothing", None)


def test_failed_and_missing_seeds_are_kept_apart(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"none": [0.7, 0.7, 0.71, 0.7], "kd": [0.8, 0.79, 0.8]})
    write_run(folder, "kd", 1, 0.8, status="failed", reason="out of memory")
    (folder / "arms/kd/seed2/outcome.json").write_text("")
    result = summarise(read_comparison(folder), 100)["kd"]
    assert result.failed == {1: "out of memory"}
    assert (list(result.scores), result.unfinished, result.damaged) == ([0], (3,), (2,))


def test_one_lucky_seed_is_not_the_best_other_arm(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"none": [0.7, 0.7], "kd": [0.75, 0.75], "kt": [0.95]})
    board = summarise(read_comparison(folder), 100)
    assert board["none"].best_other == "kd"
    assert board.rank_seeds == (0,)


def test_an_arm_without_a_result_stands_last_and_outside_the_ranks(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"kt": [], "none": [0.7, 0.7], "kd": [0.75, 0.75]})
    board = summarise(read_comparison(folder), 100)
    assert [result.arm for result in board.arms] == ["kd", "none", "kt"]
    assert (board["kt"].verdict, board["kt"].rank, board["kt"].last) == ("no result", None, None)
    assert (board["kd"].rank, board["none"].rank) == (1.0, 2.0)


def test_without_counts_of_images_there_is_no_interval_over_them(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"none": [0.7, 0.7], "kd": [0.75, 0.75], "kt": [0.8, 0.8]})
    (folder / "arms/kd/seed1/confusions.npz").unlink()
    board = summarise(read_comparison(folder), 100)
    assert board["kd"].over_images is None
    assert board["kd"].over_seeds is not None
    assert board["kt"].over_images is not None


def test_without_a_baseline_there_are_no_differences_to_it(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"kd": [0.7, 0.7], "kt": [0.75, 0.75]}, baseline=None)
    result = summarise(read_comparison(folder), 100)["kt"]
    assert (result.differences, result.difference, result.verdict) == ({}, None, "no baseline")
    assert result.best_other == "kd"


def test_without_a_teacher_no_gap_is_closed(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"none": [0.7], "kd": [0.75]}, teacher=None)
    assert summarise(read_comparison(folder), 100)["kd"].gap_closed is None


def test_a_cost_that_one_seed_lacks_is_not_given(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"none": [0.7, 0.7]})
    write_run(folder, "none", 1, 0.7, teacher_seconds=None)
    result = summarise(read_comparison(folder), 100)["none"]
    assert (result.seconds_shared, result.seconds_alone) == (None, 81.0)


def test_nothing_finished_yet(tmp_path: Path) -> None:
    write_plan(tmp_path, ["none", "kd"], [0, 1])
    board = summarise(read_comparison(tmp_path), 100)
    assert [result.verdict for result in board.arms] == ["no result", "no result"]
    assert board.rank_seeds == ()
