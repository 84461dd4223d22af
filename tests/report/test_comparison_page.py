from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
import pytest

from segtailor.errors import SegtailorError
from segtailor.report import pictures, write_report
from segtailor.report.comparison_plots import (
    arm_series,
    arm_terms,
    cost_plots,
    rank_plot,
    score_curves,
    scores,
    term,
)
from segtailor.report.read import read_source
from segtailor.results.formatting import percent, points
from segtailor.results.leaderboard import summarise
from segtailor.results.model import read_comparison

from .comparisons import ARMS, CLASSES, FAILED, KT_TERMS, REASON, RUNNING, SEEDS, STEPS, WIDTHS, write_comparison
from .test_report import Page

SECTIONS = ("leaderboard", "ranks", "curves", "classes", "boundary", "costs", "terms", "tailored", "grid", "problems",
            "reading", "again")  # fmt: skip


@dataclass
class Cell:
    """A cell's figure, the small or unseen texts below it, and the attributes."""

    attributes: dict[str, str]
    text: str = ""
    below: list[str] = field(default_factory=list)


class Tables(HTMLParser):
    """Collects the rows of the tables of one class."""

    def __init__(self, html, name):
        super().__init__()
        self.name, self.tables = name, []
        self._inside, self._cell, self._below = False, None, ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "table":
            self._inside = values.get("class") == self.name
            self.tables += [[]] if self._inside else []
        if not self._inside:
            return
        if tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = Cell(values)
            self.tables[-1][-1].append(self._cell)
        elif tag == "small" or values.get("class") == "unseen":
            self._cell.below.append("")
            self._below = tag

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self._cell:
            self._cell.text = " ".join(self._cell.text.split())
            self._cell = None
        if tag == self._below:
            self._below = ""
        if tag == "table":
            self._inside = False

    def handle_data(self, data):
        if self._cell and self._below:
            self._cell.below[-1] += data
        elif self._cell:
            self._cell.text += data


@pytest.fixture(scope="module", params=[SEEDS, (0, 1, 2, 3, 4)], ids=["3 seeds", "5 seeds"])
def written(request, tmp_path_factory):
    folder = write_comparison(tmp_path_factory.mktemp("comparison"), request.param)
    return folder, write_report(folder).read_text(encoding="utf-8")


@pytest.fixture
def three(tmp_path):
    return write_comparison(tmp_path / "run", samples=1)


def _text(html):
    page = Page(html)
    assert page.open == []
    return re.sub(r"\s+", " ", page.text)


def _rows(html, table, number=0):
    return Tables(html, table).tables[number]


def _section(html, name):
    start = html.rindex("<section", 0, html.index(f'<h2 id="{name}">'))
    return html[start : html.index("</section>", start) + len("</section>")]


def test_the_page_is_one_small_file_with_every_section(written):
    folder, html = written
    page = Page(html)
    assert (folder / "report.html").stat().st_size < 5_000_000
    assert [link for link in page.outside if not link.startswith("#")] == []
    assert {link[1:] for link in page.outside} == set(SECTIONS)  # the list of contents, and the link to problems
    assert page.unnamed == []
    assert not re.search(r"url\(|@import|https?://", html)
    for name in SECTIONS:
        assert html.count(f' id="{name}"') == 1
    assert "<arms>" in _text(html)
    assert "<arms>" not in html


def test_every_figure_of_the_leaderboard_is_the_statistics(written):
    folder, html = written
    board = summarise(read_comparison(folder))
    head, *rows = _rows(html, "leaderboard")
    columns = [cell.text for cell in head]
    assert [row[0].text for row in rows] == [*(result.arm for result in board.arms), "Teacher"]
    for result, row in zip(board.arms, rows, strict=False):
        cells = dict(zip(columns, row, strict=True))
        assert cells["mIoU"].text == f"{percent(result.last.mean)} ± {percent(result.last.std)}"
        assert float(cells["mIoU"].attributes["data-sort"]) == pytest.approx(result.last.mean)
        each = [f"seed {seed}: {percent(score)}" for seed, score in result.scores.items()]
        assert ", ".join(each) in cells["mIoU"].below
        assert cells["Best mIoU"].text == percent(result.best.mean)
        assert cells["Rank"].text == f"{result.rank:.1f}"
        assert cells["Memory"].text == f"{result.peak_bytes / 2**30:.2f}"
        assert cells["Parameters"].text == "1.18 M"
        assert float(cells["Time"].attributes["data-sort"]) == pytest.approx(result.seconds_alone)
        if result.arm == "none":
            assert cells["Against none"].text == "baseline"
            continue
        assert cells["Against none"].text == points(result.difference.mean)
        over, images = result.over_seeds, result.over_images
        assert cells["Against none"].below == [
            f"seeds {points(over.low, 1)} to {points(over.high, 1)}",
            f"images {points(images.low, 1)} to {points(images.high, 1)}",
        ]
        assert cells["Gap closed"].text == f"{100 * result.gap_closed:.0f}".replace("-", "−")
        if board.tested and result.p_holm is not None:
            assert cells["p"].text == f"{result.p_holm:.3f}"
            assert cells["p"].below == [result.verdict]
    assert ("p" in columns) == bool(board.tested)
    own = dict(zip(columns, rows[0], strict=True))["Time"].below
    assert own[0].startswith("own 19 min 0")
    assert own[1].startswith("shared 19 min 2")


def test_below_five_seeds_nothing_is_called_a_difference(written):
    folder, html = written
    text = _text(html)
    board = summarise(read_comparison(folder))
    if len(board.comparison.seeds) < 5:
        assert "With 3 seeds nothing is tested" in text
        assert "differs" not in text
        assert "Too few seeds for a test: points, no findings." in text
    else:
        differ = [result for result in board.arms if result.verdict == "differs"]
        named = ", ".join(f"{result.arm} ({points(result.difference.mean)} points)" for result in differ)
        assert differ
        assert f"Above the student alone (p < 0.05 after Holm's correction, on these images): {named}." in text
        assert "Too few seeds for a test: maskd, skd." in text
    top = board.arms[0]
    assert f"The highest mean is that of {top.arm}: {percent(top.last.mean)} % mIoU" in text
    assert "As the highest of 11 arms, picked on the images reported here, it reads high." in text


def test_failed_and_running_runs_are_marked_with_their_reason(written):
    _, html = written
    arms = {row[0].text: row[0] for row in _rows(html, "leaderboard")[1:]}
    planned = 5 if "3, 4" in html.split("</ul>")[0] else 3
    below = arms[FAILED[0]].below
    assert below[0] == f"{planned - 1} of {planned} seeds"
    assert below[1].startswith(f"seed {FAILED[1]} failed: loss is not finite at step 412")
    assert arms[RUNNING[0]].below[1] == f"seed {RUNNING[1]} running, step 1,200"
    assert REASON in _text(_section(html, "problems"))
    assert f"{12 * planned - 2} of {12 * planned} runs are finished, 1 failed, 1 running" in _text(html)


def test_class_gains_are_means_over_the_seeds_of_both(written):
    folder, html = written
    comparison = read_comparison(folder)
    head, *rows = _rows(html, "heat")
    arms = [cell.text for cell in head[2:]]
    assert [row[0].text for row in rows] == CLASSES
    for place, row in enumerate(rows):
        for arm, cell in zip(arms, row[2:], strict=True):
            own, alone = comparison.finished(arm), comparison.finished("none")
            gain = np.mean([own[seed].iou[place] - alone[seed].iou[place] for seed in own])
            assert cell.text == points(gain, 1)
            assert ("gain" in cell.attributes["class"]) == (points(gain, 1)[0] == "+")
            assert ("loss" in cell.attributes["class"]) == (points(gain, 1)[0] == "−")


def test_gains_by_distance_come_from_the_boundary_scores(written):
    folder, html = written
    head, *rows = _rows(html, "heat", 1)
    assert [cell.text for cell in head] == ["Arm", "1", "2", "3–4", "5–8", "9–16", "17–32", "> 32"]
    assert head[1].below == [f"{100 / 28:.1f} % of pixels"]
    bands = len(WIDTHS) + 1
    outcomes = {
        arm: {path.parent.name: json.loads(path.read_text()) for path in (folder / "arms" / arm).glob("*/outcome.json")}
        for arm in ARMS
    }
    for row in rows[:-2]:
        own, alone = outcomes[row[0].text], outcomes["none"]
        both = [seed for seed in own if own[seed]["status"] == "finished"]
        for band in range(bands):
            gains = [
                own[seed]["boundary"]["distance"][band]["miou"] - alone[seed]["boundary"]["distance"][band]["miou"]
                for seed in both
            ]
            assert row[1 + band].text == points(float(np.mean(gains)), 1)
    assert [row[0].text for row in rows[-2:]] == ["none", "Teacher"]


def test_curves_are_means_over_finished_seeds_with_a_band_from_lowest_to_highest(three):
    source = read_source(three)
    found = arm_series(source, "kt-clean", scores)
    assert found.seeds == SEEDS
    each = [dict(scores(source.records["kt-clean"][seed])) for seed in SEEDS]
    for step, mean, low, high in found.points:
        values = [curve[step] for curve in each]
        assert (mean, low, high) == pytest.approx((np.mean(values), min(values), max(values)))
    assert found.points[-1][1] == pytest.approx(100 * source.board["kt-clean"].last.mean)
    assert arm_series(source, FAILED[0], scores).seeds == (0, 1)
    curves = score_curves(source)
    assert curves["together"].front == ("kt-clean", "none")
    assert [plot.title for plot in curves["each"]] == [result.arm for result in source.rivals]
    assert curves["table"]["columns"][0] == "kt-clean"
    assert len(curves["table"]["rows"]) == STEPS // 100
    assert {curve.label for curve in curves["together"].lines} >= {"skd (seeds 0, 1)", "kd"}


def test_an_arm_without_a_finished_run_is_shown_by_the_run_that_came_furthest(three):
    for seed, steps in ((0, 400), (1, 1200), (2, 800)):
        place = three / "arms/kd" / f"seed{seed}"
        head = {"version": 1, "arm": "kd", "seed": seed, "status": "failed", "reason": "stopped"}
        (place / "outcome.json").write_text(json.dumps(head))
        lines = (place / "metrics.jsonl").read_text().splitlines()
        lines = [line for line in lines if json.loads(line)["step"] <= steps]
        (place / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "train", "st')
    source = read_source(three)
    found = arm_series(source, "kd", scores)
    assert (found.seeds, found.points[-1][0]) == ((1,), 1200)
    curves = score_curves(source)
    assert "kd (seed 1, not finished)" in {curve.label for curve in curves["together"].lines}
    html = write_report(three).read_text()
    last = _rows(html, "leaderboard")[-2]
    assert last[0].text == "kd"
    assert {cell.text for cell in last[1:]} == {"–"}
    assert "kd" not in [cell.text for cell in _rows(html, "heat")[0]]


def test_ranks_are_those_of_the_leaderboard(written):
    folder, _ = written
    source = read_source(folder)
    plot = rank_plot(source)
    assert plot["seeds"] == list(source.board.rank_seeds)
    assert [float(row["mean"]) for row in plot["rows"]] == sorted(float(row["mean"]) for row in plot["rows"])
    for row in plot["rows"]:
        own = [float(rank) for rank in row["each"].split(", ")]
        assert np.mean(own) == pytest.approx(source.board[row["arm"]].rank)
        assert [at for at, _ in row["places"]] == pytest.approx([100 * (rank - 1) / 11 for rank in own])
        assert len(set(row["places"])) == len(own)  # none hides another


def test_scatter_plots_put_cost_to_the_right_and_gain_upwards(three):
    source = read_source(three)
    plots = cost_plots(source)
    assert [plot["axis"] for plot in plots] == ["minutes", "GiB"]
    for plot, cost in zip(plots, ("seconds_alone", "peak_bytes"), strict=True):
        costs = [getattr(source.board[dot.name], cost) for dot in plot["dots"]]
        gains = [source.board[dot.name].difference.mean if dot.name != "none" else 0.0 for dot in plot["dots"]]
        assert np.corrcoef(costs, [dot.x for dot in plot["dots"]])[0, 1] == pytest.approx(1)
        assert np.corrcoef(gains, [dot.y for dot in plot["dots"]])[0, 1] == pytest.approx(1)
        assert all(0 <= dot.low <= dot.y <= dot.high <= 100 and 0 <= dot.x <= 100 for dot in plot["dots"])
        assert next(dot.y for dot in plot["dots"] if dot.name == "none") == pytest.approx(plot["zero"])


def test_memory_that_was_not_measured_has_neither_column_nor_plot(three):
    for path in three.glob("arms/*/*/outcome.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "peak_bytes": None}))
    assert [plot["axis"] for plot in cost_plots(read_source(three))] == ["minutes"]
    html = write_report(three).read_text()
    assert "Memory" not in [cell.text for cell in _rows(html, "leaderboard")[0]]
    assert "memory" not in _text(html).lower()


def test_every_arm_with_a_method_has_plots_of_its_terms(three):
    source = read_source(three)
    found = {arm: (method, [plot.title for plot in plots]) for arm, method, plots in arm_terms(source)}
    assert list(found) == [result.arm for result in source.board.arms if result.arm != "none"]
    assert found["kt-clean"] == ("kt, clean", [f"kt.{name}" for name in KT_TERMS])
    assert found["cwd"] == ("", ["cwd.cwd"])
    values = arm_series(source, "kt-clean", term("kt.kd")).points
    first = [dict(term("kt.kd")(source.records["kt-clean"][seed]))[20] for seed in SEEDS]
    assert values[0] == pytest.approx((20, np.mean(first), min(first), max(first)))


def test_pictures_are_offered_in_the_order_of_the_leaderboard(three):
    html = write_report(three).read_text()
    grid = _section(html, "grid")
    left, right = re.findall(r"<select.*?</select>", grid)
    choices = re.findall(r'value="([^"]+)"', left)
    order = [result.arm for result in summarise(read_comparison(three)).arms]
    assert choices == ["image", "target", "teacher", *(f"arm:{arm}" for arm in order)]
    assert re.search(r'value="arm:none" selected', left)
    assert re.search(rf'value="arm:{order[0]}" selected', right)
    shown = re.findall(r'<img class="[^"]*" data-key="([^"]+)"[^>]*decoding="async">', grid)
    assert sorted(shown) == sorted(["arm:none", f"arm:{order[0]}"])
    assert f"val-0000: classes predicted by {order[0]}" in grid
    assert "12.0 % wrong" in grid
    assert html.count("the altered logits, class car") == 4  # two images, each named twice


def test_samples_that_do_not_fit_are_left_out_and_said(three, monkeypatch):
    write_comparison(three, samples=4)
    whole = len(write_report(three).read_text())
    monkeypatch.setattr(pictures, "SAMPLE_BUDGET", 40_000)
    html = write_report(three).read_text()
    assert len(html) < whole
    grid = _section(html, "grid")
    assert sum(map(len, re.findall(r'src="(data:[^"]+)"', grid))) <= 40_000
    kept = grid.count('<figure class="pair">')
    assert 0 < kept < 4
    assert f"{4 - kept} more are in" in _text(grid)


def test_missing_and_damaged_files_are_named_and_the_rest_is_shown(three):
    (three / "samples/00-target.png").write_bytes(b"damaged")
    (three / "tailoring/00-before.png").unlink()
    (three / "arms/kd/seed0/outcome.json").write_text("{")
    (three / "arms/at/seed1/metrics.jsonl").write_bytes(b"\xff\xfe")
    (three / "arms/cwd/seed2/confusions.npz").write_bytes(b"no zip")
    (three / "arms/dist/seed1/outcome.json").unlink()
    html = write_report(three).read_text()
    text = _text(_section(html, "problems"))
    for words in ("arms/kd/seed0: outcome.json is damaged", "arms/at/seed1: metrics.jsonl cannot be read",
                  "arms/cwd/seed2: confusions.npz", "arms/dist: no outcome.json for seed 1"):  # fmt: skip
        assert words in text
    arms = {row[0].text: row[0] for row in _rows(html, "leaderboard")[1:]}
    assert "seed 0 left out" in arms["kd"].below[1]
    assert arms["dist"].below[1] == "seed 1 not there yet"
    assert 'data-key="target"' not in html
    assert arms.keys() == {*ARMS, "Teacher"}


def test_a_comparison_that_has_only_begun_is_drawn(tmp_path):
    folder = write_comparison(tmp_path / "run", samples=0, tailoring=[])
    for path in folder.glob("arms/*/*/outcome.json"):
        path.unlink()
    html = write_report(folder).read_text()
    text = _text(html)
    assert "0 of 36 runs are finished, 36 running or waiting" in text
    assert "No arm beside the student alone has a result yet." in text
    assert "Validation curves" in text
    for part in ("ranks", "classes", "boundary", "costs", "grid", "tailored"):
        assert f'id="{part}"' not in html
    for path in folder.glob("arms/*/*/metrics.jsonl"):
        path.unlink()
    assert "Validation curves" not in write_report(folder).read_text()


def test_without_teacher_and_student_alone_gains_are_not_claimed(tmp_path):
    folder = write_comparison(tmp_path / "run", samples=0, teacher=None, baseline="absent")
    html = write_report(folder).read_text()
    text = _text(html)
    assert "The student alone is not among the arms, so the gains of the methods are unknown." in text
    columns = [cell.text for cell in _rows(html, "leaderboard")[0]]
    assert columns == ["Arm", "mIoU", "Best mIoU", "Rank", "Time", "Memory", "Parameters"]
    assert "baseline 'absent' is no arm" in text


def test_no_arm_above_the_student_alone_is_said(tmp_path):
    folder = write_comparison(tmp_path / "run", (4,), samples=0, arms=["none", "at"])
    text = _text(write_report(folder).read_text())
    assert summarise(read_comparison(folder))["at"].difference.mean < 0
    assert "With 1 seed nothing is tested" in text
    assert "No arm has a higher mean than the student alone" in text


def test_a_damaged_plan_is_an_error_and_leaves_the_earlier_report(three):
    (three / "report.html").write_text("earlier")
    (three / "comparison.json").write_text("{")
    with pytest.raises(SegtailorError, match=r"comparison\.json is damaged"):
        write_report(three)
    assert (three / "report.html").read_text() == "earlier"


def test_a_loss_that_became_infinite_does_not_break_the_curves(three):
    line = {"kind": "train", "step": STEPS + 20, "loss": float("nan"), "terms": {"kt.kd": float("inf")}}
    for seed in SEEDS:
        with (three / f"arms/kt-clean/seed{seed}/metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    html = write_report(three).read_text()
    assert not re.search(r'd="[^"]*(nan|inf)', html)
