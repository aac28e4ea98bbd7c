"""Receivers of messages: a web server in a thread, and a sendmail that is a script."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest


class Heard(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Answers with `codes` in turn, the last one again and again, and notes what it was sent."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.codes, self.extra, self.says = [200], {}, b"thank you"
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = receiver.codes[min(len(receiver.heard), len(receiver.codes) - 1)]
                receiver.heard.append(Heard(self.path, dict(self.headers), body))
                self.send_response(code)
                for name, value in receiver.extra.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(receiver.says)))
                self.end_headers()
                self.wfile.write(receiver.says)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Receiver()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def sendmail(tmp_path: Path) -> Path:
    """A program that keeps what it is given, with its arguments first."""
    program = tmp_path / "sendmail"
    program.write_text(f'#!/bin/sh\n{{ echo "$@"; cat; }} >{tmp_path}/mail\n')
    program.chmod(0o755)
    return program
