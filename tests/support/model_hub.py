"""A hub on loopback with models, accounts and gates that answers as the official one does.

Statuses, codes and messages are those that huggingface_hub's own errors and users' reports quote:
https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/errors.py (GatedRepo),
https://github.com/kubeai-project/kubeai/issues/155 (403), and
https://github.com/vladmandic/sdnext/issues/4043 (401).
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40
ANONYMOUS = ""
NOT_LISTED = (
    "Access to model {repo} is restricted and you are not in the authorized list. "
    "Visit https://huggingface.co/{repo} to ask for access."
)
NOT_SIGNED_IN = (
    "Access to model {repo} is restricted. You must have access to it and be authenticated to "
    "access it. Please log in."
)
AWAITING = "Your request to access model {repo} is awaiting a review from the repo authors."
REJECTED = "Your request to access model {repo} has been rejected by the repo's authors."
FINE_GRAINED = (
    "Please enable access to public gated repositories in your fine-grained token settings to view "
    "this repository."
)


@dataclass
class Repository:
    """A repository of a model."""

    files: dict[str, bytes]
    gated: str | bool = False
    private: bool = False
    readers: set[str] = field(default_factory=set)
    """Users who may have the files of a gated or private one."""
    awaiting: set[str] = field(default_factory=set)
    rejected: set[str] = field(default_factory=set)
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    """Branches and tags with the commit that each means."""
    card: Mapping[str, object] = field(default_factory=dict)


@dataclass
class ModelHub:
    """What the hub has, and what it was asked."""

    endpoint: str = ""
    models: dict[str, Repository] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    """Data sets and spaces by their ids: `datasets` or `spaces`."""
    users: dict[str, dict[str, object]] = field(default_factory=dict)
    """What `whoami-v2` answers to each token."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and token of every request."""
    trouble: int = 0
    """A status with which everything is answered, if it is not 0."""
    awake: threading.Event = field(default_factory=threading.Event)
    """Nothing is answered while it is not set."""

    def sign_up(self, name: str, role: str = "read", permissions: tuple[str, ...] = ()) -> str:
        """Make a user with a token of that role; return the token."""
        token = f"hf_{hashlib.sha256(f'{name} {role}'.encode()).hexdigest()[:34]}"
        access: dict[str, object] = {"displayName": "test", "role": role}
        if role == "fineGrained":
            scoped = [{"entity": {"type": "user", "name": name}, "permissions": list(permissions)}]
            access["fineGrained"] = {"canReadGatedRepos": True, "global": [], "scoped": scoped}
        auth = {"type": "access_token", "accessToken": access}
        self.users[token] = {"type": "user", "name": name, "auth": auth}
        return token

    def fetched(self) -> list[str]:
        """The files that were given, in order."""
        return [
            path.partition("/resolve/")[2].partition("/")[2]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]


@contextmanager
def running() -> Iterator[ModelHub]:
    """Serve a hub until the block ends."""
    hub = ModelHub()
    hub.awake.set()

    class Handler(_Handler):
        store = hub

    server = _Server(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        hub.awake.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    """A server for which a caller that has gone is no trouble."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report anything but a caller who did not wait for the answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    store: ModelHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Tell of a file or a place."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer a question, or give a file."""
        self.store.awake.wait()
        where = urlsplit(self.path)
        path = unquote(where.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.store.requests.append((self.command, path, token))
        if self.store.trouble:
            self._refuse(self.store.trouble, "", "Internal Error")
        elif token and token not in self.store.users:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif path == "/api/whoami-v2":
            self._whoami(token)
        elif path == "/api/models":
            self._search(parse_qs(where.query))
        elif path.startswith("/api/models/"):
            self._model(path.removeprefix("/api/models/"), token)
        elif path.startswith("/api/"):
            kind, _, repo = path.removeprefix("/api/").partition("/")
            if self.store.others.get(repo) == kind:
                self._json({"id": repo, "sha": COMMIT, "siblings": []})
            else:
                self._not_found(token)
        elif "/resolve/" in path:
            repo, _, rest = path.lstrip("/").partition("/resolve/")
            self._file(repo, *rest.partition("/")[::2], token)
        else:
            self._json({})

    def _whoami(self, token: str) -> None:
        if token:
            self._json(self.store.users[token])
        else:
            self._refuse(401, "", "Invalid username or password.")

    def _search(self, query: dict[str, list[str]]) -> None:
        """List models by owner or by a part of their names."""
        author, part = query.get("author", [""])[0], query.get("search", [""])[0]
        found = [
            {"id": repo, "modelId": repo}
            for repo in self.store.models
            if repo.startswith(f"{author}/" if author else "") and part.lower() in repo.lower()
        ]
        self._json(found)

    def _user(self, token: str) -> str:
        return str(self.store.users[token]["name"]) if token else ANONYMOUS

    def _visible(self, repo: str, token: str) -> Repository | None:
        """The repository, if this user may see that it is there."""
        model = self.store.models.get(repo)
        if model is not None and model.private and self._user(token) not in model.readers:
            return None
        return model

    def _model(self, path: str, token: str) -> None:
        """Tell the commit and the files of a model, its branches, or its tree."""
        repo, ask, rest = path, "", ""
        for word in ("revision", "tree", "refs", "auth-check"):
            if f"/{word}" in path:
                repo, _, rest = path.partition(f"/{word}")
                ask, rest = word, rest.lstrip("/")
                break
        model = self._visible(repo, token)
        if model is None:
            self._not_found(token)
            return
        rest, _, folder = rest.partition("/") if ask == "tree" else (rest, "", "")
        commit = self._commit(model, rest or "main")
        if ask == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": one}
                for name, one in model.commits.items()
            ]
            self._json({"branches": branches, "converts": [], "tags": []})
        elif commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rest}")
        elif ask == "tree":
            tree = [
                {"type": "file", "oid": "0" * 40, "path": name, "size": len(body)}
                for name, body in model.files.items()
                if name.startswith(f"{folder}/" * bool(folder))
            ]
            if tree:
                self._json(tree)
            else:
                self._refuse(404, "EntryNotFound", f"{folder} does not exist on {rest}")
        else:
            siblings = [
                {"rfilename": name, "size": len(body), "blobId": "0" * 40}
                for name, body in model.files.items()
            ]
            answer = {"id": repo, "sha": commit, "siblings": siblings, "cardData": model.card}
            self._json(answer | {"gated": model.gated, "private": model.private})

    def _commit(self, model: Repository, revision: str) -> str | None:
        return model.commits.get(revision, revision if revision in model.commits.values() else None)

    def _file(self, repo: str, revision: str, name: str, token: str) -> None:
        """Give a file to those who may have it."""
        model, user = self._visible(repo, token), self._user(token)
        if model is None:
            self._not_found(token)
            return
        if model.gated and user not in model.readers:
            words = NOT_LISTED if user else NOT_SIGNED_IN
            words = AWAITING if user in model.awaiting else words
            words = REJECTED if user in model.rejected else words
            self._refuse(403 if user else 401, "GatedRepo", words.format(repo=repo))
            return
        if model.gated and self._is_narrow(token):
            self._refuse(403, "", FINE_GRAINED)
            return
        commit, body = self._commit(model, revision), model.files.get(name)
        if commit is None or body is None:
            code = "RevisionNotFound" if commit is None else "EntryNotFound"
            self._refuse(404, code, f"{name} is not there")
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self._finish(body)

    def _is_narrow(self, token: str) -> bool:
        """Whether a fine-grained token may not read gated repositories."""
        auth = self.store.users[token].get("auth")
        access = auth.get("accessToken") if isinstance(auth, dict) else None
        fine = access.get("fineGrained") if isinstance(access, dict) else None
        return isinstance(fine, dict) and not fine["canReadGatedRepos"]

    def _not_found(self, token: str) -> None:
        """Without a token nobody is told that a repository does not exist."""
        if token:
            self._refuse(404, "RepoNotFound", "Repository not found")
        else:
            self._refuse(401, "RepoNotFound", "Invalid username or password.")

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self._finish(json.dumps({"error": message}).encode())

    def _json(self, value: object) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._finish(json.dumps(value).encode())

    def _finish(self, body: bytes) -> None:
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
