from __future__ import annotations

import pickle
import subprocess
import sys
import time

import pytest

from segtailor.data import stream
from segtailor.data.stream import RECORD, Encoded, StreamCache
from segtailor.errors import SegtailorError


def sample(position):
    return Encoded(b"i" * (position + 1), f"mask {position}".encode())


class Source:
    """A stream of ``length`` samples that notes where it was started and what it gave."""

    def __init__(self, length, breaks=None):
        self.length, self.breaks = length, breaks
        self.starts, self.given = [], []

    def __call__(self, first):
        self.starts.append(first)
        for position in range(first, self.length):
            if position == self.breaks:
                raise OSError("the line is dead")
            self.given.append(position)
            yield sample(position)


def settle(cache, count):
    deadline = time.monotonic() + 20
    while cache.count() < count and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)


def test_each_sample_comes_once_and_no_further_than_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "AHEAD", 5)
    source = Source(100)
    cache = StreamCache(tmp_path, source, 100, "the stream")
    assert (len(cache), cache.count()) == (100, 0)
    assert cache[3] == sample(3)
    settle(cache, 9)
    assert source.given == list(range(9))  # 0 to 3, and five more
    assert cache[20] == sample(20)
    assert cache[0] == sample(0)
    settle(cache, 26)
    assert source.given == list(range(26))
    assert source.starts == [0]


def test_what_has_come_is_kept_and_the_stream_goes_on_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "AHEAD", 0)
    script = (
        "from pathlib import Path\n"
        "from segtailor.data import stream\n"
        "stream.AHEAD = 0\n"
        "from tests.data.test_stream import Source\n"
        f"print(stream.StreamCache(Path({str(tmp_path)!r}), Source(50), 50, 's')[9].mask)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "b'mask 9'"
    source = Source(50)
    cache = StreamCache(tmp_path, source, 50, "the stream")
    assert cache.count() == 10
    assert [cache[position] for position in range(10)] == [sample(position) for position in range(10)]
    assert source.starts == []
    assert cache[12] == sample(12)
    assert source.starts == [10]


def test_half_written_samples_are_written_again(tmp_path):
    for position in range(4):
        assert StreamCache(tmp_path, Source(4), 4, "the stream")[position] == sample(position)
    time.sleep(0.2)
    (tmp_path / "end").unlink()
    index, data = tmp_path / "index.bin", tmp_path / "data.bin"
    content = index.read_bytes()
    index.write_bytes(content[: 2 * RECORD.size + 5])
    data.write_bytes(data.read_bytes()[:-3])
    cache = StreamCache(tmp_path, Source(4), 4, "the stream")
    assert cache.count() == 2
    assert [cache[position] for position in range(4)] == [sample(position) for position in range(4)]
    assert index.read_bytes() == content


def test_without_a_known_length_the_end_tells(tmp_path):
    cache = StreamCache(tmp_path, Source(700), None, "the stream")
    assert len(cache) == 700
    assert cache[699] == sample(699)
    again = Source(700)
    assert len(StreamCache(tmp_path, again, None, "the stream")) == 700
    assert again.starts == []


def test_a_stream_that_breaks_off_or_ends_early_is_one_line(tmp_path):
    cache = StreamCache(tmp_path / "a", Source(9, breaks=4), 9, "the stream of x")
    assert cache[3] == sample(3)
    with pytest.raises(SegtailorError, match="the stream of x broke off after 4 samples: the line is dead"):
        cache[6]
    cache = StreamCache(tmp_path / "b", Source(5), 9, "the stream of x")
    with pytest.raises(SegtailorError, match="ended after 5 samples, before sample 6"):
        cache[6]


def test_a_copy_in_another_process_reads_what_this_one_fetches(tmp_path):
    cache = StreamCache(tmp_path, Source(9), 9, "the stream")
    assert cache[2] == sample(2)
    copied = pickle.loads(pickle.dumps(cache))
    assert copied[2] == sample(2)
    assert copied[8] == sample(8)
