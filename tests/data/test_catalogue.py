from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segtailor.cli import app
from segtailor.config import DataConfig
from segtailor.data import create_dataset, list_datasets
from segtailor.data.base import check_classes
from segtailor.data.catalogue import BENCHMARKS, describe_datasets

DOCS = Path(__file__).parents[2] / "docs" / "data-sets.md"
VARIANTS = [(known, variant) for known in BENCHMARKS.values() for variant in known.variants]


def rows_of(text: str, columns: int) -> list[tuple[str, ...]]:
    """Return the rows of all tables of ``columns`` columns, without quotes."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    cells = [tuple(cell.strip().replace("`", "") for cell in line.strip("|").split("|")) for line in lines]
    return [row for row in cells if len(row) == columns and row[0] != "data.name"]


def test_the_docs_list_every_variant_with_its_classes_and_splits():
    entries = [entry for entry in describe_datasets() if entry.name in BENCHMARKS]
    described = [(entry.name, entry.variant, entry.classes, entry.splits) for entry in entries]
    assert rows_of(DOCS.read_text(), 4) == described


def test_the_docs_say_where_each_data_set_lies_and_under_which_license():
    text = DOCS.read_text()
    assert {row[0].split()[0] for row in rows_of(text, 3)} == set(BENCHMARKS)
    assert rows_of(text, 2) == [(name, known.license) for name, known in sorted(BENCHMARKS.items())]


def test_data_ls_is_a_table_of_everything():
    result = CliRunner().invoke(app, ["data", "ls"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    for entry in describe_datasets():
        line = next(line for line in lines if re.match(rf" *{entry.name} +{re.escape(entry.variant)}", line))
        assert re.search(rf" {entry.classes}  +{re.escape(entry.splits)}", line)
        assert entry.license in result.output
        assert entry.title in result.output
    assert {line.split()[0] for line in lines if line.split()} >= set(list_datasets())
    assert "fine (default)" in result.output


def test_every_data_set_is_described():
    entries = describe_datasets()
    assert {entry.name for entry in entries} == set(list_datasets())
    assert [entry.name for entry in entries if not entry.title] == []


@pytest.mark.parametrize(("known", "variant"), VARIANTS, ids=lambda part: part.name)
def test_classes_are_distinct_and_bytes(known, variant):
    check_classes(known.name, variant.names)
    assert len(set(variant.names)) == len(variant.names)
    assert all(len(color) == 3 and set(color) <= set(range(256)) for color in variant.palette)
    assert list(variant.splits)[:2] == ["train", "val"]


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_without_a_root_the_folder_under_data_is_asked_for(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEGTAILOR_CAMVID", raising=False)
    with pytest.raises(Exception, match=f"no such folder: data/{name}"):
        create_dataset(DataConfig(name=name), "train", training=True)
