"""Fetching one file over HTTP: resumed where it stopped, tried again with growing pauses."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from segtailor._version import __version__
from segtailor.data.download.archive import Archive
from segtailor.errors import SegtailorError

CHUNK = 2**20
TIMEOUT = 60.0
# Fruitless tries in a row at one address; one that brought something starts the count anew.
TRIES = 5
LONGEST_PAUSE = 60.0
# Answers that may be better later.
PASSING = frozenset({408, 425, 429})

Advance = Callable[[int, int | None], object]
"""Told the bytes there are and the bytes there will be, where known."""


class Unfetched(Exception):  # noqa: N818
    """An address that does not give the file; the message is a short reason."""


def fetch(
    archive: Archive,
    folder: Path,
    *,
    urls: Sequence[str] | None = None,
    advance: Advance = lambda have, whole: None,
    pause: Callable[[float], object] = time.sleep,
) -> Path:
    """Return ``folder / archive.file``, fetched from the first of ``urls`` (default: the archive's) that gives it.

    A file that is there already is taken. What arrives is kept as ``FILE.part``, from which a later try or call goes on
    where the server can do so. Raises ``SegtailorError``, on one line, when no address gives the file.
    """
    target = folder / archive.file
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in urls or archive.urls:
        try:
            _fetch_from(url, archive, target, advance, pause)
            return target
        except Unfetched as reason:
            reasons.append(f"{url}: {reason}")
    kept = ", what has arrived is kept" if _part(target).exists() else ""
    raise SegtailorError(
        f"cannot fetch {archive.file} ({'; '.join(reasons)}); check the network and give the same command again{kept}, "
        f"or put the file into {folder} yourself"
    )


def _fetch_from(url: str, archive: Archive, target: Path, advance: Advance, pause: Callable[[float], object]) -> None:
    part, fruitless = _part(target), 0
    while True:
        before = _length(part)
        try:
            whole = _read_on(url, archive, part, advance)
            if whole is None or _length(part) == whole:
                part.replace(target)
                _origin(part).unlink(missing_ok=True)
                return
            reason = f"the connection ended after {_length(part)} of {whole} bytes"
            wait = 0.0
        except _Passing as error:
            reason, wait = str(error), error.wait
        fruitless = 0 if _length(part) > before else fruitless + 1
        if fruitless == TRIES:
            raise Unfetched(f"{reason}, {TRIES} times")
        pause(min(max(wait, 2.0**fruitless), LONGEST_PAUSE))


class _Passing(Exception):  # noqa: N818
    """A failure that may pass; ``wait`` is what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def _read_on(url: str, archive: Archive, part: Path, advance: Advance) -> int | None:
    """Append to ``part`` what it lacks and return the whole file's length, None where the server does not say."""
    origin = _read_origin(part)
    if _length(part) and not (origin.get("url") == url or archive.checksum):
        part.unlink()  # another address may hold another edition, and no checksum would tell
    have = _length(part)
    headers = {"User-Agent": f"segtailor/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if origin.get("url") == url and origin.get("edition"):
            headers["If-Range"] = origin["edition"]
    with _open(urllib.request.Request(url, headers=headers), part) as answer:
        if answer is None:  # nothing left to read
            return have
        start = have if answer.status == 206 and _starts_at(answer) == have else 0
        if answer.status == 206 and start != have:
            raise Unfetched("the server sends another part of the file than it was asked for")
        length = answer.headers.get("Content-Length")
        whole = start + int(length) if length is not None else None
        if archive.exact and whole is not None and whole != archive.length:
            raise Unfetched(f"it is {whole} bytes there, not {archive.length}; that is another file")
        edition = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if edition and edition.startswith("W/"):
            edition = None  # says that the content means the same, not that the bytes are
        _origin(part).write_text(json.dumps({"url": url, "edition": edition}), encoding="utf-8")
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            for chunk in _chunks(answer):
                file.write(chunk)
                advance(file.tell(), whole)
    return whole


def _open(request: urllib.request.Request, part: Path) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                # the part is whole already, or longer than the file there
                if error.headers.get("Content-Range", "").rpartition("/")[2] == str(_length(part)):
                    return _Nothing()
                part.unlink(missing_ok=True)
                raise _Passing("the part that was here did not fit") from error
            reason = f"HTTP {error.code} {error.reason}".strip()
            if error.code in PASSING or error.code >= 500:
                after = error.headers.get("Retry-After", "")
                raise _Passing(reason, float(after) if after.isdigit() else 0.0) from error
            raise Unfetched(reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(_why(error)) from error


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        pass


def _chunks(answer: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk: bytes = answer.read(CHUNK)
        except http.client.IncompleteRead as error:
            chunk = error.partial
            if not chunk:
                raise _Passing("the connection ended early") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(_why(error)) from error
        if not chunk:
            return
        yield chunk


def _starts_at(answer: Any) -> int:
    first = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else -1


def _why(error: BaseException) -> str:
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return f"no answer in {TIMEOUT:.0f} s"
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return " ".join(str(text).split())


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _origin(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_origin(part: Path) -> dict[str, str]:
    try:
        content = json.loads(_origin(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
