"""One client's connection: its handshake, its messages one at a time, and what may be left unread by it.

Who may connect, and how many, is daemon.zmtp.hub's.
"""

import asyncio
import time
from typing import TYPE_CHECKING

from daemon.zmtp.frames import (
    COMMAND,
    GREETING,
    GREETING_BYTES,
    MORE,
    Damaged,
    FrameReader,
    command,
    frame,
    ready,
    require_greeting,
    socket_type,
    split_command,
)

if TYPE_CHECKING:
    from daemon.zmtp.hub import Hub

MOST_FRAMES = 16  # of one message: a request has one
READ_AHEAD = 2**16  # bytes taken from a client whose last message waits for its turn
COMMANDS, COMMANDS_PER_SECOND = 100.0, 10.0  # that are taken at once (heartbeats, subscriptions), and in the long run


class Peer(asyncio.Protocol):
    """A connection. It is `greeted` once both sides know each other; `surplus`: one too many, to be told so."""

    remote = False  # it comes from this machine

    def __init__(self, hub: "Hub", *, surplus: bool = False) -> None:
        self.hub, self.surplus = hub, surplus
        self.greeted, self.subscribed = False, False
        self.looks = 0  # of Hub.tidy since it connected, or since its client last read something
        self.unread = 0  # bytes that the client had not read by the last of them
        self.message: list[bytes] | None = None  # the next one, whole
        self._reader = FrameReader(hub.limits.message_bytes)
        self._frames: list[bytes] = []
        self._commands, self._counted = COMMANDS, time.monotonic()
        self._known = False  # the greeting has been read
        self._paused = False
        self._writable = asyncio.Event()
        self._transport: asyncio.Transport

    @property
    def held(self) -> int:
        """Bytes that came and are not answered yet."""
        return len(self._reader.held) + sum(map(len, self._frames)) + sum(map(len, self.message or ()))

    @property
    def unsent(self) -> int:
        return self._transport.get_write_buffer_size()

    # --- asyncio's side ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        self._writable.set()
        self.hub.joined(self)
        transport.write(GREETING)

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self.hub.left(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
        self.hub.has_read(self)

    def data_received(self, data: bytes) -> None:
        self._reader.held += data
        self._advance()
        if len(self._reader.held) > READ_AHEAD:
            if self.message is not None:
                self._paused = True
                self._transport.pause_reading()
            self.hub.make_room()

    # --- reading ----------------------------------------------------------------------------------------------

    def release(self) -> list[bytes]:
        """The message that waits, and on to the next."""
        message, self.message = self.message, None
        assert message is not None
        self._advance()
        if self._paused and (self.message is None or len(self._reader.held) <= READ_AHEAD):
            self._paused = False
            self._transport.resume_reading()
        return message

    def _advance(self) -> None:
        """To the end of the next message, or of what has come."""
        try:
            if not self._known:
                if not require_greeting(self._reader.held):
                    return
                del self._reader.held[:GREETING_BYTES]
                self._known = True
                self._transport.write(ready(self.hub.kind))
            while self.message is None and not self._transport.is_closing():
                found = self._reader.take()
                if found is None:
                    return
                flags, body = found
                if flags & COMMAND:
                    self._command(*split_command(body))
                elif not self.greeted:
                    raise Damaged("a message before the handshake")
                else:
                    self._frame(flags, body)
        except Damaged as e:
            self.cut(str(e))

    def _frame(self, flags: int, body: bytes) -> None:
        self._frames.append(body)
        if len(self._frames) > MOST_FRAMES or sum(map(len, self._frames)) > self.hub.limits.message_bytes:
            raise Damaged(f"a message of more than {MOST_FRAMES} frames or {self.hub.limits.message_bytes:,} bytes")
        if not flags & MORE:
            message, self._frames = self._frames, []
            self.hub.took(self, message)

    def _command(self, name: bytes, data: bytes) -> None:
        self.count_command()
        if not self.greeted:
            if name != b"READY":
                raise Damaged(f"{name[:20]!r} in place of READY")
            if (kind := socket_type(data)) not in self.hub.peer_kinds:
                raise Damaged(f"a socket of type {kind[:20]!r} where {self.hub.kind} serves")
            self.greeted = True
        elif name == b"PING":
            self._transport.write(command(b"PONG", data[2:18]))
        elif name in (b"SUBSCRIBE", b"CANCEL"):
            self.hub.took(self, [(b"\1" if name == b"SUBSCRIBE" else b"\0") + data])

    def count_command(self) -> None:
        """Raises Damaged for the one that is too many."""
        now = time.monotonic()
        self._commands = min(COMMANDS, self._commands + (now - self._counted) * COMMANDS_PER_SECOND) - 1
        self._counted = now
        if self._commands < 0:
            raise Damaged("too many commands or subscriptions")

    # --- writing ----------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Frames that are made already."""
        self._transport.write(data)

    @property
    def reads(self) -> bool:
        """Whether nothing waits to be read by the client."""
        return self._writable.is_set()

    def send(self, message: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(frame(message))

    async def answer(self, message: bytes) -> None:
        """Send it, and wait until the client has read it, or has gone."""
        self.send(message)
        await self._writable.wait()

    def say_goodbye(self, message: bytes) -> None:
        """Send it and close when the client has read it."""
        self.send(message)
        self._transport.close()

    def close(self) -> None:
        """Once all is read."""
        self._transport.close()

    def cut(self, why: str) -> None:
        """At once, whatever is under way."""
        self.hub.complain(f"a client was cut off: {why}")
        self._transport.abort()
        self.hub.left(self)
