"""All connections of one socket, and the limits that hold whatever clients do: their number, the time for a greeting,
the bytes that wait on either side.

What listens where is daemon.sockets's, one connection daemon.zmtp.peer's.
"""

import asyncio
import logging
import os
import resource
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from daemon.zmtp.frames import GREETING, error, frame
from daemon.zmtp.peer import Peer

log = logging.getLogger("daemon")

MOST = 2048  # connections of one socket
LOOK = 0.5  # seconds between two looks at all connections
GREETING_LOOKS = 20  # until a connection must have said who it is
EVICTED_LOOKS = 2  # the same where another one waits for its place
STALLED_LOOKS = 10  # after which a client that reads nothing must go where memory is short
SURPLUS = 64  # connections beyond the limit that are told so at the same time; half as many as there may be, at most
GOODBYE_LOOKS = 6  # they have for reading it
COMPLAINTS_PER_MINUTE = 10
JOIN_BYTES = 2**18  # of messages that are written in one go
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True)
class Limits:
    """What clients of one socket may take."""

    connections: int
    message_bytes: int
    held_bytes: int = 32 * 2**20  # of requests, all clients together
    unsent_bytes: int = 64 * 2**20  # that clients have not read, all together; one message more at most
    behind_bytes: int = 2 * 2**20  # that one subscriber has not read: what comes then it must ask for later


def most_connections() -> int:
    """How many each of the two sockets may have, so that enough descriptors are left for all else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(4, min(MOST, (soft - 32) // 4))


class Hub:
    """The connections of one socket."""

    kind = ""  # of socket, and those that may connect to it
    peer_kinds: frozenset[str] = frozenset()

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.peers: set[Peer] = set()
        self._coming: set[asyncio.Task[None]] = set()
        self._complaints: deque[float] = deque(maxlen=COMPLAINTS_PER_MINUTE)

    # --- coming and going -------------------------------------------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        """Take a connection that waits at a listening socket. Raises OSError when no descriptor is left."""
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        connection.setblocking(False)
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if (uid := _CREDENTIALS.unpack(data)[1]) not in (os.getuid(), 0):
            self.complain(f"uid {uid} wanted to connect, and was refused")
            connection.close()
            return
        extra = [peer for peer in self.peers if peer.surplus]
        surplus = len(self.peers) + len(self._coming) - len(extra) >= self.limits.connections and not self._evict()
        if surplus:
            text = f"all {self.limits.connections} connections are taken"
            self.complain(f"{text}; another one was refused")
            if len(extra) >= min(SURPLUS, self.limits.connections // 2):
                longest = max(extra, key=lambda peer: peer.looks)
                if longest.looks:  # it has had its time to ask something, and did not
                    longest.cut("it is one too many")
                else:
                    with suppress(OSError):  # in place of the handshake: more cannot be said
                        connection.send(GREETING + error(text))
                    connection.close()
                    return
        task = asyncio.create_task(self._connect(Peer(self, surplus=surplus), connection))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    async def _connect(self, peer: Peer, connection: socket.socket) -> None:
        with suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(lambda: peer, connection)

    def _evict(self) -> bool:
        """Make a place by ending a connection that has not said who it is. Whether there was one."""
        silent = [peer for peer in self.peers if not peer.greeted and not peer.surplus and peer.looks >= EVICTED_LOOKS]
        if silent:
            max(silent, key=lambda peer: peer.looks).cut("it has not greeted, and another one came")
        return bool(silent)

    def joined(self, peer: Peer) -> None:
        self.peers.add(peer)

    def left(self, peer: Peer) -> None:
        self.peers.discard(peer)

    async def close(self, seconds: float) -> None:
        """End all connections, once what was said is read, or after so many seconds."""
        for peer in list(self.peers):
            peer.close()
        deadline = time.monotonic() + seconds
        while self.peers and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        for peer in list(self.peers):
            peer.cut("the daemon ends")

    # --- limits -----------------------------------------------------------------------------------------------

    @property
    def unsent(self) -> int:
        return sum(peer.unsent for peer in self.peers)

    @property
    def is_crowded(self) -> bool:
        """Whether so much waits to be read by clients that nothing should be added."""
        return self.unsent > self.limits.unsent_bytes

    def make_room(self) -> None:
        """End the connection that holds most, where all hold too much."""
        if sum(peer.held for peer in self.peers) > self.limits.held_bytes:
            most = max(self.peers, key=lambda peer: peer.held)
            most.cut(f"it holds {most.held:,} bytes of unfinished requests, and memory is short")

    def tidy(self) -> None:
        """To be called every LOOK seconds: by looks and not by the clock, because a client must not suffer from a loop
        that was held up."""
        crowded = self.is_crowded
        for peer in list(self.peers):
            if (unread := peer.unsent) < peer.unread or (peer.greeted and not unread and not peer.surplus):
                peer.looks = 0
            peer.looks, peer.unread = peer.looks + 1, unread
            if not peer.greeted and peer.looks > GREETING_LOOKS:
                peer.cut("it has not greeted")
            elif peer.surplus and peer.looks > GOODBYE_LOOKS:
                peer.cut("it is one too many")
            elif crowded and unread and peer.looks > STALLED_LOOKS:
                peer.cut(f"it does not read, and {unread:,} bytes wait for it")

    def complain(self, text: str) -> None:
        """Log it, but no more than so often: a flood of clients must not become a flood of lines."""
        now = time.monotonic()
        if len(self._complaints) < COMPLAINTS_PER_MINUTE or now - self._complaints[0] > 60:
            self._complaints.append(now)
            log.warning("%s socket: %s", self.kind, text)

    # --- messages ---------------------------------------------------------------------------------------------

    def took(self, peer: Peer, message: list[bytes]) -> None:
        """A whole message has come."""
        raise NotImplementedError

    def has_read(self, peer: Peer) -> None:
        """A client has read all that waited for it."""


class RequestHub(Hub):
    """Requests of clients, one of each in turn. One who does not read answers is not heard."""

    kind, peer_kinds = "ROUTER", frozenset({"DEALER", "ROUTER"})

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._ready: deque[Peer] = deque()
        self._wake = asyncio.Event()

    def took(self, peer: Peer, message: list[bytes]) -> None:
        peer.message = message
        self.has_read(peer)

    def has_read(self, peer: Peer) -> None:
        if peer.message is not None and peer.reads:
            self._ready.append(peer)
            self._wake.set()

    async def receive(self) -> tuple[Peer, list[bytes]]:
        """The next message and who sent it."""
        while True:
            while not self._ready:
                self._wake.clear()
                await self._wake.wait()
            peer = self._ready.popleft()
            if peer.message is not None and peer.reads:  # else it comes back when it has read
                return peer, peer.release()


class FeedHub(Hub):
    """Subscribers, who all get what is published from when they subscribed on.

    There is one subscription, to everything: a topic is the beginning of a message, and means nothing here.
    """

    kind, peer_kinds = "XPUB", frozenset({"SUB", "XSUB"})

    def __init__(self, limits: Limits, welcome: Callable[[], bytes], full: bytes) -> None:
        """`welcome`: makes what a subscriber is told first. `full`: what one too many is told."""
        super().__init__(limits)
        self._welcome, self._full = welcome, full

    def took(self, peer: Peer, message: list[bytes]) -> None:
        peer.count_command()
        if peer.surplus:
            peer.say_goodbye(self._full)
        elif message == [b"\1"]:
            peer.subscribed = True
            peer.write(frame(self._welcome()))
        elif message == [b"\0"]:
            peer.subscribed = False

    @property
    def is_heard(self) -> bool:
        """Whether somebody has subscribed."""
        return any(peer.subscribed for peer in self.peers)

    def publish(self, messages: list[bytes]) -> None:
        """Never waits: a subscriber that is far behind does not get them, and sees that by their numbers."""
        subscribers = [peer for peer in self.peers if peer.subscribed]
        while messages and subscribers:
            size = most = 0
            while most < len(messages) and size < JOIN_BYTES:
                size, most = size + len(messages[most]), most + 1
            data = b"".join(map(frame, messages[:most]))
            messages = messages[most:]
            behind = [peer for peer in subscribers if not peer.reads]
            left_out = set(behind) if behind and self.is_crowded else set()
            left_out.update(peer for peer in behind if peer.unsent >= self.limits.behind_bytes)
            for peer in subscribers:
                if peer not in left_out:
                    peer.write(data)
