"""Images without masks: found and checked in their folder, and dealt out beside the labelled ones."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from segtailor.config import DataConfig, TrainRecipe, UnlabelledConfig
from segtailor.data import create_dataset
from segtailor.data.check import check_unlabelled
from segtailor.data.loader import train_batches
from segtailor.data.pseudo import (
    Mix,
    check_apart,
    mix_of,
    open_unlabelled,
)
from segtailor.errors import SegtailorError
from segtailor.recipes import load_recipe

from .trees import truncate, write_camvid, write_image

SIZE = (24, 32)


@pytest.fixture
def folder(tmp_path):
    for index in range(7):
        write_image(tmp_path / "more" / f"deep{index % 2}" / f"u{index}.png", seed=100 + index)
    (tmp_path / "more" / "notes.txt").write_text("no image")
    (tmp_path / "more" / ".hidden.png").write_bytes(b"")
    return tmp_path / "more"


def opened(folder, **options):
    return open_unlabelled(UnlabelledConfig(images=folder, **options), SIZE, (1, 2, 3))


def toy(folder, workers=0, length=10, **options):
    return DataConfig(size=SIZE, length=length, workers=workers, unlabelled={"images": folder, **options})


def batches(config, global_batch=4, micro_batch=2, steps=6, seed=3, **options):
    images = open_unlabelled(config.unlabelled, config.size, (131, 131, 131)) if config.unlabelled else None
    data = create_dataset(config, "train", True)
    return list(
        train_batches(
            data, config, seed=seed, global_batch=global_batch, micro_batch=micro_batch, steps=steps,
            unlabelled=images, **options,
        )
    )  # fmt: skip


def same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.target, other.target)
        for a, b in zip(one.unlabelled or (), other.unlabelled or (), strict=True):
            assert torch.equal(a, b)


def test_a_folder_is_its_images_alone_sorted_and_resized(folder):
    images = opened(folder)
    assert [images[index].name for index in range(len(images))] == [
        "deep0/u0", "deep0/u2", "deep0/u4", "deep0/u6", "deep1/u1", "deep1/u3", "deep1/u5",
    ]  # fmt: skip
    assert images[0].image.shape == (3, *SIZE)
    assert images[0].image.dtype == torch.uint8
    assert open_unlabelled(UnlabelledConfig(images=folder), None, (0, 0, 0))[0].image.shape == (3, 12, 16)


def test_a_limit_takes_evenly_chosen_ones(folder):
    assert [path.stem for path in opened(folder, limit=3).paths] == ["u0", "u4", "u1"]
    assert len(opened(folder, limit=7)) == 7


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (shutil.rmtree, {}, "no such folder: .*more; set data.unlabelled.images"),
        (lambda folder: (shutil.rmtree(folder), folder.write_bytes(b"")), {}, "no such folder"),
        (lambda folder: (shutil.rmtree(folder), folder.mkdir()), {}, "no images in .*more .data.unlabelled.images."),
        (lambda folder: None, {"limit": 8}, "limit asks for 8 images, but .*more holds 7; lower it"),
    ],
)
def test_a_folder_that_will_not_do_is_one_line(folder, spoil, options, message):
    spoil(folder)
    with pytest.raises(SegtailorError, match=message) as caught:
        opened(folder, **options)
    assert "\n" not in str(caught.value)


def test_all_unreadable_images_are_counted_and_named(folder):
    truncate(folder / "deep0" / "u2.png")
    (folder / "deep1" / "u3.png").write_bytes(b"")
    with pytest.raises(SegtailorError, match=r"7 images checked: 2 files cannot be read: .*u2.png.*u3.png") as caught:
        check_unlabelled(opened(folder))
    assert "\n" not in str(caught.value)
    with pytest.raises(SegtailorError, match=r"cannot read .*u2.png: truncated"):
        opened(folder)[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_turns_bad_while_training_is_one_line(folder, workers):
    config = toy(folder, workers)
    for path in folder.rglob("u*.png"):
        path.write_bytes(b"")
    with pytest.raises(SegtailorError, match="is empty") as caught:
        batches(config)
    assert "\n" not in str(caught.value)


def test_validation_images_among_them_are_an_error(folder, tmp_path):
    val = create_dataset(DataConfig(name="camvid", root=write_camvid(tmp_path / "camvid")), "val", False)
    assert check_apart(opened(folder), val) is None
    # another image of the same length: bytes decide
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(folder / "b.bmp")
    Image.fromarray(np.ones((12, 16, 3), np.uint8)).save(tmp_path / "camvid" / "val" / "c.bmp")
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(tmp_path / "camvid" / "valannot" / "c.png")
    (tmp_path / "camvid" / "val" / "c.png").unlink()
    val = create_dataset(DataConfig(name="camvid", root=tmp_path / "camvid"), "val", False)
    warning = check_apart(opened(folder), val)
    assert warning is not None
    assert warning.startswith("1 image has the name of a validation image in ")
    assert ": b.bmp;" in warning
    shutil.copy(tmp_path / "camvid" / "val" / "c.bmp", folder / "renamed.bmp")
    shutil.copy(tmp_path / "camvid" / "val" / "a.png", folder / "again.png")
    with pytest.raises(
        SegtailorError, match=r"2 images are validation images in .*: again.png, renamed.bmp;"
    ) as caught:
        check_apart(opened(folder), val)
    assert "\n" not in str(caught.value)


def test_validation_data_that_are_no_files_pass(folder):
    assert check_apart(opened(folder), create_dataset(DataConfig(), "val", False)) is None


@pytest.mark.parametrize(
    ("share", "batch", "rows"), [(0.5, 8, 4), (0.3, 8, 2), (0.01, 8, 1), (0.99, 8, 7), (0.5, 2, 1), (0.75, 16, 12)]
)
def test_a_batch_has_its_share_of_unlabelled_rows(tmp_path, share, batch, rows):
    mix = mix_of(UnlabelledConfig(images=tmp_path, share=share), batch)
    assert (mix.unlabelled, mix.labelled) == (rows, batch - rows)
    places = [mix.place(row) for row in range(batch)]
    assert [place for kind, place in places if kind] == list(range(rows))
    assert [place for kind, place in places if not kind] == list(range(batch - rows))


@pytest.mark.parametrize("unlabelled", range(1, 16))
def test_rows_of_both_kinds_are_spread_evenly(unlabelled):
    mix = Mix(16, unlabelled)
    for micro in (1, 2, 4, 8):
        parts = [sum(mix.place(row)[0] for row in range(first, first + micro)) for first in range(0, 16, micro)]
        assert max(parts) - min(parts) <= 1
        assert mix.fewest_labelled(micro) == micro - max(parts)


def test_without_a_section_every_row_is_labelled():
    assert [mix_of(None, 3).place(row) for row in range(3)] == [(False, 0), (False, 1), (False, 2)]


def test_a_batch_of_one_is_an_error(tmp_path):
    with pytest.raises(SegtailorError, match=r"train.batch 1 has no room .* at least 2"):
        mix_of(UnlabelledConfig(images=tmp_path), 1)


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.5])
def test_a_share_that_leaves_nothing_is_an_error(share):
    values = {"model": {"model": "x"}, "data": {"unlabelled": {"images": "more", "share": share}}}
    with pytest.raises(SegtailorError, match=r"data.unlabelled.share': input should be (less|greater) than") as caught:
        load_recipe(values, TrainRecipe)
    assert "\n" not in str(caught.value)


def test_the_labelled_rows_are_those_of_a_smaller_batch(folder):
    plain = DataConfig(size=SIZE, length=10, workers=0)
    small = batches(plain, global_batch=3, micro_batch=3, steps=8)
    mixed = batches(toy(folder), global_batch=6, micro_batch=6, steps=8)
    for one, other in zip(small, mixed, strict=True):
        part = other.labelled_part()
        assert torch.equal(one.images, part.images)
        assert torch.equal(one.target, part.target)
        assert one.names == [name for name in other.names if name.startswith("train-")]


def test_unlabelled_rows_are_void_and_each_epoch_shows_every_image_once(folder):
    result = batches(toy(folder, share=0.75), global_batch=4, micro_batch=4, steps=7)
    names = [name for batch in result for name in batch.names if name.startswith("deep")]
    assert len(names) == 21
    for first in (0, 7, 14):
        assert len(set(names[first : first + 7])) == 7
    assert names[:7] != names[7:14]
    for batch in result:
        assert batch.unlabelled is not None
        assert sorted(batch.unlabelled.rows.tolist() + batch.unlabelled.labelled.tolist()) == [0, 1, 2, 3]
        assert (batch.target[batch.unlabelled.rows] == 255).all()
        assert (batch.target[batch.unlabelled.labelled] != 255).any()


def test_padding_is_known_and_of_the_mean_color(folder):
    config = toy(folder).model_copy(update={"scale": (0.5, 0.5)})
    for batch in batches(config, global_batch=4, micro_batch=4):
        assert batch.unlabelled is not None
        rows, _, inside = batch.unlabelled
        assert inside.sum((1, 2)).tolist() == [SIZE[0] * SIZE[1] // 4] * len(rows)
        outside = batch.images[rows].permute(0, 2, 3, 1)[~inside]
        assert (outside == 131).all()


def test_the_number_of_workers_does_not_matter(folder):
    same(batches(toy(folder)), batches(toy(folder, workers=2)))


def test_resuming_continues_where_it_stopped(folder):
    same(batches(toy(folder))[8:], batches(toy(folder), start_step=4))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_neither_ranks_nor_micro_batches_change_the_rows(folder, share):
    config = toy(folder, share=share)
    whole = batches(config, global_batch=8, micro_batch=8)
    for world, micro in ((1, 2), (2, 4), (2, 1), (4, 2)):
        ranks = [batches(config, global_batch=8, micro_batch=micro, rank=rank, world=world) for rank in range(world)]
        count = 8 // world // micro
        for step, batch in enumerate(whole):
            parts = [part for rank in ranks for part in rank[step * count : (step + 1) * count]]
            assert batch.names == [name for part in parts for name in part.names]
            assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
            assert torch.equal(batch.target, torch.cat([part.target for part in parts]))
            assert batch.unlabelled is not None
            inside = [part.unlabelled.inside for part in parts if part.unlabelled is not None]
            assert torch.equal(batch.unlabelled.inside, torch.cat(inside))


def test_the_seed_changes_what_comes(folder):
    first, other = (batches(toy(folder), seed=seed) for seed in (3, 4))
    assert [batch.names for batch in first] != [batch.names for batch in other]


def test_without_unlabelled_images_batches_are_what_they_were():
    plain = batches(DataConfig(size=SIZE, length=10, workers=0))
    assert plain[0].names + plain[1].names == ["train-0009", "train-0006", "train-0000", "train-0002"]
    assert all(batch.unlabelled is None for batch in plain)
    assert plain[0].labelled_part() is plain[0]
