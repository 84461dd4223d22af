"""Fetching a file: resume, retries, servers that misbehave, and errors in one line."""

from __future__ import annotations

import hashlib
import socket

import numpy as np
import pytest

from data.web import Web
from segtailor.data.download.archive import Archive
from segtailor.data.download.fetch import TRIES, fetch
from segtailor.errors import SegtailorError

CONTENT = np.random.default_rng(0).bytes(3 * 2**20 + 17)


@pytest.fixture
def web():
    web = Web()
    web.files["file.bin"] = CONTENT
    yield web
    web.close()


def archive(*urls: str, checked: bool = True) -> Archive:
    checksum = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}" if checked else None
    return Archive("file.bin", urls, len(CONTENT), checksum, {}, 0)


class Pauses(list):
    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def pauses():
    return Pauses()


def test_a_file_is_fetched_once(web, tmp_path):
    told = []
    path = fetch(archive(web.url("file.bin")), tmp_path / "new", advance=lambda *given: told.append(given))
    assert path == tmp_path / "new/file.bin"
    assert path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [file.name for file in path.parent.iterdir()] == ["file.bin"]
    fetch(archive(web.url("file.bin")), tmp_path / "new")
    assert web.requests == [("file.bin", None)]


def test_a_cut_connection_is_resumed_where_it_ended(web, tmp_path, pauses):
    web.cuts = [1000, 2**20, None]
    path = fetch(archive(web.url("file.bin")), tmp_path, pause=pauses)
    assert path.read_bytes() == CONTENT
    assert [wanted for _, wanted in web.requests] == [None, "bytes=1000-", f"bytes={1000 + 2**20}-"]
    assert pauses == [1.0, 1.0]  # each try brought something


def test_a_later_call_goes_on(web, tmp_path, pauses):
    web.cuts = [5000]
    web.answers = [None] + [503] * TRIES
    with pytest.raises(
        SegtailorError, match=r"cannot fetch file\.bin .*HTTP 503 .* what has arrived is kept"
    ) as caught:
        fetch(archive(web.url("file.bin")), tmp_path, pause=pauses)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:5000]
    web.requests.clear()
    assert fetch(archive(web.url("file.bin")), tmp_path).read_bytes() == CONTENT
    assert web.requests == [("file.bin", "bytes=5000-")]


def test_a_server_without_ranges_starts_anew(web, tmp_path, pauses):
    web.ranges = False
    web.cuts = [2**20, None]
    assert fetch(archive(web.url("file.bin")), tmp_path, pause=pauses).read_bytes() == CONTENT
    assert web.requests[1] == ("file.bin", f"bytes={2**20}-")


def test_a_file_that_changed_in_between_starts_anew(web, tmp_path, pauses):
    (tmp_path / "file.bin.part").write_bytes(b"of the edition before")
    (tmp_path / "file.bin.part.json").write_text(f'{{"url": "{web.url("file.bin")}", "edition": "\\"old\\""}}')
    assert fetch(archive(web.url("file.bin"), checked=False), tmp_path).read_bytes() == CONTENT


def test_a_part_from_elsewhere_is_used_only_where_a_checksum_tells(web, tmp_path):
    for checked, wanted in ((True, "bytes=100-"), (False, None)):
        (tmp_path / "file.bin.part").write_bytes(CONTENT[:100])
        (tmp_path / "file.bin.part.json").write_text('{"url": "http://elsewhere/file.bin", "edition": null}')
        path = fetch(archive(web.url("file.bin"), checked=checked), tmp_path)
        assert path.read_bytes() == CONTENT
        assert web.requests.pop() == ("file.bin", wanted)
        path.unlink()


def test_a_part_that_is_whole_is_taken(web, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert fetch(archive(web.url("file.bin")), tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_dropped(web, tmp_path, pauses):
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(archive(web.url("file.bin")), tmp_path, pause=pauses).read_bytes() == CONTENT


def test_a_server_that_does_not_say_how_long_the_file_is(web, tmp_path):
    web.lengths, web.edition = False, None
    assert fetch(archive(web.url("file.bin")), tmp_path).read_bytes() == CONTENT


def test_pauses_grow_and_heed_the_server(web, tmp_path, pauses):
    web.answers = [500, 502, 429, None]
    fetch(archive(web.url("file.bin")), tmp_path, pause=pauses)
    assert pauses == [2.0, 4.0, 8.0]
    web.answers, web.headers = [503], {"Retry-After": "30"}
    (tmp_path / "file.bin").unlink()
    fetch(archive(web.url("file.bin")), tmp_path, pause=pauses)
    assert pauses[3:] == [30.0]


def test_an_address_that_is_gone_is_not_tried_again_and_the_next_one_is(web, tmp_path, pauses):
    path = fetch(archive(web.url("gone.bin"), web.url("file.bin")), tmp_path, pause=pauses)
    assert path.read_bytes() == CONTENT
    assert [name for name, _ in web.requests] == ["gone.bin", "file.bin"]
    assert not pauses


def test_no_address_gives_the_file(web, tmp_path, pauses):
    with pytest.raises(SegtailorError, match=r"cannot fetch file\.bin \(http.*gone: HTTP 404 Not Found\); ") as caught:
        fetch(archive(web.url("gone")), tmp_path, pause=pauses)
    assert f"put the file into {tmp_path} yourself" in str(caught.value)
    assert "is kept" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_another_file_at_the_address_is_refused_before_it_is_read(web, tmp_path, pauses):
    web.files["page"] = b"<html>please log in</html>"
    with pytest.raises(SegtailorError, match=rf"it is 26 bytes there, not {len(CONTENT)}; that is another file"):
        fetch(archive(web.url("page")), tmp_path, pause=pauses)


def test_a_host_that_cannot_be_reached(tmp_path, pauses):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SegtailorError, match=rf"127\.0\.0\.1:{port}/x: Connection refused, {TRIES} times\)") as caught:
        fetch(archive(f"http://127.0.0.1:{port}/x"), tmp_path, pause=pauses)
    assert "\n" not in str(caught.value)
    assert pauses == [2.0, 4.0, 8.0, 16.0]


def test_a_server_that_says_nothing(tmp_path, pauses, monkeypatch):
    monkeypatch.setattr("segtailor.data.download.fetch.TIMEOUT", 0.05)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"http://127.0.0.1:{mute.getsockname()[1]}/x"
        with pytest.raises(SegtailorError, match=r"no answer in 0 s, 5 times"):
            fetch(archive(address), tmp_path, pause=pauses)
