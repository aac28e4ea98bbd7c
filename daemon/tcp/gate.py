"""What stands before a socket of libzmq: it passes bytes on and counts them. What they say is encrypted.

libzmq takes as many connections as come, and keeps the frames of an unfinished message and every subscription, also
those of a client whose key was stolen.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from daemon.zmtp.frames import GREETING_BYTES, Damaged, FrameReader

log = logging.getLogger("daemon")

CHUNK = 2**16
OVERHEAD = 512  # bytes that encryption adds to a frame, and more than a handshake's commands have
UNANSWERED = 1024  # frames that a client may send without any word from us
FRAMES, FRAMES_PER_SECOND = 300.0, 5.0  # for a subscriber, who has nothing to say but heartbeats


class Gate:
    """Listens at an address, and connects each client to the socket behind it."""

    def __init__(self, behind: Path, connections: int, frame_bytes: int, *, subscribers: bool) -> None:
        """`behind`: the socket. `subscribers`: they get all the time, so answers are no measure."""
        self._behind, self._connections, self._subscribers = behind, connections, subscribers
        self._frame_bytes = frame_bytes + OVERHEAD
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._complained = 0.0

    async def listen(self, host: str, port: int) -> None:
        """Raises OSError."""
        self._server = await asyncio.start_server(self._client, host, port, limit=CHUNK)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut_all()
        await asyncio.gather(*self._open, return_exceptions=True)

    def cut_all(self) -> None:
        """End all connections. Clients come back by themselves, and have to show their keys again."""
        for task in self._open:
            task.cancel()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= self._connections:
            self._complain(f"all {self._connections} connections from the network are taken; another one was refused")
            writer.transport.abort()
            return
        self._open.add(task)
        behind: asyncio.StreamWriter | None = None
        pumps: list[asyncio.Task[None]] = []
        try:
            answers, behind = await asyncio.open_unix_connection(self._behind, limit=CHUNK)
            count = _Count(self._frame_bytes, subscriber=self._subscribers)
            pumps = [
                asyncio.create_task(self._pass_on(reader, behind, count.sent)),
                asyncio.create_task(self._pass_on(answers, writer, count.answered)),
            ]
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        except Damaged as e:
            self._complain(f"a client from the network was cut off: {e}")
        except (OSError, asyncio.CancelledError):
            pass  # it has gone, or the gate closes
        finally:
            for one in pumps:
                one.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (writer, behind):
                if end is not None:
                    end.transport.abort()
            self._open.discard(task)

    async def _pass_on(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, count: Callable[[bytes], None]
    ) -> None:
        while data := await source.read(CHUNK):
            count(data)
            to.write(data)
            await to.drain()

    def _complain(self, text: str) -> None:
        if time.monotonic() - self._complained > 10:
            self._complained = time.monotonic()
            log.warning("%s", text)


class _Count:
    """What one client has sent."""

    def __init__(self, frame_bytes: int, *, subscriber: bool) -> None:
        self._reader, self._subscriber = FrameReader(frame_bytes), subscriber
        self._greeting = GREETING_BYTES  # bytes of it that have not come
        self._frames = 0
        self._left, self._at = FRAMES, time.monotonic()

    def sent(self, data: bytes) -> None:
        """Raises Damaged for more than is taken."""
        greeting, data = data[: self._greeting], data[self._greeting :]
        self._greeting -= len(greeting)
        self._reader.held += data
        while self._reader.take() is not None:
            self._frames += 1
            now = time.monotonic()
            self._left = min(FRAMES, self._left + (now - self._at) * FRAMES_PER_SECOND) - 1
            self._at = now
            if self._left < 0 if self._subscriber else self._frames > UNANSWERED:
                raise Damaged("too many frames")

    def answered(self, data: bytes) -> None:
        self._frames = 0
