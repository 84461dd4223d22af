"""A web server on this machine that fails on demand, and the archives that it serves."""

from __future__ import annotations

import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from scipy.io import savemat


class Web:
    """Serves ``files`` by path. Lists are used up from the front, one entry a request.

    ``answers``: status codes given instead of a file (None: the file). ``cuts``: bytes after which the connection is
    closed (None: never). ``requests`` records the paths.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: list[int | None] = []
        self.cuts: list[int | None] = []
        self.requests: list[str] = []
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
        path = handler.path.lstrip("/")
        self.requests.append(path)
        code = self.answers.pop(0) if self.answers else None
        code = code or (200 if path in self.files else 404)
        content = self.files[path] if code == 200 else b""
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: self.cuts.pop(0) if content and self.cuts else None])
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


def matrix(mask: np.ndarray) -> bytes:
    """Return a MATLAB file with ``mask`` as COCO-Stuff and as the Semantic Boundaries Dataset store it."""
    content = io.BytesIO()
    savemat(content, {"S": mask, "GTcls": {"Segmentation": mask}})
    return content.getvalue()
