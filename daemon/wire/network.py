"""A daemon on another machine, reached through the network: its two sockets, brought here into a private folder.

So everything that talks to a daemon talks to this one too. What comes in here goes on encrypted, to a daemon that
proves the key that the user has pinned, or nowhere. (Through ssh: wanlora_tui.ssh_tunnel.) The other end is daemon.tcp.
"""

import asyncio
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from daemon.errors import DaemonError, NotAnswering
from daemon.wire.keys import CLIENT, KeyPair, join_address, read_pair, require_curve, split_address, trusted_daemons
from daemon.wire.paths import ELSEWHERE, DaemonPaths, daemon_paths, make_private, spare_parent
from daemon.wire.protocol import MAX_MESSAGE_BYTES, MAX_REPLY_BYTES, MAX_REQUEST_BYTES
from daemon.zmtp.hub import LOOK, Hub, Limits
from daemon.zmtp.peer import Peer

CONNECT_SECONDS = 10.0
RETRIES = 3  # of a handshake that was broken off without a word
CONNECTIONS = 64
HEARTBEAT, SILENCE = 5_000, 15_000  # milliseconds: a line that says nothing for so long is made anew


class Route:
    """Where the daemon is, and what proves it and us."""

    def __init__(self, address: str, paths: DaemonPaths) -> None:
        """`paths`: where our keys lie. Raises UserError."""
        require_curve()
        self.host, self.port = split_address(address)
        self.name = join_address(self.host, self.port)
        trusted = trusted_daemons(paths).get(self.name)
        if trusted is None:
            raise DaemonError(
                "the key of the daemon there is not known, and without it anybody could answer in its place",
                where=f"tcp://{self.name}",
                fix=(
                    "See it on that machine with `wanlora daemon keys show`, then pin it here:"
                    f" wanlora daemon keys trust tcp://{self.name} KEY"
                ),
            )
        self.theirs = bytes.fromhex(trusted)
        self.ours: KeyPair = read_pair(paths.keys / CLIENT)

    def open(self, context: "zmq.Context[Any]", kind: int, *, feed: bool) -> Any:
        """A socket that is not connected yet, and where to."""
        found = context.socket(kind)
        found.setsockopt(zmq.LINGER, 0)
        found.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES if feed else MAX_REPLY_BYTES)
        found.setsockopt(zmq.IPV6, ":" in self.host)
        found.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT)
        found.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE)
        found.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        found.setsockopt(zmq.CURVE_SERVERKEY, self.theirs)
        found.setsockopt(zmq.CURVE_PUBLICKEY, self.ours.bytes[0])
        found.setsockopt(zmq.CURVE_SECRETKEY, self.ours.bytes[1])
        return found

    def endpoint(self, *, feed: bool) -> str:
        return f"tcp://{join_address(self.host, self.port + feed)}"

    def require_way(self) -> None:
        """Connect once. Raises DaemonError that says what is in the way."""
        context: zmq.Context[Any] = zmq.Context()
        try:
            sock = self.open(context, zmq.DEALER, feed=False)
            monitor = sock.get_monitor_socket()
            sock.connect(self.endpoint(feed=False))
            failed, refused = 0, ""
            while monitor.poll(int(CONNECT_SECONDS * 1000)):
                event = recv_monitor_message(monitor)["event"]
                match event:
                    case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                        return
                    case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                        raise DaemonError(
                            "the daemon there does not allow this user's key",
                            where=f"tcp://{self.name}",
                            fix=f"Allow it there: wanlora daemon keys allow {self.ours.public}",
                        )
                    case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL if failed < RETRIES:
                        failed += 1  # one that has too many clients just now may have hung up, too
                    case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                        raise DaemonError(
                            "what answers there does not have the key that was pinned for it, or does not encrypt:"
                            " nothing was sent",
                            where=f"tcp://{self.name}",
                            fix=(
                                "Has the daemon got new keys? Compare `wanlora daemon keys show` there with"
                                " `wanlora daemon keys show` here, and pin the new one if it is so"
                            ),
                        )
                    case zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED if not failed:
                        refused = "nobody listens there"
                        break
            raise NotAnswering(
                refused or f"no answer for {CONNECT_SECONDS:.0f} s",
                fix=f"Does the daemon run there with tcp.listen in its settings, and may tcp://{self.name} be reached?",
            )
        finally:
            context.destroy(linger=0)


class _Relay(Hub):
    """Local clients of one socket, each with a connection of its own to the daemon."""

    def __init__(self, route: Route, context: zmq.asyncio.Context, *, feed: bool) -> None:
        self.kind, self.peer_kinds = ("XPUB", frozenset({"SUB"})) if feed else ("ROUTER", frozenset({"DEALER"}))
        super().__init__(Limits(CONNECTIONS, MAX_REQUEST_BYTES))
        self._route, self._context, self._feed = route, context, feed
        self._there: dict[Peer, Any] = {}
        self._tasks: dict[Peer, asyncio.Task[None]] = {}

    def took(self, peer: Peer, message: list[bytes]) -> None:
        if peer not in self._there:
            there = self._route.open(self._context, zmq.SUB if self._feed else zmq.DEALER, feed=self._feed)
            there.connect(self._route.endpoint(feed=self._feed))
            self._there[peer] = there
            self._tasks[peer] = asyncio.create_task(self._bring_back(peer, there))
        if not self._feed:
            self._there[peer].send_multipart(message, flags=zmq.NOBLOCK)
        elif message == [b"\1"]:
            self._there[peer].setsockopt(zmq.SUBSCRIBE, b"")

    async def end(self) -> None:
        """Let go of all clients; nothing waits at the sockets to the daemon afterwards."""
        await asyncio.gather(*self._coming)
        waiting = list(self._tasks.values())
        for peer in list(self.peers):
            peer.cut("it ends")
        await asyncio.gather(*waiting, return_exceptions=True)

    async def _bring_back(self, peer: Peer, there: Any) -> None:
        while True:
            await peer.answer(await there.recv())

    def complain(self, text: str) -> None:
        """Nobody reads a log here, and a screen may be drawn."""

    def left(self, peer: Peer) -> None:
        super().left(peer)
        if (there := self._there.pop(peer, None)) is not None:
            self._tasks.pop(peer).cancel()
            there.close(linger=0)


@contextmanager
def reached(address: str, dir: Path | None = None) -> Iterator[Path]:
    """A local folder in which the daemon at `address` can be reached, deleted at the end. `dir`: whose keys are used;
    the user's own by default. Raises UserError that says what is in the way."""
    route = Route(address, daemon_paths(dir))
    route.require_way()
    folder = Path(tempfile.mkdtemp(prefix="wl", dir=spare_parent()))
    here = daemon_paths(folder)
    listeners = []
    try:
        make_private(here.runtime)
        (here.runtime / ELSEWHERE).write_text(f"tcp://{route.name}\n")
        for path in (here.control, here.feed):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setblocking(False)
            listener.bind(str(path))
            listener.listen()
        loop = asyncio.new_event_loop()
        relay = loop.create_task(_relay(route, listeners))
        thread = threading.Thread(target=_run, args=(loop, relay), daemon=True, name=f"network: {route.name}")
        thread.start()
        try:
            yield folder
        finally:
            with suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(relay.cancel)
            thread.join()  # nothing in it waits; Python must not end while it is at work in libzmq
    finally:
        for listener in listeners:
            listener.close()
        shutil.rmtree(folder)


def _run(loop: asyncio.AbstractEventLoop, relay: asyncio.Task[None]) -> None:
    asyncio.set_event_loop(loop)
    loop.run_until_complete(asyncio.wait({relay}))
    loop.close()


async def _relay(route: Route, listeners: list[socket.socket]) -> None:
    loop, context = asyncio.get_running_loop(), zmq.asyncio.Context()
    hubs = [_Relay(route, context, feed=feed) for feed in (False, True)]
    for hub, listener in zip(hubs, listeners, strict=True):
        loop.add_reader(listener, partial(hub.accept, listener))
    try:
        while True:
            await asyncio.sleep(LOOK)
            for hub in hubs:
                hub.tidy()
    finally:
        for listener in listeners:
            loop.remove_reader(listener)
        for hub in hubs:
            await hub.end()
        context.destroy(linger=0)
        await asyncio.sleep(0)  # then the connections that were cut are closed
