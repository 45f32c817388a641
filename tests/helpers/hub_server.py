"""A loopback stand-in for the Hub: repositories with branches, commits and pull requests, over real HTTP.

It speaks what the real `huggingface_hub` client asks of it with HF_HUB_DISABLE_XET=1, and can be told to fail.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

USER = "tester"
Files = dict[str, bytes]
LARGE = (".safetensors", ".pt", ".parquet", ".png", ".bin")  # what goes through LFS


@dataclass
class Failure:
    """What happens to a request: an error status, or a cut connection.

    Attributes:
        status: of the answer; None cuts the connection instead.
        done: whether the request takes effect all the same, so that only its answer is lost.
        headers: of the answer.
    """

    status: int | None = None
    done: bool = False
    headers: dict[str, str] = field(default_factory=dict)


class Repository:
    """Every commit keeps all its files: what somebody could have downloaded at any time."""

    def __init__(self, files: Files | None = None, private: bool = False):
        self.commits: dict[str, Files] = {}
        self.messages: list[str] = []
        self.refs: dict[str, str] = {}
        self.private = private
        self.commit("main", dict(files or {}), "initial commit")

    def commit(self, ref: str, files: Files, message: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[sha] = files
        self.messages.append(message)
        self.refs[ref] = sha
        return sha

    def sha(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.refs.get(revision, revision)]


class Hub:
    """State of the server.

    Attributes:
        repositories: by "models/org/name", "datasets/org/name" or "spaces/org/name".
        token: if set, writing and private repositories need it.
        storage: LFS objects by SHA-256.
        requests: "METHOD /path" of each request, in the order in which they came.
        fail: (method and path, number of the request from 0) -> what happens to it, or None.
    """

    endpoint = ""

    def __init__(self, repositories: dict[str, Files] | None = None, token: str | None = None):
        self.repositories = {name: Repository(files) for name, files in (repositories or {}).items()}
        self.token = token
        self.storage: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail: Callable[[str, int], Failure | None] = lambda request, number: None

    def model(self, repo_id: str) -> Repository:
        return self.repositories[f"models/{repo_id}"]


@contextmanager
def serve(state: Hub) -> Iterator[Hub]:
    """Run a `Hub`; its ``endpoint`` is set."""

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def redirect_client(monkeypatch: Any, state: Hub) -> None:
    """Let the `huggingface_hub` of this process, which read its settings when imported, talk to a running `Hub`."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", state.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


@contextmanager
def hub(repositories: dict[str, Files]) -> Iterator[tuple[str, list[str]]]:
    """Serve ``{"datasets/org/name": {path: content}}``; yields the endpoint and the list of requests so far."""
    with serve(Hub(repositories)) as state:
        yield state.endpoint, state.requests


class _Answer(Exception):
    """Ends the handling of a request."""

    def __init__(self, status: int, content: Any = b"", headers: dict[str, str] | None = None):
        self.status, self.headers = status, headers or {}
        self.content = content if isinstance(content, bytes) else json.dumps(content).encode()


def _missing(code: str) -> _Answer:
    return _Answer(404, {"error": code}, {"X-Error-Code": code})


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.hub
        number = len(hub.requests)
        hub.requests.append(f"{self.command} {self.path}")
        failure = hub.fail(hub.requests[-1], number)
        if failure is not None and not failure.done:
            if failure.status is None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                return self.cut()
            self.body()
            return self.reply(failure.status, b"", failure.headers)
        try:
            self.answer(self.body())
            answer = _Answer(404)
        except _Answer as given:
            answer = given
        if failure is not None:
            return self.cut()
        return self.reply(answer.status, answer.content, answer.headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def cut(self) -> None:
        """Close the connection without an answer, be the client in the midst of sending."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        start, stop = 0, len(content)
        if status == 200 and (wanted := self.headers.get("Range", "")).startswith("bytes="):
            first, _, last = wanted[6:].partition("-")
            start, stop = int(first), min(int(last) + 1 if last else stop, stop)
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[start:stop])

    # What is asked for

    def answer(self, body: bytes) -> None:
        """Raises the `_Answer`."""
        path = unquote(urlparse(self.path).path)
        query = parse_qs(urlparse(self.path).query)
        knows_user = self.hub.token is None or self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if path == "/api/repos/create":
            self.create(json.loads(body), knows_user)
        if path == "/api/validate-yaml":
            is_card = json.loads(body)["content"].startswith("---\n")
            raise _Answer(200, {"warnings": [], "errors": []} if is_card else {"errors": [{"message": "no metadata"}]})
        if path == "/api/whoami-v2":
            user = {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}}
            raise _Answer(200, user) if knows_user else _Answer(401)
        if path.startswith("/storage/"):
            self.store(path.split("/"), body)
        name, repository, rest = self.find(path)
        if repository is None:
            raise _missing("RepoNotFound")
        if not knows_user and (repository.private or self.command in ("POST", "PUT")):
            raise _Answer(401, {"error": "Invalid username or password."})
        if rest == ".git/info/lfs/objects/batch":
            self.large_objects(json.loads(body))
        action, _, rest = rest.lstrip("/").partition("/")
        if action in ("", "revision"):
            self.describe(name, repository, rest or "main")
        if action == "refs":
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repository.refs.items()]
            raise _Answer(200, {"branches": branches, "converts": [], "tags": []})
        if action == "branch":
            if rest in repository.refs:
                raise _Answer(409, {"error": "Reference already exists"})
            repository.refs[rest] = repository.refs["main"]
            raise _Answer(201, {})
        if action in ("tree", "paths-info", "resolve", "preupload", "commit"):
            known = sorted([*repository.refs, *repository.commits], key=len, reverse=True)
            revision = next((one for one in known if f"{rest}/".startswith(f"{one}/")), None)
            if revision is None:
                raise _missing("RevisionNotFound")
            inside = rest[len(revision) + 1 :]
            files, sha = repository.files(revision), str(repository.sha(revision))
            if action == "tree":
                raise _Answer(200, tree(files, inside, "true" in str(query.get("recursive", "")).lower()))
            if action == "paths-info":
                wanted = parse_qs(body.decode()).get("paths", [])
                raise _Answer(200, [entry(one, files[one]) for one in wanted if one in files])
            if action == "resolve":
                self.resolve(files, inside, sha)
            if action == "preupload":
                raise _Answer(200, {"files": [upload_mode(one, files) for one in json.loads(body)["files"]]})
            self.commit(name, repository, revision, body, "create_pr" in query)

    def find(self, path: str) -> tuple[str, Repository | None, str]:
        """Name of the repository that a path is about, the repository, and the rest of the path."""
        path = path.removeprefix("/api")
        for name, repository in self.hub.repositories.items():
            for prefix in (f"/{name}", f"/{name.removeprefix('models/')}"):
                if path == prefix or path.startswith((f"{prefix}/", f"{prefix}.git/")):
                    return name, repository, path[len(prefix) :]
        return "", None, ""

    def create(self, wanted: dict[str, Any], knows_user: bool) -> None:
        if not knows_user:
            raise _Answer(401, {"error": "Invalid username or password."})
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        name = f"{wanted.get('type') or 'model'}s/{repo_id}"
        url = {"url": f"{self.hub.endpoint}/{name.removeprefix('models/')}", "name": repo_id}
        if name in self.hub.repositories:
            raise _Answer(409, {**url, "error": "You already created this model repo"})
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.hub.repositories[name] = Repository({".gitattributes": b"*.safetensors filter=lfs\n"}, private)
        raise _Answer(200, url)

    def describe(self, name: str, repository: Repository, revision: str) -> None:
        sha = repository.sha(revision)
        if sha is None:
            raise _missing("RevisionNotFound")
        siblings = [{"rfilename": path} for path in repository.commits[sha]]
        repo_id = name.split("/", 1)[1]
        raise _Answer(200, {"id": repo_id, "sha": sha, "private": repository.private, "siblings": siblings})

    def resolve(self, files: Files, path: str, sha: str) -> None:
        if path not in files:
            raise _missing("EntryNotFound")
        etag = hashlib.sha256(files[path]).hexdigest()
        raise _Answer(200, files[path], {"ETag": f'"{etag}"', "X-Repo-Commit": sha})

    def large_objects(self, wanted: dict[str, Any]) -> None:
        objects = []
        for one in wanted["objects"]:
            url = f"{self.hub.endpoint}/storage/{one['oid']}"
            actions = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
            objects.append(one if one["oid"] in self.hub.storage else {**one, "actions": actions})
        raise _Answer(200, {"transfer": "basic", "objects": objects})

    def store(self, path: list[str], body: bytes) -> None:
        if path[-1] == "verify":
            raise _Answer(200 if path[2] in self.hub.storage else 404, {})
        if hashlib.sha256(body).hexdigest() != path[2]:
            raise _Answer(400, {"error": "content is not that of the object"})
        self.hub.storage[path[2]] = body
        raise _Answer(200, {})

    def commit(self, name: str, repository: Repository, revision: str, body: bytes, create_pr: bool) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(repository.files(revision))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.storage:
                    raise _Answer(400, {"error": f"{value['path']}: the object was never uploaded"})
                files[value["path"]] = self.hub.storage[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
        ref = f"refs/pr/{number}" if create_pr else revision
        sha = repository.commit(ref, files, lines[0]["value"]["summary"])
        url = f"{self.hub.endpoint}/{name.removeprefix('models/')}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}"}
        raise _Answer(200, {**answer, "pullRequestUrl": f"{url}/discussions/{number}"} if create_pr else answer)


def upload_mode(wanted: dict[str, Any], files: Files) -> dict[str, Any]:
    path = wanted["path"]
    mode = "lfs" if path.endswith(LARGE) else "regular"
    there = files.get(path)
    oid = None
    if there is not None:
        oid = hashlib.sha256(there).hexdigest() if mode == "lfs" else git_blob(there)
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def tree(files: Files, folder: str, recursive: bool) -> list[dict[str, object]]:
    """The files below a folder, and unless it is asked for recursively its sub-folders instead of what is in them."""
    prefix = f"{folder}/" if folder else ""
    inside = {name: content for name, content in files.items() if name.startswith(prefix)}
    if recursive:
        return [entry(name, content) for name, content in inside.items()]
    here = [entry(name, content) for name, content in inside.items() if "/" not in name[len(prefix) :]]
    folders = {prefix + name[len(prefix) :].split("/")[0] for name in inside if "/" in name[len(prefix) :]}
    return here + [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders)]


def entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": git_blob(content)}


def is_whole(files: Files) -> bool:
    """Whether a commit that has a config has the weights that it needs, and the other way round."""
    weights = [name for name in files if re.fullmatch(r"model.*\.safetensors", name)]
    return ("config.json" in files) == bool(weights)
