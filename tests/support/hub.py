"""A hub on loopback that speaks enough of the protocol to publish to and fetch from."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from support.http_server import QuietServer

TOKEN = "hf_secretOfTheTest"
COMMIT = "2" * 40
MODEL_COMMIT = "3" * 40


@dataclass
class Hub:
    """What the hub was told."""

    endpoint: str = ""
    created: list[dict[str, object]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    refused: int = 0
    datasets: dict[str, bytes] = field(default_factory=dict)  # `owner/name/resolve/revision/path`
    models: dict[str, bytes] = field(default_factory=dict)  # `owner/name/path`
    makes_none: bool = False  # nobody may make a repository
    gated: bool = False  # models are given to nobody
    requests: list[str] = field(default_factory=list)


@contextmanager
def running() -> Iterator[Hub]:
    """Serve a hub until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        store = hub

    server = QuietServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    store: Hub

    def do_POST(self) -> None:
        """Create, ask how to upload, or commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.store.refused += 1
            self._answer({"error": "Invalid username or password."}, code=401)
        elif self.path == "/api/repos/create" and self.store.makes_none:
            self._answer({"error": "You don't have the rights to create a model."}, code=403)
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            created = wanted in self.store.created
            self.store.created.append(wanted)
            where = {"url": f"{self.store.endpoint}/me/model", "id": "me/model"}
            self._answer(where, code=409 if created else 200)
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in wanted
            ]
            self._answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    "oid": one["oid"],
                    "size": one["size"],
                    "actions": {"upload": {"href": f"{self.store.endpoint}/put/{one['oid']}"}},
                }
                for one in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._answer({"error": f"no such place: {self.path}"}, code=404)

    def do_PUT(self) -> None:
        """Take the bytes of a large file."""
        oid = self.path.rpartition("/")[2]
        length = self.headers.get("Content-Length")
        self.store.stored[oid] = self.rfile.read(int(length)) if length else self._chunks()
        self._answer({})

    def do_GET(self) -> None:
        """Tell what a repository is, list a data set, or give a file of it."""
        if self.path.startswith("/datasets/"):
            self._file()
        elif self.path.startswith("/api/datasets/"):
            self._list()
        elif "/resolve/" in self.path:
            self._model_file()
        elif self.path.startswith("/api/models/") and self.store.models:
            self._listing()
        else:
            self._answer({"id": "me/model", "sha": "0" * 40, "siblings": [], "files": []})

    def do_HEAD(self) -> None:
        """Tell that something is there."""
        if self.path.startswith("/datasets/"):
            self._file()
        elif "/resolve/" in self.path:
            self._model_file()
        else:
            self._answer({})

    def _listing(self) -> None:
        """Tell the commit and the files of a model, or that there is none."""
        name, _, ask = self.path.removeprefix("/api/models/").partition("?")[0].partition("/revi")
        name, _, tree = name.partition("/tree/")
        files = [at.removeprefix(f"{name}/") for at in self.store.models if at.startswith(name)]
        if self.store.gated or not files:
            code = "GatedRepo" if self.store.gated else "RepoNotFound"
            self._refuse(403 if self.store.gated else 404, code)
        elif tree:
            sizes = {at: len(self.store.models[f"{name}/{at}"]) for at in files}
            file = {"type": "file", "oid": "0" * 40}
            self._answer([file | {"path": at, "size": size} for at, size in sizes.items()])
        else:
            there = {"id": name, "sha": MODEL_COMMIT, "siblings": [{"rfilename": f} for f in files]}
            self._answer(there if ask else {"id": name})

    def _model_file(self) -> None:
        """Give a file of a model at any revision."""
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        key = f"{name}/{rest.partition('/')[2]}"
        self._give(self.store.models.get(key), MODEL_COMMIT)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _list(self) -> None:
        """Name the commit of a revision of a data set, and its files."""
        self.store.requests.append(f"{self.command} {self.path}")
        repo, _, revision = self.path.removeprefix("/api/datasets/").partition("/revision/")
        start = f"{repo}/resolve/{revision}/"
        names = [name.removeprefix(start) for name in self.store.datasets if name.startswith(start)]
        files = [{"rfilename": name} for name in names]
        self._answer({"id": repo, "sha": COMMIT, "siblings": files}, code=200 if names else 404)

    def _file(self) -> None:
        """Give a file of a data set, or only its size, commit and hash."""
        wanted = self.path.removeprefix("/datasets/")
        body = self.store.datasets.get(wanted)
        for name in self.store.datasets:  # every revision here is the same commit
            repo, _, rest = name.partition("/resolve/")
            if wanted == f"{repo}/resolve/{COMMIT}/{rest.partition('/')[2]}":
                body = self.store.datasets[name]
        self._give(body, COMMIT)

    def _give(self, body: bytes | None, commit: str) -> None:
        """Answer with a file and what is known of it, or that there is none."""
        self.store.requests.append(f"{self.command} {self.path}")
        self.send_response(404 if body is None else 200)
        if body is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(body or b"")))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(body or b"").hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    def _chunks(self) -> bytes:
        """Read a body that comes in pieces, each with its length before it."""
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _commit(self, body: bytes) -> None:
        for line in body.splitlines():
            part = json.loads(line)
            value = part["value"]
            if part["key"] == "header":
                self.store.commits.append(value["summary"])
            elif part["key"] == "file":
                self.store.files[value["path"]] = base64.b64decode(value["content"])
            elif part["key"] == "lfsFile":
                self.store.files[value["path"]] = self.store.stored[value["oid"]]
        url = f"{self.store.endpoint}/me/model/commit/{'1' * 40}"
        self._answer({"commitUrl": url, "commitOid": "1" * 40, "success": True})

    def _answer(self, value: object, *, code: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
