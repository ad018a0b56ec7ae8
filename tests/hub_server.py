"""A Hub on this machine for tests: model repositories over HTTP, with its faults, and a client process to speak to it.

The client is a process of its own because huggingface_hub reads its settings when it is imported.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"
LARGE = (".safetensors", ".parquet", ".bin")


@dataclass
class Repo:
    """The commits of a repository, oldest first: id -> {name: content}."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha] = files
        return sha

    def at(self, revision: str) -> str | None:
        if revision == "main":
            return list(self.commits)[-1]
        return next((sha for sha in self.commits if sha == revision), None)


class Hub:
    """Repositories and faults; `requests` are (method, path, Range header or "")."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.uploads: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.cut: set[str] = set()  # names of files whose next download breaks off half-way
        self.damaged: set[str] = set()  # names of files that arrive with a byte changed
        self.is_down = False
        self.endpoint = ""

    def add(self, name: str, folder: Path, *, gated: bool = False) -> str:
        """Serve a folder's files as the next commit of a repository; its id."""
        repo = self.repos.setdefault(name, Repo(gated=gated))
        return repo.commit({path.name: path.read_bytes() for path in folder.iterdir()})

    def downloads(self, name: str) -> list[str]:
        """The Range headers of the downloads of a large file."""
        paths = re.compile(rf"/cdn/.*/{re.escape(name)}")
        return [told for method, path, told in self.requests if method == "GET" and paths.fullmatch(path)]


class _Answer(Exception):
    def __init__(self, status: int, code: str = "", body: Any = None, **headers: str) -> None:
        self.status, self.body = status, json.dumps({} if body is None else body).encode()
        self.headers = {**headers, "Content-Type": "application/json"} | ({"X-Error-Code": code} if code else {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._respond()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _respond(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if self.hub.is_down:
            self.close_connection = True
            return
        try:
            self._route(path)
        except _Sent:
            pass
        except _Answer as answer:
            self._send(answer.status, answer.headers, answer.body)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": headers.get("Content-Length", str(len(body)))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def _is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _route(self, path: str) -> None:
        if path == "/api/repos/create":
            self._create(json.loads(self.content))
        if path == "/api/validate-yaml":
            raise _Answer(200, body={"errors": [], "warnings": []})
        if self.command == "PUT" and path.startswith("/upload/"):
            self.hub.uploads[path.removeprefix("/upload/")] = self.content
            raise _Answer(200)
        patterns = {
            r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?": self._info,
            r"/api/models/([^/]+/[^/]+)/preupload/(.+)": self._preupload,
            r"/api/models/([^/]+/[^/]+)/commit/(.+)": self._commit,
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"/cdn/([0-9a-f]+)/(.+)": self._stored,
            r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self._file,
        }
        for pattern, answer in patterns.items():
            if match := re.fullmatch(pattern, path):
                answer(*match.groups())
        raise _Answer(404)

    def _repo(self, name: str, *, writing: bool = False) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._is_owner):
            raise _Answer(404 if self._is_owner else 401, "RepoNotFound")
        if writing and not self._is_owner:
            raise _Answer(403)
        return repo

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if not self._is_owner:
            raise _Answer(401)
        if name in self.hub.repos:
            raise _Answer(409, body={"url": f"{self.hub.endpoint}/{name}"})
        repo = self.hub.repos[name] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.commit({".gitattributes": b""})
        raise _Answer(200, body={"url": f"{self.hub.endpoint}/{name}"})

    def _info(self, name: str, revision: str | None) -> None:
        repo = self._repo(name)
        sha = repo.at(revision or "main")
        if sha is None:
            raise _Answer(404, "RevisionNotFound")
        siblings = []
        for file, content in repo.commits[sha].items():
            told = {"rfilename": file, "size": len(content), "blobId": _git_hash(content)}
            if file.endswith(LARGE):
                told["lfs"] = {"sha256": _hash(content), "size": len(content), "pointerSize": 130}
            siblings.append(told)
        facts = {"private": repo.private, "gated": "manual" if repo.gated else False}
        raise _Answer(200, body={"id": name, "sha": sha, "siblings": siblings, **facts})

    def _file(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name)
        if repo.gated and not self._is_owner:
            raise _Answer(401, "GatedRepo")
        sha = repo.at(revision)
        if sha is None:
            raise _Answer(404, "RevisionNotFound")
        if file not in repo.commits[sha]:
            raise _Answer(404, "EntryNotFound", **{"X-Repo-Commit": sha})
        content = repo.commits[sha][file]
        headers = {"X-Repo-Commit": sha}
        if not file.endswith(LARGE):
            self._send_part(file, content, {**headers, "ETag": f'"{_git_hash(content)}"'})
        digest = _hash(content)  # large files lie with another host
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        self.hub.stored[digest] = content
        raise _Answer(
            302, Location=f"{self.hub.endpoint}/cdn/{digest}/{file}".replace("127.0.0.1", "localhost"), **headers
        )

    def _stored(self, digest: str, file: str) -> None:
        if "Authorization" in self.headers:
            raise _Answer(400)  # tokens are not for strangers
        self._send_part(file, self.hub.stored[digest], {"ETag": f'"{digest}"'})

    def _send_part(self, file: str, content: bytes, headers: dict[str, str]) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        body = content[start:]
        headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(len(body))}
        if self.command == "GET" and file in self.hub.damaged:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if self.command == "GET" and file in self.hub.cut:
            self.hub.cut.remove(file)
            self.close_connection = True
            body = body[: len(body) // 2]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, headers, body)
        raise _Sent

    def _preupload(self, name: str, revision: str) -> None:
        self._repo(name, writing=True)
        files = json.loads(self.content)["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        raise _Answer(200, body={"files": modes})

    def _batch(self, name: str) -> None:
        self._repo(name, writing=True)
        objects = [
            {**asked, "actions": {"upload": {"href": f"{self.hub.endpoint}/upload/{asked['oid']}"}}}
            for asked in json.loads(self.content)["objects"]
        ]
        raise _Answer(200, body={"transfer": "basic", "objects": objects})

    def _commit(self, name: str, revision: str) -> None:
        repo = self._repo(name, writing=True)
        files = dict(repo.commits[str(repo.at(revision))])
        for line in self.content.splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif change["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(files)
        url = f"{self.hub.endpoint}/{name}/commit/{sha}"
        raise _Answer(200, body={"success": True, "commitOid": sha, "commitUrl": url})


class _Sent(Exception):
    """The answer is on its way."""


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


# The client process


class Client:
    """Calls functions below in a process with its own Hub settings. A MemsslError comes back as a `Refused`."""

    def __init__(self, home: Path, endpoint: str, *, offline: bool = False) -> None:
        self.home = home
        settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "1" if offline else "0"}
        settings |= {
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "MEMSSL_HOME": str(home / "memssl"),
        }
        root = Path(__file__).resolve().parents[1]
        environment = {key: value for key, value in os.environ.items() if key != "HF_TOKEN"} | settings
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=environment | {"PYTHONPATH": str(root)},
        )

    def __call__(self, name: str, *args: Any, token: str = "", **named: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([name, args, named, token]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer["result"]

    def close(self) -> None:
        self.process.communicate(timeout=20)


class Refused(Exception):
    """The sentence of a MemsslError in the client."""


def _publish(folder: str, repo: str, **named: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from memssl_core.bundle.hub import publish

    return asdict(publish(folder, repo, **named))


def _fetch(source: str, stop_after: int | None = None) -> list[dict[str, Any]]:
    from memssl_core.bundle import hub
    from memssl_core.sources import fetch

    hub.PROGRESS_S, hub.WAIT_S = 0.0, 0.01
    told: list[dict[str, Any]] = []
    fetch(
        source,
        emit=lambda event, **facts: told.append({"event": event, **facts}),
        should_stop=lambda: stop_after is not None and bool(told) and told[-1]["step"] >= stop_after,
    )
    return told


def _open(source: str) -> dict[str, Any]:
    import torch

    from memssl_core.sources import open_model

    model = open_model(source)
    side = model.transform.crop_px
    pixels = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side)
    return {
        "card": model.card,
        "name": model.name,
        "hash": model.model_hash,
        "embedding": model.backbone(pixels).tolist(),
    }


def _state(source: str) -> str:
    from memssl_core.sources import source_state

    return str(source_state(source))


def _is_cached(source: str) -> bool:
    from memssl_core.sources import is_cached

    return is_cached(source)


def _catalogue() -> list[dict[str, Any]]:
    from dataclasses import asdict

    from memssl_core import paths
    from memssl_core.catalogue import catalogue

    return [asdict(entry) for entry in catalogue(runs=paths.runs_dir(), bundles=paths.bundles_dir())]


def _main() -> None:
    from memssl_core.errors import MemsslError

    names = {"publish": _publish, "fetch": _fetch, "open": _open, "state": _state}
    names |= {"is_cached": _is_cached, "catalogue": _catalogue}
    for line in sys.stdin:
        name, args, named, token = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if token:
            os.environ["HF_TOKEN"] = token
        try:
            answer = {"result": names[name](*args, **named)}
        except MemsslError as reason:
            answer = {"refused": str(reason)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
