from __future__ import annotations

import pytest

from segtailor.report.read import Run, read_run
from segtailor.report.run_page import loss_charts, score_chart

from .runs import write_run


def test_score_chart_has_both_students_and_the_teachers_level(tmp_path):
    chart = score_chart(read_run(write_run(tmp_path / "run")))
    assert [line.role for line in chart.lines] == ["alone", "distilled"]
    assert chart.lines[1].points[-1] == (100.0, *[pytest.approx(50.0)] * 3)
    assert chart.levels[0].role == "teacher"
    assert "ends at 50.00 %" in chart.summary


def test_each_term_has_a_chart_with_one_common_axis(tmp_path):
    charts = loss_charts(read_run(write_run(tmp_path / "run")))
    assert [chart.title for chart in charts] == ["Loss, all terms", "task: cross-entropy", "kt.kd"]
    assert [len(chart.lines) for chart in charts] == [2, 2, 1]
    assert len({chart.x_range for chart in charts}) == 1


def test_averaged_weights_have_their_own_line():
    records = [
        {"kind": "evaluate", "step": 10, "miou": 0.5, "weights": "ema"},
        {"kind": "evaluate", "step": 10, "miou": 0.4, "weights": "student"},
    ]
    chart = score_chart(Run(folder=None, curves={"distilled": records}))
    assert {line.label for line in chart.lines} == {
        "Student distilled, averaged weights",
        "Student distilled, raw weights",
    }


def test_long_runs_are_thinned_and_keep_their_mean():
    records = [{"kind": "train", "step": step, "loss": float(step % 2)} for step in range(1, 10_001)]
    (chart,) = loss_charts(Run(folder=None, curves={"model": records}))
    points = chart.lines[0].points
    assert len(points) <= 300
    assert sum(y for _, y, _, _ in points) / len(points) == pytest.approx(0.5, abs=0.02)
