"""A loopback stand-in for the Hub: what the real `huggingface_hub` client asks to read a repository, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0" * 39 + "1"


@contextmanager
def hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Serve ``{"datasets/org/name": {path: content}}``; yields the endpoint and the list of requests so far."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            requests.append(f"{self.command} {self.path}")

        def do_GET(self) -> None:
            self.answer()

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
            path, files = self.find("/api/")
            if files is None or not path.startswith("paths-info/"):
                return self.reply(404, b"{}")
            return self.reply_json([entry(name, files[name]) for name in body.get("paths", []) if name in files])

        def answer(self) -> None:
            path, files = self.find("/api/")
            if files is not None:
                if path.startswith("tree/"):
                    recursive = "recursive=true" in self.path.lower()
                    return self.reply_json(tree(files, "/".join(path.split("/")[2:]), recursive))
                return self.reply_json(
                    {"id": "x/y", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                )
            path, files = self.find("/")
            name = "/".join(path.split("/")[2:])
            if files is None or not path.startswith("resolve/") or name not in files:
                return self.reply(404, b"", {"X-Error-Code": "EntryNotFound" if files is not None else "RepoNotFound"})
            etag = hashlib.sha256(files[name]).hexdigest()
            return self.reply(200, files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

        def find(self, prefix: str) -> tuple[str, dict[str, bytes] | None]:
            """The path inside a repository, and its files; None if there is no such repository."""
            path = unquote(urlparse(self.path).path)
            for name, files in repositories.items():
                if path == prefix + name or path.startswith(f"{prefix}{name}/"):
                    return path[len(prefix + name) + 1 :], files
            return path, None

        def reply_json(self, value: object) -> None:
            self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            start, stop = 0, len(content)
            if status == 200 and (wanted := self.headers.get("Range", "")).startswith("bytes="):
                first, _, last = wanted[6:].partition("-")
                start, stop = int(first), min(int(last) + 1 if last else stop, stop)
                status, headers = 206, {**(headers or {}), "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(stop - start)}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[start:stop])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
    """The files below a folder, and unless it is asked for recursively its sub-folders instead of what is in them."""
    prefix = f"{folder}/" if folder else ""
    inside = {name: content for name, content in files.items() if name.startswith(prefix)}
    if recursive:
        return [entry(name, content) for name, content in inside.items()]
    here = [entry(name, content) for name, content in inside.items() if "/" not in name[len(prefix) :]]
    folders = {prefix + name[len(prefix) :].split("/")[0] for name in inside if "/" in name[len(prefix) :]}
    return here + [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders)]


def entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
