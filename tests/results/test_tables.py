from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from segtailor.errors import SegtailorError
from segtailor.results.leaderboard import Leaderboard, summarise
from segtailor.results.model import read_comparison
from segtailor.results.tables import csv_table, latex_escape, latex_table, markdown_table, text_table, write_tables

from .folders import write_comparison, write_plan, write_run

TEXTS = [markdown_table, latex_table, text_table]


def board_of(folder: Path, qualities: dict[str, list[float]], **changes: object) -> Leaderboard:
    return summarise(read_comparison(write_comparison(folder, qualities, **changes)), resamples=100)


@pytest.fixture
def three(tmp_path: Path) -> Leaderboard:
    return board_of(tmp_path, {"none": [0.70, 0.71, 0.69], "kd": [0.75, 0.76, 0.73]})


@pytest.fixture
def five(tmp_path: Path) -> Leaderboard:
    return board_of(tmp_path, {"none": [0.70, 0.71, 0.69, 0.7, 0.72], "kd": [0.75, 0.76, 0.73, 0.76, 0.755]})


def unescaped(text: str) -> str:
    """Undo the formats' escapes, for looking at words."""
    return re.sub(r"\\([&%$#_{}<>*~|\[\]])", r"\1", text.replace("$\\pm$", "±"))


def markdown_cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("form", TEXTS)
def test_honest_lines_are_in_every_text(three: Leaderboard, form: object) -> None:
    text = unescaped(form(three))  # type: ignore[operator]
    for words in (
        "3 seeds (0, 1, 2), 2 arms",
        "none is a published figure",
        "No arm has 5 seeds in common with 'none'",
        "± is the sample standard deviation over seeds",
        "picked on the very images reported here",
        "it does not cover the chance of training",
        "too few seeds",
    ):
        assert words in text, words
    assert "differs" not in text


@pytest.mark.parametrize("form", TEXTS)
def test_with_five_seeds_the_test_is_told(five: Leaderboard, form: object) -> None:
    text = unescaped(form(five))  # type: ignore[operator]
    assert "corrected by Holm for 1 arm tested" in text
    assert "differs" in text
    assert "too few seeds" not in text


def test_markdown_rows_hold_the_figures(three: Leaderboard) -> None:
    rows = markdown_cells(markdown_table(three))
    heads, teacher, kd, none = rows[0], rows[2], rows[3], rows[4]
    assert len({len(row) for row in rows[:5]}) == 1
    assert (teacher[0], teacher[2]) == ("teacher", "90.00")
    result = three["kd"]
    assert result.last is not None
    assert result.difference is not None
    assert kd[:3] == ["kd", "3", f"{100 * result.last.mean:.2f} ± {100 * (result.last.std or 0):.2f}"]
    assert kd[heads.index("difference to none")] == f"{100 * result.difference.mean:+.2f}"
    assert kd[heads.index("each seed")] == ", ".join(f"{100 * value:+.2f}" for value in result.differences.values())
    assert none[heads.index("difference to none")] == "-"
    assert none[heads.index("verdict")] == "baseline"
    assert "p (Holm)" not in heads  # nothing was tested


def test_markdown_costs_stand_in_a_table_of_their_own(three: Leaderboard) -> None:
    rows = markdown_cells(markdown_table(three))[5:]
    assert rows[0][:4] == ["arm", "time, teacher shared", "time, alone", "own stages in it"]
    assert rows[2] == ["kd", "1 min 06 s", "1 min 21 s", "1 s", "1.00 GiB", "1.00 M", "2.00 G"]


def test_a_seed_without_a_pair_keeps_its_place(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"none": [0.7, 0.7], "kd": [0.75, 0.76]})
    write_run(folder, "kd", 0, 0.7, status="failed", reason="out of memory")
    text = markdown_table(summarise(read_comparison(folder), 100))
    rows = markdown_cells(text)
    kd = next(row for row in rows if row[0] == "kd")
    assert kd[1] == "1 of 2"
    assert re.fullmatch(r"-, \+\d\.\d\d", kd[rows[0].index("each seed")])
    assert "- kd, seed 0: failed: out of memory; not in the means" in text


def test_nothing_closed_has_no_minus(tmp_path: Path) -> None:
    board = board_of(tmp_path, {"none": [0.7], "kd": [0.75]})
    result = replace(board["kd"], gap_closed=-0.004)
    rows = markdown_cells(markdown_table(replace(board, arms=(result,))))
    assert rows[3][rows[0].index("gap closed")] == "0 %"


@pytest.mark.parametrize("form", TEXTS)
def test_problems_and_runs_still_going_are_listed(tmp_path: Path, form: object) -> None:
    folder = write_comparison(tmp_path, {"none": [0.7, 0.7], "kd": [0.75, 0.76]})
    write_run(folder, "kd", 0, 0.7, status="running")
    (folder / "arms/kd/seed1/confusions.npz").unlink()
    text = unescaped(form(summarise(read_comparison(folder), 100)))  # type: ignore[operator]
    assert "kd: not finished yet: seed 0" in text
    assert "arms/kd/seed1: no confusions.npz" in text


def test_markdown_names_cannot_break_the_table(tmp_path: Path) -> None:
    board = board_of(tmp_path, {"none": [0.7, 0.7], "a|b*c_d": [0.75, 0.76]}, name="x\ny")
    text = markdown_table(board)
    assert "### x y\n" in text
    assert any(row[0] == r"a\|b\*c\_d" for row in markdown_cells(text))
    assert len({len(row) for row in markdown_cells(text)[:5]}) == 1


def test_latex_is_booktabs_with_its_specials_escaped(tmp_path: Path) -> None:
    board = board_of(tmp_path, {"none": [0.75, 0.76], r"kd_50%&{#$^~\x": [0.7, 0.7]})
    text = latex_table(board)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert all(text.count(rule) == 2 for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert r"kd\_50\%\&\{\#\$\textasciicircum{}\textasciitilde{}\textbackslash{}x & 2 & " in text
    assert "$-$" in text
    assert re.search(r"(?<![\\$])-\d", text) is None  # no figure with a hyphen for a minus
    rows = [
        line for line in text.splitlines() if line.endswith(r" \\") and " & " in line and not line.startswith("arm")
    ]
    widths = [len(re.split(r"(?<!\\)&", row)) for row in rows]
    declared = [1 + len(found) for found in re.findall(r"\\begin\{tabular\}\{l(r+)\}", text)]
    assert widths == [declared[0]] * 3 + [declared[1]] * 2  # the teacher has no cost here
    assert text.isascii()


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b & 5 %", r"a\_b \& 5 \%"),
        ("-0.50 to -0.10", "$-$0.50 to $-$0.10"),
        ("resnet-18", "resnet-18"),
        ("1 ± 2", r"1 $\pm$ 2"),
        ("[x] < y", r"{[}x] \textless{} y"),
        ("a\nb", "a b"),
    ],
)
def test_latex_escapes(text: str, escaped: str) -> None:
    assert latex_escape(text) == escaped


def test_csv_holds_raw_numbers(five: Leaderboard) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_table(five))))
    assert [(row["role"], row["arm"]) for row in rows] == [("teacher", "teacher"), ("arm", "kd"), ("baseline", "none")]
    kd, result = rows[1], five["kd"]
    assert result.last is not None
    assert result.over_images is not None
    assert float(kd["miou_last_mean"]) == pytest.approx(result.last.mean, abs=1e-7)
    assert float(kd["p_t_over_seeds_holm"]) == pytest.approx(result.p_holm, rel=1e-6)
    assert float(kd["bootstrap95_over_images_only_low"]) == pytest.approx(result.over_images.low, abs=1e-7)
    by_seed = dict(pair.split(":") for pair in kd["difference_by_seed"].split())
    assert {int(seed): float(value) for seed, value in by_seed.items()} == pytest.approx(result.differences, abs=1e-6)
    assert (kd["seconds_alone"], kd["verdict"], kd["seeds_paired"]) == ("81", "differs", "5")
    assert (rows[2]["difference_mean"], rows[0]["verdict"]) == ("", "")
    assert "miou_best_mean_picked_on_reported_images" in kd


def test_text_is_aligned_and_safe_for_a_terminal(tmp_path: Path) -> None:
    board = board_of(tmp_path, {"none": [0.7, 0.7], "kd\x1b[31m": [0.75, 0.76]})
    text = text_table(board)
    assert "\x1b" not in text
    lines = text.split("\n\n")[0].splitlines()
    assert len(lines) == 4
    column = lines[0].index("mIoU, last") + len("mIoU, last")
    assert all(line[column : column + 2].strip() == "" for line in lines)


def test_a_comparison_without_costs_has_one_table(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"none": [0.7]})
    unmeasured = ("seconds", "teacher_seconds", "teacher_seconds_alone", "stage_seconds", "peak_bytes")
    write_run(folder, "none", 0, 0.7, **dict.fromkeys((*unmeasured, "parameters", "multiply_adds")))
    text = markdown_table(summarise(read_comparison(folder), 100))
    assert "time" not in text
    assert "Time" not in text


def test_nothing_finished_is_a_table_too(tmp_path: Path) -> None:
    write_plan(tmp_path, ["none", "kd"], [0, 1])
    board = summarise(read_comparison(tmp_path), 100)
    for form in (*TEXTS, csv_table):
        assert "no result" in form(board)


def test_tables_are_written_beside_each_other(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"none": [0.7, 0.71], "kd": [0.75, 0.76]})
    board = write_tables(read_comparison(folder), folder / "out")
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["table.csv", "table.md", "table.tex"]
    assert (folder / "out/table.md").read_text(encoding="utf-8") == markdown_table(board)
    assert (folder / "out/table.csv").read_text(encoding="utf-8") == csv_table(board)
    assert (folder / "out/table.tex").read_text(encoding="utf-8") == latex_table(board)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "comparison", {"none": [0.7], "kd": [0.75]})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SegtailorError, match="cannot write"):
        write_tables(read_comparison(folder), tmp_path / "file")
