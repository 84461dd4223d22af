from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segtailor.cli import app
from segtailor.config import DataConfig
from segtailor.data import (
    BENCHMARKS,
    DATASETS,
    FORMS,
    check_fields,
    create_dataset,
    describe_datasets,
    list_datasets,
)
from segtailor.data.base import check_classes
from segtailor.errors import SegtailorError
from segtailor.recipes import DataSection, validate

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


def test_the_docs_say_where_each_data_set_is_and_under_which_license():
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
    described = variant.described
    check_classes(known.name, tuple(described.classes))
    assert len(set(described.classes)) == len(described.classes) == len(described.colors())
    assert all(len(color) == 3 and set(color) <= set(range(256)) for color in described.colors())
    assert not set(described.class_values()) & set(described.void)
    assert set(variant.without).isdisjoint(described.classes)
    assert list(variant.splits)[:2] == ["train", "val"]


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_without_a_root_the_folder_under_data_is_asked_for(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEGTAILOR_CAMVID", raising=False)
    with pytest.raises(Exception, match=f"no such folder: data/{name}"):
        create_dataset(DataConfig(name=name), "train", training=True)


def test_a_field_that_is_not_read_is_named_with_those_who_read_it():
    with pytest.raises(SegtailorError) as caught:
        create_dataset(DataConfig(name="camvid", config="big", source="x"), "train", training=True)
    message = str(caught.value)
    assert message.startswith("camvid does not read data.config, data.source; read by hf;")
    assert "\n" not in message


def test_toy_does_not_read_a_variant_or_void():
    for field, value in (("variant", "fine"), ("void", [3])):
        with pytest.raises(SegtailorError, match=f"toy does not read data.{field}"):
            create_dataset(DataConfig(name="toy", **{field: value}), "train", training=True)


def test_defaults_pass_everywhere():
    for name in DATASETS:
        check_fields(DataConfig(name=name))


def test_every_data_set_is_a_benchmark_or_describes_its_fields():
    assert {*BENCHMARKS, *FORMS} == set(DATASETS)


def voc_color(label):
    """Return VOC's color of a label: its bits, lowest first, are the highest of red, green, blue, red, ..."""
    color = [0, 0, 0]
    for bit in range(8):
        color[bit % 3] |= (label >> bit & 1) << (7 - bit // 3)
    return tuple(color)


@pytest.mark.parametrize(("name", "variant", "first"), [("voc", 0, 0), ("pascal-context", 1, 0), ("coco-stuff", 1, 1)])
def test_colors_by_the_rule_of_voc(name, variant, first):
    colors = BENCHMARKS[name].variants[variant].described.colors()
    assert colors == tuple(voc_color(label) for label in range(first, first + len(colors)))


def test_the_key_streaming_is_gone_but_older_recipes_that_left_it_unset_are_read():
    assert validate(DataConfig, {"name": "toy", "streaming": False}, "recipe") == DataConfig(name="toy")
    with pytest.raises(SegtailorError, match=r"'data\.streaming' was removed; leave it out: the data set is down"):
        validate(DataSection, {"data": {"name": "hf", "streaming": True}}, "recipe")
