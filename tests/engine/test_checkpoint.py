"""A checkpoint is whole or not there."""

import errno
from pathlib import Path

import pytest
import torch

from segtailor.engine.checkpoint import load_checkpoint, save_checkpoint
from segtailor.errors import SegtailorError


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    state = {"progress": {"step": 3}, "distiller": {"w": torch.arange(3.0)}}
    save_checkpoint(tmp_path / "last.ckpt", state)
    read = load_checkpoint(tmp_path / "last.ckpt")
    assert read["progress"] == {"step": 3}
    assert torch.equal(read["distiller"]["w"], torch.arange(3.0))


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"progress": {"step": 1}})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("segtailor.files.os.fsync", full)
        with pytest.raises(SegtailorError, match=r"No space left.*previous file is whole") as caught:
            save_checkpoint(path, {"progress": {"step": 2}})
    assert "\n" not in str(caught.value)
    assert load_checkpoint(path)["progress"] == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x04\x95"])
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(SegtailorError, match=r"cannot read the checkpoint.*replace") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"w": torch.zeros(1)}, path)
    with pytest.raises(SegtailorError, match="not a checkpoint of this version"):
        load_checkpoint(path)
