"""benchmarks/equal/page.py on fabricated rows: the tables' figures, what is left out, and what stays as it was."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PIXELS = 10_000
ALONE = {0: 0.40, 1: 0.42, 2: 0.41}
KD = {0: 0.42, 1: 0.45, 2: 0.42}
MODEL = "deeplabv3plus-lcnet_050"
NO_PLOT = "No plot: there is no difference to show yet."
MADE_BY = {"code": "c0de", "method": "m", "teacher": "t", "torch": "2.8"}


class Made:
    """A study and its results in ``folder``, and its page."""

    def __init__(self, folder: Path, module: Any, seeds: int = 3) -> None:
        self.module = module
        self.path = folder / "studies" / "tiny.yaml"
        self.results = folder / "results" / "tiny"
        self.page = folder / "docs" / "study.md"
        study = {
            "title": "Tiny", "about": "A study of nothing.",
            "common": {"data": {"name": "toy", "size": [48, 64], "crop": [48, 64]}, "train": {"batch": 2}},
            "teachers": {"val": {"model": {"model": MODEL}, "train": {"steps": 4}}},
            "student": {"student": {"model": MODEL}, "train": {"steps": 3}},
            "comparisons": {
                "rows": {"tier": "A", "title": "The rows", "seeds": list(range(seeds)),
                         "arms": {"none": "none", "kd": "kd", "cwd": "cwd"}},
                "more": {"tier": "B", "title": "More", "seeds": [0], "arms": {"none": "none", "kt": "kt"}},
            },
        }  # fmt: skip
        self.path.parent.mkdir()
        self.path.write_text(yaml.safe_dump(study, sort_keys=False))
        self.study = importlib.import_module("plan").read_study(self.path)

    def row(self, arm: str, seed: int, miou: float, made_by: dict[str, str] | None = MADE_BY, **more: Any) -> Path:
        """Write one row of the comparison "rows", in the format of `segtailor compare`."""
        folder = self.results / "rows"
        row = folder / "arms" / arm / f"seed{seed}"
        row.mkdir(parents=True)
        plan = {
            "version": 1, "name": "rows", "arms": ["none", "kd", "cwd"], "baseline": "none",
            "seeds": self.study.comparisons["rows"].recipe.seeds, "classes": ["road", "sky"],
            "teacher": {"miou": 0.6}, "environment": {"torch": "2.8"},
        }  # fmt: skip
        (folder / "comparison.json").write_text(json.dumps(plan))
        hits = round(2 * PIXELS * miou)  # the second class is predicted and never there: mIoU is hits / (2 PIXELS)
        outcome = {
            "version": 1, "arm": arm, "seed": seed, "status": "finished", "reason": None,
            "miou": miou, "miou_all": miou, "best_miou": miou, "best_step": 3,
            "iou": [hits / PIXELS, 0.0], "steps": 3, "seconds": 100.0,
            "teacher_seconds": 0.0, "teacher_seconds_alone": 0.0, "stage_seconds": 0.0, "peak_bytes": 1,
            "parameters": 600_000, "multiply_adds": 2_000_000, "boundary": {"miou": 0.3}, **more,
        }  # fmt: skip
        (row / "outcome.json").write_text(json.dumps(outcome))
        half = np.array([[hits // 2, (PIXELS - hits) // 2], [0, 0]])
        np.savez(row / "confusions.npz", confusions=np.stack([half, np.array([[hits, PIXELS - hits], [0, 0]]) - half]))
        if made_by is not None:
            planned = self.study.comparisons["rows"]
            recipe = importlib.import_module("fingerprint").fingerprint(planned.recipe, arm, seed, None)["recipe"]
            (row / "fingerprint.json").write_text(json.dumps({"recipe": recipe, **made_by}))
        return row

    def teacher(self) -> None:
        """Write the record of the teacher "val"."""
        curve = [{"step": step, "miou": miou} for step, miou in ((1, 0.3), (2, 0.5), (3, 0.59), (4, 0.6))]
        row = {"miou": 0.6, "parameters": 4_750_000, "multiply_adds": 480_000_000}
        record = {"rows": [row], "environment": {"torch": "2.8"}, "weights": "t", "curve": curve}
        self.results.mkdir(parents=True, exist_ok=True)
        (self.results / "teacher-val.json").write_text(json.dumps(record))

    def write(self) -> str:
        """Write the page and return it."""
        self.module.main()
        return self.page.read_text()

    def block(self, name: str) -> str:
        """Return what stands in a block of the page."""
        return self.page.read_text().split(f"<!-- made: {name} -->")[1].split("<!-- end -->")[0]

    def cells(self, name: str) -> dict[str, dict[str, str]]:
        """Return a table's cells by their row's first cell and their head."""
        lines = [line for line in self.block(name).splitlines() if line.startswith("|")]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "equal")
    module = importlib.import_module("page")
    study = Made(tmp_path, module)
    monkeypatch.setattr(sys, "argv", ["page.py", "--study", str(study.path), "--out", str(study.page)])
    return study


@pytest.fixture
def filled(made: Made) -> Made:
    """With the student alone and kd over three seeds, and cwd failed in one."""
    made.teacher()
    for seed in range(3):
        made.row("none", seed, ALONE[seed])
        made.row("kd", seed, KD[seed], seconds=150.0, teacher_seconds=15.0, boundary={"miou": 0.31})
    made.row("cwd", 0, 0.1, status="failed", reason="OSError: /home/someone/data/a.png is | gone")
    return made


def test_the_figures_are_those_of_the_rows(filled: Made) -> None:
    filled.write()
    table = filled.cells("table:rows")
    assert list(table) == ["`kd`", "`none`"]  # best first
    # differences 2, 3 and 1: mean 2, deviation 1, and 4.3027 is Student's quantile for 2 degrees of freedom
    assert table["`kd`"] == {
        "arm": "`kd`",
        "seeds": "3",
        "mIoU": "43.00 ± 1.73",
        "to alone (95 %)": "+2.00 (−0.48 to +4.48)",
        "each seed": "+2.00, +3.00, +1.00",
        "gap closed": "11 %",  # 2 of the 60 - 41 points
        "boundary IoU, to alone": "+1.00",
        "verdict": "too few seeds",
        "time": "1.65×",
    }
    assert table["`none`"]["mIoU"] == "41.00 ± 1.00"
    assert (table["`none`"]["verdict"], table["`none`"]["time"]) == ("alone", "1.00×")
    assert "alone is `none`; the teacher scores 60.00." in filled.block("table:rows")


def test_the_setting_states_the_gap_and_the_teachers_last_evaluations(filled: Made) -> None:
    filled.write()
    block = filled.block("setting")
    assert "| teacher, mIoU | 60.00 |" in block
    assert "30.00 at 1, 50.00 at 2, 59.00 at 3, 60.00 at 4" in block
    assert "| student alone, mIoU | 41.00 ± 1.00 (3 seeds, `rows`) |" in block
    assert "| gap, points | 19.00 |" in block
    assert "| parameters | 4.75 M | 0.60 M |" in block
    assert "(study/teacher-curves.svg)" in block


def test_what_is_missing_or_failed_is_named(filled: Made) -> None:
    filled.write()
    block = filled.block("table:rows")
    assert "- not run: `cwd` seeds 1, 2\n" in block
    assert "- failed: `cwd` seed 0: OSError: a.png is \\| gone\n" in block
    assert filled.block("table:more").strip() == "Not run."
    state = filled.block("state")
    assert "6 of 11 rows are there." in state
    assert "| A | `rows`: The rows | 3 | 0, 1, 2 | 9 | 6 | 1 | 0 | 2 |" in state
    assert "| B | `more`: More | 2 | 0 | 2 | 0 | 0 | 0 | 2 |" in state


def test_below_five_seeds_nothing_is_tested_and_from_five_on_p_is_given(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "five").mkdir()
    five = Made(tmp_path / "five", made.module, seeds=5)
    monkeypatch.setattr(sys, "argv", ["page.py", "--study", str(five.path), "--out", str(five.page)])
    for seed, gain in enumerate((0.01, 0.02, 0.03, 0.02, 0.02)):
        five.row("none", seed, 0.4)
        five.row("kd", seed, 0.4 + gain)
    five.write()
    # mean 2, deviation 0.7071: t = 6.3246 with 4 degrees of freedom
    assert five.cells("table:rows")["`kd`"]["verdict"] == "differs, p 0.003"
    plot = ElementTree.parse(five.page.parent / "study" / "rows.svg")
    assert len([it for it in plot.iter() if it.get("class") == "mean differs"]) == 1


def test_a_block_sets_one_arm_against_every_other(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "five").mkdir()
    five = Made(tmp_path / "five", made.module, seeds=5)
    monkeypatch.setattr(sys, "argv", ["page.py", "--study", str(five.path), "--out", str(five.page)])
    for seed, gain in enumerate((0.01, 0.02, 0.03, 0.02, 0.02)):
        five.row("none", seed, 0.3)
        five.row("cwd", seed, 0.4, boundary={"miou": 0.35})
        five.row("kd", seed, 0.4 + gain)
    page = five.write() + "\n<!-- made: versus:rows:kd -->\n<!-- end -->\n"
    five.page.write_text(page)
    five.write()
    rows = five.cells("versus:rows:kd")
    assert list(rows) == ["`cwd`", "`none`"]
    row = rows["`cwd`"]
    # mean 2, deviation 0.7071, t = 6.3246 with 4 degrees of freedom; the larger of two p values stays as it is
    assert row["`kd` above it (95 %)"] == "+2.00 (+1.12 to +2.88)"
    assert row["each seed"] == "+1.00, +2.00, +3.00, +2.00, +2.00"
    assert row["boundary IoU"] == "\u22125.00"
    assert row["verdict"] == "differs, p 0.003"
    assert rows["`none`"]["`kd` above it (95 %)"].startswith("+12.00 ")
    # the first class's IoU is twice the mean's, the second's is 0
    assert "By class, `kd` above `none`, means over seeds: road +24.00, sky 0.00." in five.block("versus:rows:kd")
    for name, message in (("rows:kt", "no arm 'kt' in rows"), ("row:kd", "no comparison 'row'")):
        five.page.write_text(page.replace("versus:rows:kd", f"versus:{name}"))
        with pytest.raises(SystemExit):
            five.module.main()
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"code": "0ther"}, "made by other code"),
        ({"teacher": "0ther", "torch": "2.9"}, "made by another teacher and another PyTorch"),
        ({"method": "0ther"}, "made by another version of its method"),
        ({"recipe": "0ther"}, "made by another recipe"),
        (None, "no fingerprint"),
    ],
)
def test_rows_made_by_something_else_than_most_are_left_out_and_named(
    made: Made, change: dict[str, str] | None, words: str
) -> None:
    for seed in range(3):
        made.row("none", seed, ALONE[seed])
        odd = seed == 2
        made.row("kd", seed, KD[seed], None if odd and change is None else {**MADE_BY, **(change or {} if odd else {})})
    made.write()
    assert f"- left out: `kd` seed 2: {words}\n" in made.block("table:rows")
    assert made.cells("table:rows")["`kd`"]["seeds"] == "2 of 3"
    assert made.cells("table:rows")["`kd`"]["each seed"] == "+2.00, +3.00"
    assert made.cells("table:rows")["`none`"]["seeds"] == "3"
    assert "| 9 | 5 | 0 | 1 | 3 |" in made.block("state")


def test_rows_taken_from_another_comparison_are_named_and_timed_there(made: Made) -> None:
    for seed in range(3):
        made.row("none", seed, ALONE[seed])
        origin = {"taken": {"from": f"more/arms/kd/seed{seed}", "alone_seconds": 50.0}} if seed < 2 else {}
        made.row("kd", seed, KD[seed], {**MADE_BY, **origin}, seconds=150.0)  # type: ignore[dict-item]
    made.write()
    assert "- the same as in `more`, and taken from there: `kd` seeds 0, 1\n" in made.block("table:rows")
    assert made.cells("table:rows")["`kd`"]["time"] == "2.25×"


def test_rows_trained_apart_from_the_student_alone_are_not_timed_beside_it(made: Made) -> None:
    for seed in range(3):
        made.row("none", seed, ALONE[seed], {**MADE_BY, "unit": f"rows-seed{seed}-first"})
        unit = "first" if seed == 0 else "second"
        made.row("kd", seed, KD[seed], {**MADE_BY, "unit": f"rows-seed{seed}-{unit}"}, seconds=100.0 + 50 * seed)
        made.row("cwd", seed, KD[seed], {**MADE_BY, "unit": f"rows-seed{seed}-third"})
    made.write()
    assert (
        "- not trained beside the student alone, and so not timed: `kd` seeds 1, 2; `cwd` seeds 0, 1, 2\n"
        in made.block("table:rows")
    )
    assert made.cells("table:rows")["`kd`"]["time"] == "1.00×"
    assert made.cells("table:rows")["`cwd`"]["time"] == "–"


def test_rows_of_another_teacher_or_recipe_than_the_page_describes_say_so(made: Made) -> None:
    made.teacher()
    made.row("none", 0, 0.4, {**MADE_BY, "teacher": "before"})
    made.row("kd", 0, 0.45, {**MADE_BY, "teacher": "before", "recipe": "before"})
    made.write()
    assert "taught by another teacher than the one described above" in made.block("table:rows")
    assert "- made by another recipe than the study has now: `kd` seed 0\n" in made.block("table:rows")


def test_rows_that_are_not_planned_and_plans_that_cannot_be_read_are_named(filled: Made) -> None:
    filled.row("kd", 7, 0.9)
    filled.write()
    assert "- left out: `kd` seed 7: not in the study\n" in filled.block("table:rows")
    (filled.results / "rows" / "comparison.json").write_text("{")
    filled.write()
    assert "its rows cannot be read: comparison.json is damaged" in filled.block("table:rows")
    assert not (filled.page.parent / "study" / "rows.svg").exists()


def test_the_plots_are_sound_and_have_a_dot_for_each_seed(filled: Made) -> None:
    filled.write()
    assert "![The rows: differences to the student alone](study/rows.svg)" in filled.block("plot:rows")
    plot = ElementTree.parse(filled.page.parent / "study" / "rows.svg").getroot()
    kinds = [element.get("class") for element in plot.iter()]
    assert (kinds.count("seed"), kinds.count("mean"), kinds.count("interval")) == (3, 1, 2)  # one in the legend
    assert {"kd", "+2.00"} <= {element.text for element in plot.iter()}
    for dot in plot.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 < float(dot.get("cx", "")) < 800
    curve = ElementTree.parse(filled.page.parent / "study" / "teacher-curves.svg").getroot()
    assert [element.get("class") for element in curve.iter()].count("evaluation") == 4
    assert "No plot" in filled.block("plot:more")
    filled.row("cwd", 1, 0.45)
    filled.write()
    plot = ElementTree.parse(filled.page.parent / "study" / "rows.svg").getroot()
    assert "cwd (1 of 3)" in {element.text for element in plot.iter()}


def test_written_again_the_page_is_the_same_and_its_prose_stays(filled: Made) -> None:
    first = filled.write()
    assert filled.write() == first
    own = first.replace("Findings:\n", "Findings: none  yet, *and* <odd> | marks.\n", 1)
    filled.page.write_text(own)
    filled.row("cwd", 1, 0.45)
    after = filled.write()
    assert "Findings: none  yet, *and* <odd> | marks.\n" in after
    assert "`cwd`" in filled.cells("table:rows")
    assert without_blocks(after) == without_blocks(own)


def test_a_damaged_teachers_record_is_one_line(filled: Made, capsys: pytest.CaptureFixture[str]) -> None:
    (filled.results / "teacher-val.json").write_text('{"rows": []}')
    with pytest.raises(SystemExit, match="1"):
        filled.module.main()
    assert "teacher-val.json is damaged; restore it" in capsys.readouterr().err
    assert not filled.page.exists()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("<!-- made: state -->", "<!-- made: stake -->", "unknown block 'stake'"),
        ("<!-- made: state -->\n", "", "closes no block"),
        ("<!-- made: table:more -->", "", "closes no block"),
        (f"<!-- made: plot:more -->\n\n{NO_PLOT}\n\n<!-- end -->\n", "", "no block 'plot:more'"),
        ("<!-- end -->\n\n## What is there", "## What is there", "the block 'setting' above has no '<!-- end -->'"),
        ("## Tier A", "<!-- made: state -->\n<!-- end -->\n", "the block 'state' is there twice"),
    ],
)  # fmt: skip
def test_a_wrong_block_is_one_line_and_nothing_is_written(
    filled: Made, capsys: pytest.CaptureFixture[str], before: str, after: str, message: str
) -> None:
    text = filled.write()
    assert before in text
    filled.page.write_text(text.replace(before, after, 1))
    written = filled.page.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        filled.module.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert filled.page.read_bytes() == written


def without_blocks(text: str) -> list[str]:
    """Return the page's lines outside its blocks."""
    parts = text.split("<!-- made: ")
    return [parts[0], *(part.split("<!-- end -->")[1] for part in parts[1:])]


def test_a_first_page_names_its_study_in_its_commands(made: Made) -> None:
    text = made.write()
    assert "\npython benchmarks/equal --study benchmarks/studies/tiny.yaml --list\n" in text
    assert "\npython benchmarks/equal/page.py --study benchmarks/studies/tiny.yaml --out docs/study.md\n" in text
    assert "None" not in made.block("setting")


@pytest.mark.parametrize(("study", "page"), [("equal", "study"), ("equal-gpu", "study-gpu")])
def test_the_studies_here_are_valid_and_their_pages_have_every_block(study: str, page: str, made: Made) -> None:
    planned = importlib.import_module("plan").read_study(ROOT / "benchmarks" / "studies" / f"{study}.yaml")
    text = (ROOT / "docs" / f"{page}.md").read_text()
    there = [match["name"] for match in made.module.MARK.finditer(text) if match["name"]]
    wanted = ["setting", "state", *(f"{kind}:{name}" for name in planned.comparisons for kind in ("table", "plot"))]
    assert set(wanted) <= set(there)
