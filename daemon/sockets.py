"""The daemon's two sockets, in a folder that only its owner may enter, and the way back when somebody takes that folder
away."""

import asyncio
import logging
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from daemon.wire.lock import Lock
from daemon.wire.paths import DaemonPaths, make_private, spare_parent
from daemon.wire.protocol import MAX_REQUEST_BYTES, TurnedAway, encode
from daemon.zmtp.hub import FeedHub, Hub, Limits, RequestHub, most_connections
from presets.errors import UserError

log = logging.getLogger("daemon")

SPARES = 3  # folders of our own making that are tried again before another one is made
BACKLOG = 1024  # connections that wait to be accepted
FULL_PAUSE = 1.0  # seconds until the next try where no descriptor is left for a connection
LINGER = 1.0  # seconds for clients to read the last words
SUBSCRIPTION_BYTES = 1024  # all that a subscriber has to say
Address = tuple[int, int, int]  # device, inode and time of a socket's file: that it was replaced is seen
Bound = tuple[socket.socket, Address | None]  # what listens, and its file


class Sockets:
    """One for requests, which looks like a ROUTER to clients, and one for the feed, like an XPUB."""

    def __init__(self, paths: DaemonPaths, lock: Lock, welcome: Callable[[], bytes]) -> None:
        """Nothing is bound yet. `welcome`: makes what a new subscriber is told. To be made in a running loop."""
        self.at = DaemonPaths(Path(), paths.state)  # where clients find them
        self._lock = lock
        self._folders = [paths.runtime]  # the wanted one first, then spare ones
        self._bound: dict[Path, list[Bound]] = {}
        self._complaints: set[str] = set()
        connections = most_connections()
        self.router = RequestHub(Limits(connections, MAX_REQUEST_BYTES))
        self.feed = FeedHub(Limits(connections, SUBSCRIPTION_BYTES), welcome, encode(turned_away(connections)))

    def tidy(self) -> None:
        """Hold clients to their limits. To be called every daemon.zmtp.hub.LOOK seconds."""
        self.router.tidy()
        self.feed.tidy()

    def settle(self) -> None:
        """Be reachable, in the wanted folder if it can be had, else in a spare one, and publish it in the lock. To be
        called again and again.

        A login manager takes the runtime directory away when its user logs out, and only it can make another; somebody
        else may have been first in /tmp. Connections that are open stay open in any case. Raises OSError or UserError
        when no folder at all can be had.
        """
        for folder in self._folders:
            try:
                if not self._serves(folder):
                    self._bind(folder)
                break
            except (OSError, UserError) as e:
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
            address for _, address in self._bound[folder]
        ]:
            return False
        make_private(folder)
        return True

    def _bind(self, folder: Path) -> None:
        """Raises OSError or UserError."""
        here = DaemonPaths(folder, self.at.state)
        lost = self._bound.pop(folder, [])
        self._release(lost)
        if not folder.parent.is_dir():  # not ours to make: whoever makes it could not any more
            raise UserError("its parent directory is missing")
        make_private(folder)
        ours = [address for _, address in lost]
        if any(_listens(path) and _address(path) not in ours for path in (here.control, here.feed)):
            raise UserError("another daemon serves there")
        bound: list[Bound] = []
        try:
            for hub, path in ((self.router, here.control), (self.feed, here.feed)):
                # Under a name of its own first: it is private and listens before anybody finds it.
                first = folder / secrets.token_hex(len(path.name) // 2)
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                bound.append((listener, None))
                listener.setblocking(False)
                listener.bind(os.fspath(first))
                first.chmod(0o600)
                listener.listen(BACKLOG)
                first.replace(path)
                bound[-1] = (listener, _address(path))
                asyncio.get_running_loop().add_reader(listener, self._accept, hub, listener)
        except OSError:
            self._release(bound)
            raise
        self._bound[folder] = bound
        if lost:
            log.info("%s was removed; serving again", folder)

    def _accept(self, hub: Hub, listener: socket.socket) -> None:
        try:
            hub.accept(listener)
        except OSError as e:  # it stays readable: asked again at once, the loop would do nothing else
            hub.complain(f"no connection can be taken: {e.strerror}")
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(FULL_PAUSE, self._listen_again, hub, listener)

    def _listen_again(self, hub: Hub, listener: socket.socket) -> None:
        if listener.fileno() != -1:
            asyncio.get_running_loop().add_reader(listener, self._accept, hub, listener)

    def _release(self, bound: list[Bound]) -> None:
        for listener, _ in bound:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()

    async def close(self) -> None:
        """Leave nothing that nobody serves."""
        for folder, bound in self._bound.items():
            here = DaemonPaths(folder, self.at.state)
            with suppress(OSError):
                for path, (_, address) in zip((here.control, here.feed), bound, strict=True):
                    if _address(path) == address:
                        path.unlink()
                if folder != self._folders[0]:
                    folder.rmdir()
            self._release(bound)
        await asyncio.gather(self.router.close(LINGER), self.feed.close(LINGER))

    def _complain(self, text: str) -> None:
        """Log what would otherwise be logged every second."""
        if text not in self._complaints:
            self._complaints.add(text)
            log.warning("%s", text)


def turned_away(connections: int) -> TurnedAway:
    """What a client too many is told."""
    return TurnedAway(
        f"the daemon has {connections} clients already, and takes no more",
        "Close dashboards and watches that are not needed, then try again",
    )


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
