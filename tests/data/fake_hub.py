"""As much of the Hugging Face Hub, on 127.0.0.1, as reading a data set asks of it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

REVISION = "a" * 40


class FakeHub(ThreadingHTTPServer):
    """Serves the files below ``root`` as the data set ``repository``; ``log`` holds (method, path, range)."""

    def __init__(self, root: Path, repository: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.repository = root, repository
        self.log: list[tuple[str, str, str | None]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())

    def list_folder(self, folder: str) -> list[dict]:
        files = [file for file in self.files() if str(Path(file).parent) == (folder or ".")]
        folders = {Path(file).parent.as_posix() for file in self.files() if "/" in file and not folder}
        return [
            {"type": "file", "oid": "c" * 40, "size": (self.root / file).stat().st_size, "path": file} for file in files
        ] + [{"type": "directory", "oid": "b" * 40, "size": 0, "path": name} for name in sorted(folders)]


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_GET  # noqa: N815

    def _answer(self) -> None:
        hub, path = self.server, urlsplit(self.path).path
        hub.log.append((self.command, path, self.headers.get("Range")))
        api = f"/api/datasets/{hub.repository}"
        tree = f"{api}/tree/{REVISION}"
        resolved = re.fullmatch(rf"/datasets/{hub.repository}/resolve/[^/]+/(.*)", path)
        if path in (api, f"{api}/revision/main", f"{api}/revision/{REVISION}"):
            siblings = [{"rfilename": file} for file in hub.files()]
            info = {"id": hub.repository, "sha": REVISION, "private": False, "gated": False, "disabled": False}
            self._send_json({**info, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings})
        elif path == tree or path.startswith(f"{tree}/"):
            self._send_json(hub.list_folder(path.removeprefix(tree).strip("/")))
        elif resolved and resolved[1] in hub.files():
            self._send_file((hub.root / resolved[1]).read_bytes())
        else:
            code = "EntryNotFound" if f"/{hub.repository}" in path else "RepoNotFound"
            self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send_json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send_file(self, content: bytes) -> None:
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": REVISION,
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self._send(200, content, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        self._send(206, content[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
