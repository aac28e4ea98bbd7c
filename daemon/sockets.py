"""The daemon's two sockets, in a folder that only its owner may enter, and the way back when somebody takes that folder
away."""

import logging
import os
import secrets
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from daemon.wire.lock import Lock
from daemon.wire.paths import DaemonPaths, endpoint, make_private, spare_parent
from daemon.wire.protocol import MAX_MESSAGE_BYTES
from presets.errors import UserError

log = logging.getLogger("daemon")

SPARES = 3  # folders of our own making that are tried again before another one is made
Address = tuple[int, int, int]  # device, inode and time of a socket's file: that it was replaced is seen
Bound = tuple[Any, Path, Address | None]  # a socket, the name it was bound under, its file by now


class Sockets:
    """ROUTER for requests, XPUB for the feed."""

    def __init__(self, paths: DaemonPaths, lock: Lock) -> None:
        """Nothing is bound yet."""
        self.at = DaemonPaths(Path(), paths.state)  # where clients find them
        self._lock = lock
        self._folders = [paths.runtime]  # the wanted one first, then spare ones
        self._bound: dict[Path, list[Bound]] = {}
        self._complaints: set[str] = set()
        self._context = zmq.asyncio.Context()
        self.router = self._socket(zmq.ROUTER)
        self.router.setsockopt(zmq.RCVHWM, 16)
        self.router.setsockopt(zmq.SNDHWM, 32)  # replies to a client that does not read them are dropped
        self.feed = self._socket(zmq.XPUB)
        self.feed.setsockopt(zmq.XPUB_VERBOSE, 1)  # every subscription is seen, so that each gets its welcome
        self.feed.setsockopt(zmq.SNDHWM, 5000)  # beyond that a slow subscriber loses messages, and asks for them later

    def _socket(self, kind: int) -> Any:
        found = self._context.socket(kind)
        found.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        found.setsockopt(zmq.LINGER, 1000)
        return found

    def settle(self) -> None:
        """Be reachable, in the wanted folder if it can be had, else in a spare one, and publish it in the lock. To be
        called again and again.

        A login manager takes the runtime directory away when its user logs out, and only it can make another; somebody
        else may have been first in /tmp. Connections that are open stay open in any case. Raises OSError, UserError or
        zmq.ZMQError when no folder at all can be had.
        """
        for folder in self._folders:
            try:
                if not self._serves(folder):
                    self._bind(folder)
                break
            except (OSError, UserError, zmq.ZMQError) as e:
                self._complain(f"{folder} cannot be used: {e}")
        else:
            folder = Path(tempfile.mkdtemp(prefix=f"wanlora-{os.getuid()}-", dir=spare_parent()))
            self._folders = [*self._folders[:1], *self._folders[1:][-SPARES + 1 :], folder]
            self._bind(folder)
        if folder != self.at.runtime:
            self._lock.publish(folder)
            self.at = DaemonPaths(folder, self.at.state)
            log.info("serving %s, pid %d", folder, os.getpid())

    def _serves(self, folder: Path) -> bool:
        """Whether the sockets there are still ours."""
        here = DaemonPaths(folder, self.at.state)
        if folder not in self._bound or [_address(here.control), _address(here.feed)] != [
            address for _, _, address in self._bound[folder]
        ]:
            return False
        make_private(folder)
        return True

    def _bind(self, folder: Path) -> None:
        """Raises OSError, UserError or zmq.ZMQError."""
        here = DaemonPaths(folder, self.at.state)
        lost = self._bound.pop(folder, [])
        self._release(lost)
        if not folder.parent.is_dir():  # not ours to make: whoever makes it could not any more
            raise UserError("its parent directory is missing")
        make_private(folder)
        ours = [address for _, _, address in lost]
        if any(_listens(path) and _address(path) not in ours for path in (here.control, here.feed)):
            raise UserError("another daemon serves there")
        bound: list[Bound] = []
        try:
            for sock, path in ((self.router, here.control), (self.feed, here.feed)):
                # Under a name of its own first: the end of a socket removes that name, later than asked for and whoever
                # has it by then.
                first = folder / secrets.token_hex(len(path.name) // 2)
                sock.bind(endpoint(first))
                bound.append((sock, first, _address(first)))
                first.chmod(0o600)
                first.replace(path)
                bound[-1] = (sock, first, _address(path))
        except (OSError, zmq.ZMQError):
            self._release(bound)
            raise
        self._bound[folder] = bound
        if lost:
            log.info("%s was removed; serving again", folder)

    def _release(self, bound: list[Bound]) -> None:
        for sock, first, _ in bound:
            with suppress(zmq.ZMQError):
                sock.unbind(endpoint(first))

    def close(self) -> None:
        """Leave nothing that nobody serves."""
        for sock in (self.router, self.feed):
            sock.close()
        self._context.term()
        for folder, bound in self._bound.items():
            here = DaemonPaths(folder, self.at.state)
            with suppress(OSError):
                for path, (_, _, address) in zip((here.control, here.feed), bound, strict=True):
                    if _address(path) == address:
                        path.unlink()
                if folder != self._folders[0]:
                    folder.rmdir()

    def _complain(self, text: str) -> None:
        """Log what would otherwise be logged every second."""
        if text not in self._complaints:
            self._complaints.add(text)
            log.warning("%s", text)


def _address(path: Path) -> Address | None:
    try:
        facts = path.lstat()
    except OSError:
        return None
    return (facts.st_dev, facts.st_ino, facts.st_ctime_ns) if stat.S_ISSOCK(facts.st_mode) else None


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True
