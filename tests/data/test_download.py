"""`get`: fetching, checking and unpacking a data set from a server on this machine."""

from __future__ import annotations

import hashlib
import socket
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.trees import write_image, write_mask
from data.web import Web, matrix, tarred, zipped
from segtailor.data.benchmark import BenchmarkDataset, Variant
from segtailor.data.download.catalogue import Archive, Entry
from segtailor.data.download.convert import convert_stuff, merge_boundaries, read_boundaries_mask
from segtailor.data.download.fetch import RETRIES, fetch, get, unpack
from segtailor.data.image_io import UnreadableFile
from segtailor.data.pairing import Pair
from segtailor.errors import SegtailorError


@pytest.fixture
def web():
    web = Web()
    yield web
    web.close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds between tries, which pass at once."""
    pauses: list[float] = []
    monkeypatch.setattr("pooch.core.time.sleep", pauses.append)
    return pauses


def serve(web: Web, file: str, content: bytes, parts: dict[str, str], checked: bool = True) -> Archive:
    web.files[file] = content
    checksum = f"md5:{hashlib.md5(content).hexdigest()}" if checked else None
    return Archive(file, (web.url(file),), len(content), checksum, parts, len(content))


def entry(*archives: Archive, **options) -> Entry:
    variants = (Variant("default", (("road", (0, 0, 0)),), {}),)
    known = BenchmarkDataset("street", "Street", "free", Path("data/street"), variants)
    return Entry(known, "https://example.org", archives, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_archives_are_unpacked_in_place_and_removed(web, tmp_path):
    images = serve(
        web, "images.zip", zipped({"top/a.jpg": b"a", "top/sub/b.jpg": b"b", "x": b"x"}), {"top/": "images/"}
    )
    masks = serve(web, "masks.tgz", tarred({"./m/a.png": b"A", "m/list.txt": b"l"}), {"m/": "", "m/list.txt": "l.txt"})
    message = get(entry(images, masks), tmp_path / "root")
    assert names(tmp_path / "root") == [".segtailor-get.json", "a.png", "images/a.jpg", "images/sub/b.jpg", "l.txt"]
    assert (tmp_path / "root/images/sub/b.jpg").read_bytes() == b"b"
    assert f"data: {{name: street, root: {tmp_path / 'root'}}}" in message
    assert not (tmp_path / "root/downloads").exists()
    # all is there
    assert "street is complete in" in get(entry(images, masks), tmp_path / "root")
    assert len(web.requests) == 2


def test_a_call_continues_with_the_archives_that_are_not_whole(web, tmp_path):
    first = serve(web, "a.zip", zipped({"a": b"a"}), {"a": "a"})
    second = serve(web, "b.zip", zipped({"b": b"b" * 1000}, zipfile.ZIP_STORED), {"b": "b"})
    web.answers = [None] + [404] * (RETRIES + 1)
    with pytest.raises(SegtailorError, match=r"cannot fetch b\.zip .*404"):
        get(entry(first, second), tmp_path)
    assert (tmp_path / "a").read_bytes() == b"a"
    web.requests.clear()
    get(entry(first, second), tmp_path)
    assert web.requests == ["b.zip"]
    assert (tmp_path / "b").read_bytes() == b"b" * 1000


def test_failures_are_tried_again_after_growing_pauses(web, tmp_path, pauses):
    archive = serve(web, "a.zip", zipped({"a": b"a" * 5000}, zipfile.ZIP_STORED), {"a": "a"})
    web.answers, web.cuts = [500, 502, None, None], [1000, None]  # the connection ends after 1,000 bytes
    assert fetch(archive, tmp_path).read_bytes() == web.files["a.zip"]
    assert pauses == [1, 2, 3]
    assert names(tmp_path) == ["a.zip"]
    fetch(archive, tmp_path)
    assert len(web.requests) == 4


def test_no_address_gives_the_file(web, tmp_path):
    archive = serve(web, "a.zip", zipped({"a": b"a"}), {"a": "a"})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    with pytest.raises(
        SegtailorError, match=r"gone: 404 .*; http\S*/x: \[Errno \d+\] Connection refused\); "
    ) as caught:
        fetch(archive._replace(urls=(web.url("gone"), closed)), tmp_path / "new")
    assert f"put the right file into {tmp_path / 'new'} yourself" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_progress_is_shown_on_the_error_stream(web, tmp_path, capsys):
    archive = serve(web, "a.zip", zipped({"a": b"a"}), {"a": "a"})
    get(entry(archive), tmp_path, progress=True)
    out, error = capsys.readouterr()
    assert not out
    assert "fetching a.zip" in error
    assert "unpacking a.zip" in error


def test_an_archive_that_the_user_put_there_is_taken(web, tmp_path):
    archive = serve(web, "a.zip", zipped({"a": b"a"}), {"a": "a"})
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/a.zip").write_bytes(web.files["a.zip"])
    get(entry(archive), tmp_path)
    assert not web.requests
    assert (tmp_path / "a").read_bytes() == b"a"


def test_a_wrong_archive_is_removed_and_fetched_once_more(web, tmp_path):
    archive = serve(web, "a.zip", zipped({"a": b"a"}), {"a": "a"})
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/a.zip").write_bytes(b"wrong" * 20)
    get(entry(archive), tmp_path)
    assert len(web.requests) == 1
    assert (tmp_path / "a").read_bytes() == b"a"


def test_an_archive_that_stays_wrong_is_removed_and_named(web, tmp_path):
    archive = serve(web, "a.zip", zipped({"a": b"a"}), {"a": "a"})
    web.files["a.zip"] = bytes(len(web.files["a.zip"]))
    with pytest.raises(SegtailorError, match=r"cannot fetch a\.zip \(http.*: it is not md5:\w+\); ") as caught:
        get(entry(archive), tmp_path)
    assert "\n" not in str(caught.value)
    assert len(web.requests) == RETRIES + 1
    assert names(tmp_path) == []


def test_another_address_is_tried(web, tmp_path):
    archive = serve(web, "a.zip", zipped({"a": b"a"}), {"a": "a"})
    web.files["bad.zip"] = bytes(len(web.files["a.zip"]))
    get(entry(archive._replace(urls=(web.url("bad.zip"), web.url("a.zip")))), tmp_path)
    assert web.requests == ["bad.zip"] * (RETRIES + 1) + ["a.zip"]
    assert (tmp_path / "a").read_bytes() == b"a"


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_without_a_checksum_the_archive_shows_damage(web, tmp_path, pack):
    content = pack({"a": np.random.default_rng(0).bytes(5000)})
    archive = serve(web, "a.any", content, {"a": "a"}, checked=False)
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    web.files["a.any"] = bytes(damaged)
    with pytest.raises(SegtailorError, match=r"cannot fetch a\.any .*(damaged|no whole)"):
        get(entry(archive), tmp_path)
    web.files["a.any"] = b"<html>not found</html>"
    with pytest.raises(SegtailorError, match="it is no whole zip or tar file"):
        get(entry(archive), tmp_path)
    web.files["a.any"] = content
    get(entry(archive), tmp_path)
    assert (tmp_path / "a").stat().st_size == 5000
    assert "nobody publishes a checksum: the CRC" in entry(archive).describe()


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
def test_checksums(web, tmp_path, kind):
    web.files["a"] = b"content"
    right = f"{kind}:{hashlib.new(kind, b'content').hexdigest()}"
    archive = Archive("a", (web.url("a"),), 7, right, {}, 0)
    assert fetch(archive, tmp_path).read_bytes() == b"content"
    (tmp_path / "a").unlink()
    with pytest.raises(SegtailorError, match=f"it is not {kind}:0000"):
        fetch(archive._replace(checksum=f"{kind}:{'0' * (len(right) - len(kind) - 1)}"), tmp_path)


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "..\\out", "C:\\out"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_path_that_leads_out_is_not_unpacked(tmp_path, name, pack):
    path = tmp_path / "in/a.any"
    path.parent.mkdir()
    path.write_bytes(pack({name: b"evil"}))
    with pytest.raises(SegtailorError, match=r"which leads out of its folder; it was not unpacked"):
        unpack(path, {"": "", "/": "/", "a/": "a/"}, tmp_path / "in/root")
    assert names(tmp_path) == ["in/a.any"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_not_unpacked(tmp_path, kind):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("d/link")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(SegtailorError, match="which is a link or a device"):
        unpack(path, {"d/": ""}, tmp_path / "root")
    assert names(tmp_path) == ["a.tar"]


def test_a_link_in_a_zip_is_not_unpacked(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("d/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(SegtailorError, match="which is a link or a device"):
        unpack(path, {"d/": ""}, tmp_path / "root")


def test_an_archive_without_what_is_looked_for(web, tmp_path):
    archive = serve(web, "a.zip", zipped({"a": b"a"}), {"a": "a", "images/": "images/"})
    with pytest.raises(SegtailorError, match=r"a\.zip holds no images/; it is not the expected archive"):
        get(entry(archive), tmp_path)


def test_a_root_that_is_a_file(web, tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(SegtailorError, match=r"root is a file; give --root a folder"):
        get(entry(serve(web, "a.zip", zipped({"a": b"a"}), {"a": "a"})), tmp_path / "root")


def test_a_disk_that_is_too_small_is_an_error_before_the_first_file(web, tmp_path, monkeypatch):
    archive = serve(web, "a.zip", zipped({"a": b"a"}), {"a": "a"})._replace(length=3 * 10**9, unpacked=2 * 10**9)
    asked = []

    def usage(path):
        asked.append(path)
        return types.SimpleNamespace(free=10**9)

    monkeypatch.setattr("shutil.disk_usage", usage)
    with pytest.raises(SegtailorError, match=r"street takes about 5\.0 GB while .* 1\.0 GB free; free some space"):
        get(entry(archive), tmp_path / "not/there/yet")
    assert asked == [tmp_path]
    assert not web.requests
    assert not list(tmp_path.iterdir())


def test_space_is_reckoned_with_archives_coming_and_going(web, tmp_path, monkeypatch):
    one, two = (Archive(f"{name}.zip", (), 10 * 10**9, None, {}, 10**9) for name in "ab")
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=10**9))
    with pytest.raises(SegtailorError, match=r"about 12\.0 GB"):
        get(entry(one, two), tmp_path)


def voc_archives(web: Web, tmp_path: Path) -> tuple[Archive, Archive]:
    """VOC with train a, val b, and boundaries for a, b, c and d."""
    tree = tmp_path / "voc"
    for name in "ab":
        write_mask(tree / f"SegmentationClass/{name}.png", values=(0, 7, 255), palette=[9] * 768)
    for name in "abcd":
        write_image(tree / f"JPEGImages/{name}.jpg")
    files = {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*.*")}
    files |= {"ImageSets/Segmentation/train.txt": b"a\n", "ImageSets/Segmentation/val.txt": b"b\n"}
    voc = tarred({f"VOCdevkit/VOC2012/{name}": content for name, content in files.items()}, "w")
    masks = {f"b/dataset/cls/{name}.mat": matrix(np.full((12, 16), 20, np.uint8)) for name in "abcd"}
    sbd = tarred({**masks, "b/dataset/img/a.jpg": b"left out"})
    return (
        serve(web, "voc.tar", voc, {"VOCdevkit/VOC2012/": ""}),
        serve(web, "sbd.tgz", sbd, {"b/dataset/cls/": ".matlab/cls/"}),
    )


def test_boundaries_become_the_augmented_training_set(web, tmp_path):
    root = tmp_path / "root"
    message = get(entry(*voc_archives(web, tmp_path), convert=merge_boundaries), root)
    assert "SegmentationClassAug: 4 masks; trainaug.txt: 3 images" in message
    assert (root / "ImageSets/Segmentation/trainaug.txt").read_text() == "a\nc\nd\n"
    for name in "abcd":
        with Image.open(root / f"SegmentationClassAug/{name}.png") as file:
            assert file.mode == "L"
            mask = np.array(file)
        if name in "ab":  # VOC's own, with its void
            with Image.open(root / f"SegmentationClass/{name}.png") as file:
                assert np.array_equal(mask, np.array(file))
            assert set(np.unique(mask)) == {0, 7, 255}
        else:
            assert set(np.unique(mask)) == {20}
    assert not (root / ".matlab").exists()
    assert "is complete" in get(entry(*voc_archives(web, tmp_path), convert=merge_boundaries), root)


def test_an_interrupted_conversion_is_done_again(web, tmp_path):
    root = tmp_path / "root"
    archives = voc_archives(web, tmp_path)

    def interrupt(folder: Path, track) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(entry(*archives, convert=interrupt), root)
    web.requests.clear()
    assert "trainaug.txt: 3 images" in get(entry(*archives, convert=merge_boundaries), root)
    assert not web.requests


def test_stuff_10k_becomes_what_164k_stores(web, tmp_path):
    mask = np.array([[0, 1, 182], [92, 0, 5]])
    content = zipped({"annotations/x.mat": matrix(mask), "images/x.jpg": b"x", "imageLists/train.txt": b"x"})
    parts = {"annotations/": ".matlab/annotations/", "images/": "images/", "imageLists/": "imageLists/"}
    message = get(entry(serve(web, "s.zip", content, parts), convert=convert_stuff, variant="10k"), tmp_path)
    with Image.open(tmp_path / "annotations/x.png") as file:
        assert np.array(file).tolist() == [[255, 0, 181], [91, 255, 4]]
    assert names(tmp_path) == [".segtailor-get.json", "annotations/x.png", "imageLists/train.txt", "images/x.jpg"]
    assert "data: {name: street, variant: 10k, root:" in message


def test_a_matlab_file_that_is_something_else(web, tmp_path):
    path = tmp_path / "a.mat"
    for content in (b"nothing", matrix(np.zeros((2, 3, 4), np.uint8)), matrix(np.zeros((2, 3)))):
        path.write_bytes(content)
        with pytest.raises(UnreadableFile, match=r"holds no whole numbers|not a readable MATLAB file") as caught:
            read_boundaries_mask(Pair(path, path, "a"))
        assert "\n" not in str(caught.value)
    archive = serve(web, "s.zip", zipped({"annotations/x.mat": b"nothing"}), {"annotations/": ".matlab/annotations/"})
    with pytest.raises(SegtailorError, match=r"cannot read .*x\.mat: not a readable MATLAB file"):
        get(entry(archive, convert=convert_stuff), tmp_path / "root")


def test_boundaries_as_they_are_published(tmp_path):
    from scipy.io import savemat

    mask = np.array([[0, 15, 15], [20, 0, 0]], np.uint8)
    path = tmp_path / "b.mat"
    savemat(path, {"GTcls": {"Segmentation": mask, "CategoriesPresent": [15, 20]}}, do_compression=True)
    pair = Pair(path, path, "b")
    assert np.array_equal(read_boundaries_mask(pair), mask)
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(UnreadableFile, match="not a readable MATLAB file"):
        read_boundaries_mask(pair)
