"""A hub of our own on this machine: the few requests that fetching makes, answered from a folder.

    root/models/ORG/NAME/..., root/datasets/ORG/NAME/..., root/models/ORG/NAME@BRANCH/...

`serve(root)` gives a Hub: its address, what was asked, and what it shall refuse. Files that are larger than LFS_FROM are
said to be LFS files, with their sha256 as name, as on the real one. Who has a token of `tokens` may write to repositories of
that user: create one or a branch, upload a file, commit; a commit is made whole or not at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS_FROM = 1000


@dataclass
class Hub:
    root: Path
    commit: str = "a" * 40
    url: str = ""
    asked: list[str] = field(default_factory=list)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)  # part of a path -> status, error code
    cut: set[str] = field(default_factory=set)  # files of which half is sent
    tokens: dict[str, str] = field(default_factory=dict)  # token -> user
    private: dict[str, bool] = field(default_factory=dict)  # of repositories that were made by a request
    heads: dict[str, str] = field(default_factory=dict)  # "owner/name" or "owner/name@branch" -> its last commit
    uploaded: dict[str, bytes] = field(default_factory=dict)  # LFS files, by sha256
    messages: list[str] = field(default_factory=list)  # of commits

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

        def do_POST(self) -> None:
            self.answer()

        def do_PUT(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path.strip("/"))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.asked.append(f"{self.command} {path}")
            for part, (status, code) in hub.refused.items():
                if part in path:
                    return self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})
            if self.command in ("POST", "PUT") or path == "api/whoami-v2":
                return self.write(path, body)
            if path.startswith("api/"):
                return self.describe(path.removeprefix("api/"))
            name, _, rest = path.partition("/resolve/")
            revision, _, name_of_file = rest.partition("/")
            kind = "datasets/" if name.startswith("datasets/") else "models/"
            repo = name.removeprefix("datasets/")
            if self.hidden(repo):
                return self.send(401, b"", {"X-Error-Code": "RepoNotFound"})
            place = self.place(repo, revision)
            file = hub.root / kind / (place or repo) / name_of_file
            if not file.is_file():
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            tag = digest if len(content) > LFS_FROM else digest[:40]
            commit = hub.heads.get(place or repo, hub.commit)
            self.send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": commit}, name_of_file)

        def describe(self, path: str) -> None:
            kind, _, name = path.partition("/")
            repo, _, revision = name.partition("/revision/")
            if not (hub.root / kind / repo).is_dir() or self.hidden(repo):
                return self.send(401 if self.hidden(repo) else 404, b"{}", {"X-Error-Code": "RepoNotFound"})
            place = self.place(repo, revision)
            if place is None:
                return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            folder = hub.root / kind / place
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            siblings = [{"rfilename": f.relative_to(folder).as_posix(), "size": f.stat().st_size} for f in files]
            commit, private = hub.heads.get(place, hub.commit), hub.private.get(repo, False)
            facts = {"id": repo, "sha": commit, "siblings": siblings, "private": private, "tags": [], "downloads": 0}
            self.send(200, json.dumps(facts).encode())

        def user(self) -> str | None:
            return hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

        def hidden(self, repo: str) -> bool:
            return hub.private.get(repo, False) and self.user() != repo.partition("/")[0]

        def place(self, repo: str, revision: str) -> str | None:
            """The folder with a revision's files; None if there is no such revision of a repository made here."""
            named = {f"{repo}@{revision}", *(place for place, commit in hub.heads.items() if commit == revision)}
            places = [place for place in named if place.partition("@")[0] == repo and place in hub.heads]
            fixed = repo not in hub.private or revision in ("", "main")
            return places[0] if places and not fixed else repo if fixed else None

        def write(self, path: str, body: bytes) -> None:
            """The requests of an upload."""
            if path.startswith("lfs/"):
                hub.uploaded[path.removeprefix("lfs/")] = body
                return self.send(200, b"")
            user = self.user()
            if user is None:
                return self.send(401, b'{"error": "Invalid username or password."}')
            if path == "api/whoami-v2":
                return self.say({"type": "user", "name": user, "orgs": []})
            if path == "api/validate-yaml":
                return self.say({"errors": [], "warnings": []})
            if path == "api/repos/create":
                wanted = json.loads(body)
                repo = f"{wanted.get('organization') or user}/{wanted['name']}"
                if repo.partition("/")[0] != user:
                    return self.send(403, b'{"error": "forbidden"}')
                (hub.root / "models" / repo).mkdir(parents=True)
                (hub.root / "models" / repo / ".gitattributes").write_text("*.safetensors filter=lfs")
                hub.private[repo] = wanted.get("private") is True or wanted.get("visibility") == "private"
                return self.committed(repo)
            repo, _, rest = path.removeprefix("api/models/").partition(".git/info/lfs/")
            if rest:
                objects = [self.upload(file) for file in json.loads(body)["objects"]]
                return self.say({"transfer": "basic", "objects": objects})
            owner, name, what, branch = path.removeprefix("api/models/").split("/", 3)
            repo = f"{owner}/{name}"
            if owner != user:
                return self.send(403, b'{"error": "forbidden"}')
            if what == "preupload":
                files = [self.mode(file) for file in json.loads(body)["files"]]
                return self.say({"files": files})
            if what == "branch":
                shutil.copytree(hub.root / "models" / repo, hub.root / "models" / f"{repo}@{branch}")
                return self.committed(f"{repo}@{branch}")
            assert what == "commit", path
            return self.commit(repo if branch == "main" else f"{repo}@{branch}", body)

        def upload(self, file: dict) -> dict:
            place = f"{hub.url}/lfs/{file['oid']}"
            return file if file["oid"] in hub.uploaded else {**file, "actions": {"upload": {"href": place}}}

        def mode(self, file: dict) -> dict:
            how = "lfs" if file["size"] > LFS_FROM else "regular"
            return {"path": file["path"], "uploadMode": how, "shouldIgnore": False, "oid": None}

        def commit(self, place: str, body: bytes) -> None:
            lines = [json.loads(line) for line in body.splitlines()]
            header = next(line["value"] for line in lines if line["key"] == "header")
            if header.get("parentCommit") not in (None, hub.heads.get(place, hub.commit)):
                return self.send(412, b'{"error": "the branch has moved"}')
            folder = hub.root / "models" / place
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    continue
                file = folder / value["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                if line["key"] == "deletedFile":
                    file.unlink()
                else:
                    lfs = line["key"] == "lfsFile"
                    file.write_bytes(hub.uploaded[value["oid"]] if lfs else base64.b64decode(value["content"]))
            hub.messages.append(header["summary"])
            self.committed(place)

        def committed(self, place: str) -> None:
            digest = hashlib.sha256(f"{place} {len(hub.messages)} {len(hub.heads)}".encode()).hexdigest()[:40]
            hub.heads[place] = digest
            repo = place.partition("@")[0]
            self.say(
                {"url": f"{hub.url}/{repo}", "commitUrl": f"{hub.url}/{repo}/commit/{digest}", "commitOid": digest}
            )

        def say(self, facts: dict) -> None:
            self.send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

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
