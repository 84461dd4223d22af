from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.data.loader import train_batches
from segtailor.errors import SegtailorError

from .trees import write_camvid

CONFIG = DataConfig(name="toy", size=(24, 32), length=10, workers=0)


def batches(config=CONFIG, dataset=None, **options):
    options = {"seed": 3, "global_batch": 4, "micro_batch": 2, "steps": 6, **options}
    return list(train_batches(dataset or create_dataset(config, "train", True), config, **options))


def same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.names == other.names
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.target, other.target)


def test_gives_micro_batches_of_bytes():
    result = batches()
    assert len(result) == 12
    assert result[0].images.shape == (2, 3, 24, 32)
    assert result[0].target.shape == (2, 24, 32)
    assert result[0].images.dtype == result[0].target.dtype == torch.uint8


def test_the_number_of_workers_does_not_matter():
    same(batches(), batches(CONFIG.model_copy(update={"workers": 2})))


def test_resuming_continues_where_it_stopped():
    same(batches()[8:], batches(start_step=4))


def test_two_ranks_share_the_global_batch():
    whole = batches(micro_batch=4)
    ranks = [batches(micro_batch=2, rank=rank, world=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.images, torch.cat([rank[step].images for rank in ranks]))
        assert batch.names == ranks[0][step].names + ranks[1][step].names


def test_each_epoch_shows_every_sample_once_in_an_order_of_its_own():
    names = list(itertools.chain.from_iterable(batch.names for batch in batches(steps=5)))
    assert len(names) == 20
    assert sorted(names[:10]) == sorted(names[10:])
    assert len(set(names[:10])) == 10
    assert names[:10] != names[10:]


def test_a_data_set_smaller_than_the_batch_wraps_into_its_next_epoch():
    config = CONFIG.model_copy(update={"length": 3})
    result = batches(config, global_batch=8, micro_batch=8, steps=2)
    assert [len(batch.names) for batch in result] == [8, 8]
    assert len(set(result[0].names)) == 3


def test_the_seed_changes_what_comes():
    assert batches()[0].names != batches(seed=4)[0].names


def test_the_global_random_state_stays_as_it_was():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    batches(steps=1)
    assert torch.equal(torch.rand(1), expected)


def test_a_batch_that_does_not_split_is_an_error():
    with pytest.raises(SegtailorError, match="does not split"):
        batches(global_batch=5)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_turns_bad_while_training_is_one_line(tmp_path, workers):
    config = DataConfig(name="camvid", root=write_camvid(tmp_path), workers=workers, crop=(8, 8))
    dataset = create_dataset(config, "train", True)
    for path in (tmp_path / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(SegtailorError, match="is empty") as caught:
        batches(config, dataset)
    assert "\n" not in str(caught.value)


def test_a_killed_worker_is_one_line_and_a_process_that_exits_while_workers_run_ends(tmp_path):
    """Workers ignore the signal by which Python ends them at exit, so they have to be stopped before that."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import multiprocessing, sys, time\n"
        "from segtailor.config import DataConfig\n"
        "from segtailor.data import create_dataset\n"
        "from segtailor.data.loader import train_batches\n"
        "from segtailor.errors import SegtailorError\n"
        "if __name__ == '__main__':\n"
        "    config = DataConfig(workers=2, size=(24, 32))\n"
        "    data = create_dataset(config, 'train', True)\n"
        "    options = {'seed': 0, 'global_batch': 2, 'micro_batch': 2, 'steps': 10**4}\n"
        "    batches = train_batches(data, config, **options)\n"
        "    next(batches)\n"
        "    multiprocessing.active_children()[0].kill()\n"
        "    time.sleep(0.5)  # nothing is raised in the middle of a step\n"
        "    try:\n"
        "        for _ in batches:\n"
        "            pass\n"
        "        sys.exit(5)\n"
        "    except SegtailorError as error:\n"
        "        if 'killed' not in str(error):\n"
        "            sys.exit(4)\n"
        "    others = train_batches(data, config, **options)\n"
        "    next(others)\n"
        "    sys.exit(3)\n"
    )
    assert subprocess.run([sys.executable, str(script)], timeout=100, check=False).returncode == 3
