"""Batch arithmetic, devices and per-step seeds."""

import pytest
import torch

from segtailor.config import TrainConfig
from segtailor.engine.launch import launch
from segtailor.engine.loop import seed_step, split_batch
from segtailor.errors import SegtailorError


@pytest.mark.parametrize(
    ("batch", "micro", "world", "expected"),
    [(8, None, 1, (8, 1)), (8, 2, 1, (2, 4)), (16, 4, 2, (4, 2)), (4, 16, 2, (2, 1))],
)
def test_the_global_batch_is_split(batch: int, micro: int | None, world: int, expected: tuple[int, int]) -> None:
    assert split_batch(batch, micro, world) == expected


def test_batches_that_do_not_divide() -> None:
    with pytest.raises(SegtailorError, match=r"train.batch 7 does not divide by 2 processes"):
        split_batch(7, None, 2)
    with pytest.raises(SegtailorError, match=r"train.micro_batch 3 does not divide the 8 images"):
        split_batch(8, 3, 1)


def test_draws_are_a_function_of_seed_step_and_rank() -> None:
    def draw(seed: int, step: int, rank: int) -> float:
        seed_step(seed, step, rank)
        return float(torch.rand(()))

    assert draw(0, 5, 0) == draw(0, 5, 0)
    assert len({draw(s, n, r) for s in range(3) for n in range(1, 4) for r in range(3)}) == 27


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(SegtailorError, match="fp16 needs a GPU"):
        launch(TrainConfig(precision="fp16", accelerator="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_devices_that_are_not_there() -> None:
    with pytest.raises(SegtailorError, match=r"cannot use train.accelerator cuda") as caught:
        launch(TrainConfig(accelerator="cuda", devices=4))
    assert "\n" not in str(caught.value)
