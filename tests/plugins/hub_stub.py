"""As much of the Hugging Face Hub as publishing a dataset asks of it, on this machine: repositories in memory, and a record of requests."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from stub_server import address, listening

TOKEN = "hf_secretsecretsecret"  # noqa: S105 - of the stub


class Hub:
    """repos: name -> file -> bytes. `refuse`: part of a path -> (status, what is said). `ignore`: files that a commit drops."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.heads: dict[str, str] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[tuple[str, list[str], list[str]]] = []
        self.asked: list[tuple[str, str, str | None]] = []
        self.created: list[dict[str, Any]] = []
        self.refuse: dict[str, tuple[int, str]] = {}
        self.ignore: set[str] = set()
        self.url = ""

    def put(self, repo: str, files: dict[str, bytes]) -> None:
        self.repos[repo] = files
        self.heads[repo] = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()  # noqa: S324

    def create(self, sent: dict[str, Any]) -> tuple[int, Any]:
        repo = f"{sent['organization']}/{sent['name']}" if sent.get("organization") else f"me/{sent['name']}"
        self.created.append(sent)
        self.put(repo, {".gitattributes": b"*.parquet filter=lfs\n"})
        return 200, {"url": f"{self.url}/datasets/{repo}", "name": repo}

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        head = lines[0]["value"]
        if head.get("parentCommit", self.heads[repo]) != self.heads[repo]:
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        files = dict(self.repos[repo])
        written, removed = [], []
        for line in lines[1:]:
            name = line["value"]["path"]
            if line["key"] == "file":
                files[name] = base64.b64decode(line["value"]["content"])
                written.append(name)
            elif line["key"] == "lfsFile":
                files[name] = self.large[line["value"]["oid"]]
                written.append(name)
            else:
                del files[name]
                removed.append(name)
        self.put(repo, {name: data for name, data in files.items() if name not in self.ignore})
        self.commits.append((head["summary"], written, removed))
        return 200, {"commitUrl": f"{self.url}/datasets/{repo}/commit/{self.heads[repo]}", "commitOid": self.heads[repo]}

    def tree(self, repo: str) -> list[dict[str, Any]]:
        rows = []
        for name, data in self.repos[repo].items():
            git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()  # noqa: S324
            row = {"type": "file", "path": name, "size": len(data), "oid": git}
            if name.endswith(".parquet"):
                row |= {
                    "oid": "0" * 40,
                    "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130},
                }
            rows.append(row)
        return rows

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        path = path.partition("?")[0]
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/large/"):
            self.large[path.removeprefix("/large/")] = body
            return 200, {}
        parts = path.removeprefix("/api").removeprefix("/datasets/").split("/")
        repo = "/".join(parts[:2]).removesuffix(".git")
        rest = "/".join(parts[2:])
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}
        if rest.startswith("resolve/"):
            return 200, self.repos[repo]["/".join(parts[4:])]
        if rest.startswith("tree/"):
            return 200, self.tree(repo)
        if rest.startswith("preupload/"):
            sent = [found["path"] for found in json.loads(body)["files"]]
            mode = {name: "lfs" if name.endswith(".parquet") else "regular" for name in sent}
            return 200, {"files": [{"path": n, "uploadMode": mode[n], "shouldIgnore": n in self.ignore} for n in sent]}
        if rest == "info/lfs/objects/batch":
            wanted = json.loads(body)["objects"]
            made = [{**found, "actions": {"upload": {"href": f"{self.url}/large/{found['oid']}"}}} for found in wanted]
            return 200, {"transfer": "basic", "objects": made}
        if rest.startswith("commit/"):
            return self.commit(repo, [json.loads(line) for line in body.splitlines()])
        return 200, {"id": repo, "sha": self.heads[repo], "siblings": [], "private": False}


@contextmanager
def serving_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.asked.append((self.command, self.path, self.headers.get("Authorization")))
            status, said = next((told for part, told in hub.refuse.items() if part in self.path), (0, ""))
            found: Any = {"error": said}
            if not status:
                status, found = hub.answer(self.command, self.path, body)
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            elif status != 200:
                self.send_header("X-Error-Message", found["error"])
            if "/resolve/" in self.path:
                self.send_header("X-Repo-Commit", hub.heads["/".join(self.path.split("/")[2:4])])
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

        def log_message(self, *given: Any) -> None:
            pass

    with listening(Handler) as http:
        hub.url = address(http)
        yield hub
