"""Packing what is not files: rows of a Hugging Face data set; and checking packs before training."""

from __future__ import annotations

import pytest

from data.test_pack import assert_same, damage, packed, place
from data.trees import write_camvid
from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.data.check import check_files
from segtailor.data.pack import pack
from segtailor.errors import SegtailorError


def test_rows_of_a_hugging_face_data_set(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    from data.test_hf import write_parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    folder = write_parquet(tmp_path / "source", files=2)
    source = DataConfig(name="hf", source=str(folder), classes=folder / "names.yaml", val_split="validation")
    part = "train[:60%]"
    manifest = pack(source, tmp_path / "out", splits=[part, "validation"], shards=2)
    assert {name: split.samples for name, split in manifest.splits.items()} == {part: 3, "validation": 5}
    for split, training in ((part, True), ("validation", False)):
        assert_same(source, packed(tmp_path / "out"), split, training)


def test_the_check_before_training_counts_damaged_samples(tmp_path):
    source = DataConfig(name="camvid", root=write_camvid(tmp_path / "camvid", names=tuple("abcd")), workers=0)
    out = tmp_path / "out"
    pack(source, out)
    data = create_dataset(packed(out), "train", True)
    check_files(data)
    for number in (1, 2):
        damage(out / "train/chunk-0-0.bin", place(out, number, 1))
    with pytest.raises(
        SegtailorError, match=r"camvid train, 4 rows checked: 2 rows cannot be read: .*out/train"
    ) as caught:
        check_files(data)
    assert "\n" not in str(caught.value)
