from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from segtailor.errors import SegtailorError
from segtailor.report import write_report
from segtailor.report.summary import format_results
from segtailor.results.model import read_results

from .runs import metrics, row, samples, write_run

VOID_TAGS = {"meta", "link", "img", "br", "line", "path", "hr", "input"}


class Page(HTMLParser):
    """Collects text, links to elsewhere, images without alternative text, and tags left open."""

    def __init__(self, html):
        super().__init__()
        self.open, self.outside, self.unnamed, self.text = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in VOID_TAGS:
            self.open.append(tag)
        for key in ("src", "href", "srcset", "action"):
            if values.get(key) and not values[key].startswith("data:"):
                self.outside.append(values[key])
        if tag == "img" and "alt" not in values:
            self.unnamed.append(values)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data + " "


def _page(folder):
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    page.text = re.sub(r"\s+", " ", page.text)
    return page, html


def test_a_distilled_run_shows_every_part(tmp_path):
    page, html = _page(write_run(tmp_path / "run"))
    for words in ("camvid-kt", "kt, clean", "Gap closed", "50.0", "6.0× smaller", "8.0× fewer", "2 min 05 s"):
        assert words in page.text
    for part in ("Teacher and students", "IoU of each class", "Validation mIoU", "kt.kd", "Samples", "seed 3"):
        assert part in page.text
    assert "+20.0" in page.text  # the pole's gain
    assert html.count("<path") >= 4
    assert "25.0 %" in page.text  # wrong pixels of a sample


def test_the_page_needs_nothing_outside_and_names_its_pictures(tmp_path):
    page, html = _page(write_run(tmp_path / "run"))
    assert page.outside == []
    assert page.unnamed == []
    assert "url(" not in html
    assert "@import" not in html


def test_names_are_escaped(tmp_path):
    page, html = _page(write_run(tmp_path / "run"))
    assert "<sky>" not in html
    assert "<sky>" in page.text
    assert "a <small> run" in page.text


def test_a_plain_training_has_one_model(tmp_path):
    page, _ = _page(write_run(tmp_path / "run", roles=("model",)))
    assert "The model" in page.text
    assert "Gap closed" not in page.text
    assert "Student alone" not in page.text


def test_without_baseline_the_page_says_that_the_gain_is_unknown(tmp_path):
    page, _ = _page(write_run(tmp_path / "run", roles=("teacher", "distilled"), with_samples=False))
    assert "the gain of the method is unknown" in page.text
    assert "Samples" not in page.text


def test_a_run_still_going_shows_its_metrics(tmp_path):
    folder = write_run(tmp_path / "my-run", with_samples=False)
    (folder / "results.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # the line being written
    page, _ = _page(folder)
    assert "Not finished." in page.text
    assert "step 100 of 100" in page.text
    assert "Student with kt" in page.text


def test_missing_files_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "samples/00-teacher.png").unlink()
    (folder / "samples/00-alone.png").write_bytes(b"damaged")
    (folder / "recipe.yaml").unlink()
    (folder / "baseline/metrics.jsonl").unlink()
    page, html = _page(folder)
    assert "recipe.yaml" not in page.text
    assert html.count("<img") == 7  # six of eight, and the viewer's own


def test_worse_than_alone_is_said_with_a_minus(tmp_path):
    rows = [row("teacher"), row("alone"), row("distilled", miou=0.40)]
    page, _ = _page(write_run(tmp_path / "run", rows=rows, gap_closed=-0.2))
    assert "−20.0" in page.text
    assert "−5.00 points over alone" in page.text


def test_unequal_steps_are_said(tmp_path):
    rows = [row("teacher"), row("alone", steps=50), row("distilled")]
    page, _ = _page(write_run(tmp_path / "run", rows=rows))
    assert "different numbers of steps (50 and 100)" in page.text


def test_a_loss_that_became_infinite_does_not_break_the_curves(tmp_path):
    folder = write_run(tmp_path / "run")
    line = {"kind": "train", "step": 105, "loss": float("nan"), "terms": {"task": float("inf")}}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    _, html = _page(folder)
    assert not re.search(r'd="[^"]*(nan|inf)', html)


def test_many_large_samples_keep_the_page_below_5_mb(tmp_path):
    folder = write_run(tmp_path / "run", with_samples=False)
    results = json.loads((folder / "results.json").read_text())
    results["samples"] = samples(folder, ("teacher", "distilled"), count=6, size=(500, 700))  # noise, the worst case
    (folder / "results.json").write_text(json.dumps(results))
    metrics(folder / "metrics.jsonl", [f"term {index}" for index in range(20)])
    page, _ = _page(folder)
    assert (folder / "report.html").stat().st_size < 5_000_000
    assert "scene 0" in page.text


def test_no_run_and_damaged_results_are_errors(tmp_path):
    with pytest.raises(SegtailorError, match="no run in"):
        write_report(tmp_path)
    folder = write_run(tmp_path / "run")
    (folder / "report.html").write_text("earlier")
    (folder / "results.json").write_text("{")
    with pytest.raises(SegtailorError, match=r"results\.json is damaged"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "earlier"


def test_the_summary_is_aligned_and_has_no_minus_zero(tmp_path):
    write_run(tmp_path / "run", gap_closed=-0.0004)
    lines = format_results(read_results(tmp_path / "run")).splitlines()
    assert lines[1].split() == ["Teacher", "pspnet-resnet18", "9.00", "M", "8.00", "G", "70.00", "-", "-"]
    assert lines[2].endswith("45.00  61.00  2 min 05 s")
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[-1] == "gap closed: 0.0 %"
