"""A hub of our own on this machine: the few requests that fetching makes, answered from a folder.

    root/models/ORG/NAME/..., root/datasets/ORG/NAME/...

`serve(root)` gives a Hub: its address, what was asked, and what it shall refuse. Files that are larger than LFS_FROM are
said to be LFS files, with their sha256 as name, as on the real one.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

LFS_FROM = 1000


@dataclass
class Hub:
    root: Path
    commit: str = "a" * 40
    url: str = ""
    asked: list[str] = field(default_factory=list)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)  # part of a path -> status, error code
    cut: set[str] = field(default_factory=set)  # files of which half is sent

    def got(self) -> list[str]:
        """The files that were downloaded, in order."""
        return [word.partition(" ")[2] for word in self.asked if word.startswith("GET ") and "/resolve/" in word]


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    hub = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = urlsplit(self.path).path.strip("/")
            hub.asked.append(f"{self.command} {path}")
            for part, (status, code) in hub.refused.items():
                if part in path:
                    return self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})
            if path.startswith("api/"):
                return self.describe(path.removeprefix("api/"))
            name, _, rest = path.partition("/resolve/")
            folder = hub.root / (name if name.startswith("datasets/") else f"models/{name}")
            file = folder / rest.partition("/")[2]
            if not file.is_file():
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            tag = digest if len(content) > LFS_FROM else digest[:40]
            self.send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": hub.commit}, rest.partition("/")[2])

        def describe(self, path: str) -> None:
            kind, _, name = path.partition("/")
            folder = hub.root / kind / name.partition("/revision/")[0]
            if not folder.is_dir():
                return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            siblings = [{"rfilename": f.relative_to(folder).as_posix(), "size": f.stat().st_size} for f in files]
            found = {"id": name, "sha": hub.commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            self.send(200, json.dumps(found).encode())

        def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, name: str = "") -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if name in hub.cut:
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                return
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
