"""A real sshd on this machine that plays another one: throw-away keys, a home of its own, the login shell that a test
wants. Lines to it are cut, frozen and slowed down as networks do.
"""

import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil
import pytest

from daemon.wire.stop import stop_daemon
from tests.helpers import NO_GPUS, ROOT
from tests.helpers.ports import free_port
from tests.helpers.waiting import PATIENCE, until

SSHD = next((p for p in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if Path(p).exists()), "")
needs_sshd = pytest.mark.skipif(
    not (SSHD and shutil.which("ssh") and shutil.which("ssh-keygen")), reason="no OpenSSH server and client here"
)
ALIAS = "box"  # all that a user types
CHUNK = 4096  # bytes that a relay takes at once
WAY = 64  # chunks that are on their way through it at most, as the buffers of a network hold them


class Relay:
    """A network between client and server: in between, it can stop, be slow and be cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flows = threading.Event()
        self._flows.set()
        self.bytes_per_second = 0.0  # 0: as fast as it goes
        self.delay = 0.0  # seconds, each way
        self.accepted = 0  # connections so far
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self.accepted += 1
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, a: socket.socket, b: socket.socket) -> None:
        """Bytes from `a` on their way to `b`, at most WAY chunks of them."""
        way: queue.Queue[tuple[float, bytes]] = queue.Queue(WAY)

        def arrive() -> None:
            free = 0.0  # time from which on the line takes more
            while True:
                sent, data = way.get()
                if self.bytes_per_second:
                    free = max(free, sent) + len(data) / self.bytes_per_second
                time.sleep(max(0.0, max(free, sent + self.delay) - time.monotonic()))
                self._flows.wait()
                try:
                    if not data:
                        b.shutdown(socket.SHUT_RDWR)
                        return
                    b.sendall(data)
                except OSError:
                    _shut(a)
                    while data:
                        _, data = way.get()
                    return

        threading.Thread(target=arrive, daemon=True).start()
        data = b"."
        while data:
            try:
                data = a.recv(CHUNK)
            except OSError:
                data = b""
            try:
                way.put((time.monotonic(), data), timeout=PATIENCE)
            except queue.Full:
                return

    def freeze(self) -> None:
        """Nothing comes through any more, and nobody is told."""
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    def cut(self) -> None:
        """End all connections that are open."""
        for one in self._open:
            _shut(one)
        self._open.clear()

    def close(self) -> None:
        _shut(self._listener)  # which wakes the thread that accepts
        self._listener.close()
        self.thaw()
        self.cut()


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def _keygen(*arguments: str) -> None:
    subprocess.run(["ssh-keygen", *arguments], check=True, capture_output=True)


@cache
def _key(name: str) -> dict[str, bytes]:
    """Of one pair, which all machines of these tests have: ending -> content of its files."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{name}"
        _keygen("-q", "-t", "ed25519", "-N", "", "-f", path)
        return {ending: Path(f"{path}{ending}").read_bytes() for ending in ("", ".pub")}


class OtherMachine:
    """What `ssh box` reaches. `folder` holds everything of it: keys, home, and the daemon's directory unless that is
    another's."""

    def __init__(self, folder: Path, daemon_dir: Path | None = None) -> None:
        self.folder, self.home, self.daemon_dir = folder, folder / "home", daemon_dir or folder / "d"
        self._ends_daemon = daemon_dir is None
        self.tools, self.shell = folder / "bin", ["/bin/bash", "-c"]
        for made in (folder, self.home, self.tools):
            made.mkdir(exist_ok=True)
        for key in ("host_key", "key"):
            for ending, content in _key(key).items():
                (folder / f"{key}{ending}").touch(0o600)
                (folder / f"{key}{ending}").write_bytes(content)
        shutil.copy(folder / "key.pub", folder / "authorized_keys")
        self.port = free_port()
        self.relay = Relay(self.port)
        self.write_login()
        self.write_sshd_config()
        self.write_config()
        self.write_wrapper(self.tools / "ssh", f'exec {shutil.which("ssh")} -F {folder}/config "$@"')
        self._sshd: subprocess.Popen[bytes] | None = None

    def write_wrapper(self, path: Path, script: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def write_login(self, path: str = "/usr/bin:/bin") -> None:
        """What each session there begins with: the shell of `self.shell`, as sshd starts it, in that home."""
        given = " ".join(self.shell)
        self.write_wrapper(
            self.folder / "login",
            f"export HOME={self.home} SHELL={self.shell[0]} PATH={path}; unset SHLVL XDG_RUNTIME_DIR; cd\n"
            f'exec {given} "$SSH_ORIGINAL_COMMAND"',
        )

    def write_sshd_config(self, *more: str) -> None:
        (self.folder / "sshd_config").write_text(
            "\n".join(
                [
                    *more,
                    f"Port {self.port}",
                    "ListenAddress 127.0.0.1",
                    f"HostKey {self.folder}/host_key",
                    f"AuthorizedKeysFile {self.folder}/authorized_keys",
                    "UsePAM no",
                    "StrictModes no",
                    "PidFile none",
                    "PermitRootLogin yes",
                    "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no",
                    f"ForceCommand {self.folder}/login",
                    "",
                ]
            )
        )

    def write_config(self, *more: str) -> None:
        """The user's ssh configuration; what comes first counts."""
        options = [
            *more,
            "HostName 127.0.0.1",
            f"Port {self.relay.port}",
            f"IdentityFile {self.folder}/key",
            "IdentitiesOnly yes",
            "IdentityAgent none",
            f"UserKnownHostsFile {self.folder}/known_hosts",
            "StrictHostKeyChecking accept-new",
        ]
        (self.folder / "config").write_text("\n".join([f"Host {ALIAS}", *(f"  {o}" for o in options), ""]))

    def protect_key(self, passphrase: str) -> None:
        """From now on ssh must ask before it can use the user's key."""
        _keygen("-q", "-p", "-P", "", "-N", passphrase, "-f", str(self.folder / "key"))

    def install_wanlora(self, place: str = ".local/bin/wanlora") -> Path:
        """The command, in the home there; its daemon lives in `daemon_dir`."""
        return self.write_wrapper(
            self.home / place,
            f"export PYTHONPATH={NO_GPUS}:{ROOT} PYTHONDONTWRITEBYTECODE=1\n"
            f'exec {sys.executable} -m wanlora_tui.cli --dir {self.daemon_dir} "$@"',
        )

    # --- the server --------------------------------------------------------------------------------------------

    def start(self) -> None:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._sshd = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "sshd.log").open("ab"),
            start_new_session=True,
        )
        until(self._listens, f"sshd: {(self.folder / 'sshd.log').read_text()}")

    def _listens(self) -> bool:
        assert self._sshd is not None and self._sshd.poll() is None, (self.folder / "sshd.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def sessions(self) -> list[psutil.Process]:
        """The processes of sshd that serve one connection each."""
        if self._sshd is None or self._sshd.poll() is not None:
            return []
        found = []
        for process in psutil.Process(self._sshd.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "sshd" in process.name():
                    found.append(process)
        return found

    def cut(self) -> None:
        """End every session, as a restarted network device or machine does."""
        for process in self.sessions():
            with suppress(psutil.NoSuchProcess):  # one half of a session has ended with the other
                process.kill()

    def freeze(self) -> list[psutil.Process]:
        """Stop every session: a line on which nobody answers any more. Gives what was stopped."""
        frozen = self.sessions()
        for process in frozen:
            process.send_signal(signal.SIGSTOP)
        return frozen

    def stop(self) -> None:
        """No sshd any more, nor sessions."""
        if self._sshd is not None:
            served = self.sessions()
            self._sshd.terminate()
            self._sshd.wait()
            for process in served:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._sshd = None

    def close(self) -> None:
        self.stop()
        self.relay.close()
        if self._ends_daemon:
            stop_daemon(self.daemon_dir)

    # --- the user's side ---------------------------------------------------------------------------------------

    def environment(self, **more: str) -> dict[str, str]:
        """With which `ssh box` reaches it."""
        from tests.helpers.interface.harness import environment

        return environment(PATH=f"{self.tools}:{os.environ['PATH']}", **more)


@contextmanager
def other_machine(folder: Path, daemon_dir: Path | None = None) -> Iterator[OtherMachine]:
    """A running one, with wanlora where its users have it. `folder`: short and empty. `daemon_dir`: of the daemon that
    it has; one of its own by default, ended with it."""
    there = OtherMachine(folder, daemon_dir)
    try:
        there.install_wanlora()
        there.start()
        yield there
    finally:
        there.close()
