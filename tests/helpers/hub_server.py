"""A Hub for tests: the few requests of a download, over HTTP on the loopback, from a folder for each repository; with
faults on demand."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """Serves each folder of `repos` under its id. Large files (safetensors) lie on "another" server: the same one, as
    localhost."""

    daemon_threads = True

    def __init__(self, repos: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = repos
        self.asked: list[tuple[str, str, str, bool]] = []  # method, path, range, whether a token came along
        self.cuts: dict[str, list[int]] = {}  # file -> bytes after which each next answer breaks off
        # path without owner and revision -> status and headers of each next answer; "" is any repository, an id that
        # one
        self.refusals: dict[str, list[tuple[int, dict[str, str]]]] = {}
        self.spoilt: list[str] = []  # files whose next answer has a wrong byte
        self.xet = False  # large files are offered from the Xet storage as well, whose tokens are refused

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def large(self) -> list[str]:
        """Every large file that was asked for, with its repository: `owner/model/transformer/x.safetensors`."""
        return [
            path.removeprefix("/cdn/")
            for method, path, _, _ in self.asked
            if method == "GET" and path.startswith("/cdn/")
        ]

    def gets(self, file: str) -> list[str]:
        """The ranges in which a file was asked for."""
        return [ranged for method, path, ranged, _ in self.asked if method == "GET" and path.endswith(f"/{file}")]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what some tests do."""


@contextmanager
def serving(repos: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub(repos)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append((self.command, path, self.headers.get("Range", ""), "Authorization" in self.headers))
        plain = path.removeprefix("/api/models").removeprefix("/cdn").removeprefix("/")
        repo = next((repo for repo in self.server.repos if plain == repo or plain.startswith(f"{repo}/")), "")
        name = (
            plain.removeprefix(f"{repo}/").removeprefix("resolve/").removeprefix(f"{COMMIT}/").removeprefix("main/")
            if not path.startswith("/api/")
            else ""
        )
        if "/xet-read-token/" in path:
            self._send(404, {}, b"")
        elif not name and self.server.refusals.get(repo):
            status, headers = self.server.refusals[repo].pop(0)
            self._send(status, headers, b"")
        elif self.server.refusals.get(name) and (body or not path.startswith("/cdn/")):
            status, headers = self.server.refusals[name].pop(0)
            self._send(status, headers, b"")
        elif not repo:
            self._send(404, {"X-Error-Code": "RepoNotFound"}, b"")
        elif not name:
            self._send(200, {"Content-Type": "application/json"}, json.dumps(self._info(repo)).encode())
        elif (file := self.server.repos[repo] / name).is_file():
            self._file(repo, name, file, path, body=body)
        else:
            self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")

    def _file(self, repo: str, name: str, file: Path, path: str, *, body: bool) -> None:
        content = file.read_bytes()
        if name.endswith(".safetensors") and "/resolve/" in path:
            headers = {
                "X-Repo-Commit": COMMIT,
                "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
            }
            if self.server.xet:  # (a hash of Xet's own would be another)
                headers["X-Xet-Hash"] = hashlib.sha256(content).hexdigest()
                headers["X-Xet-Refresh-Route"] = f"{self.server.endpoint}/api/models/{repo}/xet-read-token/{COMMIT}"
            self._send(
                302, {**headers, "Location": f"http://localhost:{self.server.server_port}/cdn/{repo}/{name}"}, b""
            )
            return
        headers, status, begin = (
            {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"},
            200,
            0,
        )
        if ranged := self.headers.get("Range"):
            begin, status = int(ranged.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        content = content[begin:]
        if body and name in self.server.spoilt:
            self.server.spoilt.remove(name)
            content = content[:-1] + bytes([content[-1] ^ 1])
        cut = self.server.cuts[name].pop(0) if body and self.server.cuts.get(name) else len(content)
        self._send(status, headers, content, cut=cut, body=body)

    def _send(
        self, status: int, headers: dict[str, str], content: bytes, *, cut: int | None = None, body: bool = True
    ) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(content[:cut])
        if cut is not None and cut < len(content):
            self.close_connection = True

    def _info(self, repo: str) -> dict[str, object]:
        siblings, folder = [], self.server.repos[repo]
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            content = file.read_bytes()
            entry: dict[str, object] = {
                "rfilename": file.relative_to(folder).as_posix(),
                "size": len(content),
                "blobId": hashlib.sha1(content).hexdigest(),
            }
            if file.suffix == ".safetensors":
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
            siblings.append(entry)
        return {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0, "private": False}
