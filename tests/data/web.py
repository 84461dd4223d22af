"""A web server on this machine that misbehaves as told, and what it serves."""

from __future__ import annotations

import io
import sys
import tarfile
import threading
import types
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np


class Web:
    """Serves ``files`` by path. Lists are used up from the front, one entry a request.

    ``answers``: status codes given instead of a file (None: the file). ``cuts``: bytes after which the connection is
    closed (None: never). ``requests`` records path and Range header.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: list[int | None] = []
        self.cuts: list[int | None] = []
        self.headers: dict[str, str] = {}
        self.edition: str | None = '"one"'
        self.ranges = self.lengths = True
        self.requests: list[tuple[str, str | None]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, wanted = handler.path.lstrip("/"), handler.headers.get("Range")
        self.requests.append((path, wanted))
        code = self.answers.pop(0) if self.answers else None
        content = self.files.get(path)
        if code is not None or content is None:
            handler.send_response(code or 404)
            for name, value in self.headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start, condition = 0, handler.headers.get("If-Range")
        if wanted and self.ranges and condition in (None, self.edition):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(content)}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        if self.lengths:
            handler.send_header("Content-Length", str(len(content) - start))
        if self.edition:
            handler.send_header("ETag", self.edition)
        handler.end_headers()
        cut = self.cuts.pop(0) if self.cuts else None
        handler.wfile.write(content[start : None if cut is None else start + cut])
        handler.wfile.flush()
        handler.close_connection = True


def zipped(files: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def tarred(files: dict[str, bytes], mode="w:gz") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def fake_scipy(monkeypatch) -> None:
    """Put a stand-in in the place of scipy.io, whose files are NumPy's."""

    def loadmat(path: Path, variable_names: object = None) -> dict:
        mask = np.load(path)
        return {"S": mask, "GTcls": [{"Segmentation": [mask]}]}

    names = ("scipy", "scipy.io", "scipy.io.matlab")
    scipy, inner, matlab = (types.ModuleType(name) for name in names)
    scipy.io, inner.loadmat, inner.matlab = inner, loadmat, matlab
    matlab.MatReadError = type("MatReadError", (Exception,), {})
    for name, module in zip(names, (scipy, inner, matlab), strict=True):
        monkeypatch.setitem(sys.modules, name, module)


def matrix(mask: np.ndarray) -> bytes:
    """Return the content of a file of the stand-in."""
    content = io.BytesIO()
    np.save(content, mask)
    return content.getvalue()
