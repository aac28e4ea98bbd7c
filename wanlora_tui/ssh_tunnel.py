"""Reaching a daemon on another machine: its two sockets, brought here through ssh into a private directory.

What goes through it is daemon.wire's.
"""

import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from daemon.wire.paths import daemon_paths, make_private
from daemon.wire.protocol import PROTOCOL_VERSION
from presets import VERSION
from presets.errors import UserError

CONNECT_SECONDS = 60.0  # until the forwarded sockets must be there; a person may be typing a passphrase
RETRY_SECONDS = 2.0  # between two attempts to bring a broken tunnel back
_KEEPALIVE = [
    "-o",
    "ServerAliveInterval=15",
    "-o",
    "ServerAliveCountMax=3",
    "-o",
    "ExitOnForwardFailure=yes",
    "-o",
    "StreamLocalBindUnlink=yes",
]


class RemoteStatus(Struct):
    """What is needed of it; other keys are passed over."""

    running: bool
    protocol: int
    control: str = ""  # sockets, absolute paths there
    feed: str = ""
    state: str = ""  # "" up to 0.1.0
    version: str = ""
    problem: str = ""


def remote_status(host: str) -> RemoteStatus:
    """What `wanlora daemon status --json` says there. Raises UserError naming what is in the way."""
    if host.startswith("-") or not re.fullmatch(r"[^\s]+", host):
        raise UserError(f"{host!r} is not a host", fix="Write it as user@box")
    try:
        asked = subprocess.run(
            ["ssh", "--", host, "wanlora daemon status --json"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UserError("no ssh program here", fix="Install an OpenSSH client") from None
    if asked.returncode == 255:
        raise UserError(_last_line(asked.stderr) or "ssh failed", where=host, fix=f"Try: ssh {host}")
    if asked.returncode == 127:
        raise UserError(
            "no wanlora on the PATH that ssh gets there",
            where=host,
            fix="Link it into a folder of that PATH, e.g. ln -s ~/wanlora-tui/.venv/bin/wanlora ~/.local/bin/",
        )
    try:
        status = msgspec.json.decode(asked.stdout.strip().rpartition("\n")[2], type=RemoteStatus)
    except msgspec.MsgspecError:
        raise UserError(
            f"`wanlora daemon status` answered: {_last_line(asked.stderr or asked.stdout) or 'nothing'}",
            where=host,
            fix=f"Try: ssh {host} wanlora doctor",
        ) from None
    if not status.running:
        raise UserError("no daemon runs there", where=host, fix=f"Start it with: ssh {host} wanlora daemon start")
    if status.state not in ("", "answering"):
        raise UserError(
            f"there {status.problem}",
            where=host,
            fix=f"See: ssh {host} wanlora daemon status. End it with: ssh {host} wanlora daemon stop",
        )
    if status.protocol != PROTOCOL_VERSION:
        version = f" (wanlora {status.version})" if status.version else ""
        raise UserError(
            f"the daemon there speaks protocol {status.protocol}{version}, this client {PROTOCOL_VERSION} (wanlora"
            f" {VERSION})",
            where=host,
            fix="Install the same version of wanlora on both machines",
        )
    return status


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


class _Tunnel(threading.Thread):
    """Keeps one `ssh -N` alive: a laptop that slept finds its dashboard again."""

    def __init__(self, command: list[str], log: Path) -> None:
        super().__init__(daemon=True, name="ssh tunnel")
        self._command, self._log, self._closing = command, log, threading.Event()
        self._first = True
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # The first may ask for a passphrase on the terminal; later ones run behind the dashboard and must not.
        command = self._command if self._first else [self._command[0], "-o", "BatchMode=yes", *self._command[1:]]
        self._first = False
        with self._log.open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)

    def run(self) -> None:
        while not self._closing.is_set():
            self.process.wait()
            if not self._closing.wait(RETRY_SECONDS):
                self.process = self._start()

    def close(self) -> None:
        self._closing.set()
        self.process.terminate()
        self.join(5)
        self.process.kill()
        self.process.wait()


@contextmanager
def tunnel(host: str) -> Iterator[Path]:
    """A local directory in which the daemon of `host` can be reached; deleted at the end. Raises UserError."""
    status = remote_status(host)
    folder = Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))  # 0700, and short: a socket path holds 107 bytes
    here, log = daemon_paths(folder), folder / "ssh.log"
    make_private(here.runtime)
    sockets = {here.control: status.control, here.feed: status.feed}
    forwards = [arg for local, remote in sockets.items() for arg in ("-L", f"{local}:{remote}")]
    keeper = _Tunnel(["ssh", "-N", *_KEEPALIVE, *forwards, "--", host], log)
    try:
        deadline = time.monotonic() + CONNECT_SECONDS
        while not all(local.exists() for local in sockets):
            if keeper.process.poll() is not None or time.monotonic() > deadline:
                raise UserError(
                    f"the tunnel did not open: {_last_line(log.read_text(errors='replace')) or 'ssh said nothing'}",
                    where=host,
                    fix=f"Try: ssh {host}",
                )
            time.sleep(0.05)
        keeper.start()
        yield folder
    finally:
        if keeper.is_alive():
            keeper.close()
        else:
            keeper.process.terminate()
            keeper.process.wait()
        shutil.rmtree(folder)
