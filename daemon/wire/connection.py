"""A client's sockets: a request with its answer, and the feed, each found anew when the daemon has moved.

What is asked is daemon.wire.client's.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import zmq
import zmq.asyncio

from daemon.errors import DaemonError, NotRunning, RequestRefused
from daemon.wire import protocol as wire
from daemon.wire.blocking import MOST_LATE, dealer, read_reply
from daemon.wire.find import DaemonLocation, find, not_running, require_daemon
from daemon.wire.paths import daemon_paths, endpoint
from presets.text import escaped

SILENCE = 3.0  # seconds without any message, three beats, after which a feed counts as lost
LONGEST_PAUSE = 1.0  # seconds between two attempts to find a lost daemon again

_T = TypeVar("_T", bound=wire.Answer)


class Connection:
    """Use as `async with`. Every method raises NotRunning, VersionMismatch or RequestRefused."""

    def __init__(self, dir: Path | None = None, *, timeout: float = 5.0, retries: int = 3, here: bool = True) -> None:
        """`timeout`: seconds for one answer; a request is sent again `retries` times. `here`: the daemon is on this
        machine, so what is submitted or resumed takes this process's settings along (presets.machine.shell)."""
        self.note = ""  # the newest that came with an answer
        self._dir, self._here = dir, here
        self._found = DaemonLocation(daemon_paths(dir), None)  # as far as is known; looked up anew for each request
        self._timeout, self._retries = timeout, retries
        self._context = zmq.asyncio.Context()
        self._dealer: Any = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        try:
            await self.hello()
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._hang_up()
        self._context.destroy(linger=0)

    def _hang_up(self) -> None:
        if self._dealer is not None:
            self._dealer.close(linger=0)
            self._dealer = None

    # --- requests ---------------------------------------------------------------------------------------------

    async def hello(self) -> wire.HelloReply:
        """The daemon's epoch and pid."""
        return await self._ask(wire.Hello(wire.PROTOCOL_VERSION), wire.HelloReply)

    async def _ask(
        self,
        command: wire.Command,
        expected: type[_T],
        reading: Callable[[int, int], None] = lambda done, total: None,
    ) -> _T:
        """The answer; to what may have to be read first, however long that takes."""
        while isinstance(answer := await self._exchange(command), wire.Reading):
            reading(answer.done, answer.total)
        if not isinstance(answer, expected):
            raise DaemonError(f"the daemon answered {type(answer).__name__} where {expected.__name__} was due")
        return answer

    async def _exchange(self, command: wire.Command) -> wire.Answer:
        data = _encoded(wire.Request(id=(request_id := uuid.uuid4().hex), command=command))
        if len(data) > wire.MAX_REQUEST_BYTES:
            raise DaemonError(f"the request has {len(data)} bytes, the daemon takes {wire.MAX_REQUEST_BYTES}")
        async with self._lock:
            for attempt in range(self._retries + 1):
                try:
                    self._connect()
                except NotRunning as e:
                    trouble = e
                    self._hang_up()
                    if attempt == 0 and self._found.holder is None:
                        raise
                    if attempt < self._retries:
                        # it went away or moves: a new one, or the same elsewhere, may know the answer
                        await asyncio.sleep(0.2 * 2**attempt)
                else:
                    await self._dealer.send(data)
                    answer = await self._answer(request_id)
                    if answer is not None:
                        self.note = getattr(answer, "note", "") or self.note
                        return answer
                    self._hang_up()
                    trouble = not_running(self._found, self._timeout * (attempt + 1))
                if self._found.holder is not None and self._found.holder.is_stopped:
                    raise trouble
        raise trouble

    def _connect(self) -> None:
        """To where the daemon is now: it moves when its folder is taken away. Raises NotRunning."""
        found = find(self._dir)
        if found.where != self._found.where:
            self._hang_up()
        self._found = found
        require_daemon(found, found.where.control, connected=self._dealer is not None)
        if self._dealer is None:
            self._dealer = dealer(self._context, found.where)

    async def _answer(self, request_id: str) -> wire.Answer | None:
        """The answer to a request, or None when none comes in time. Answers to earlier, given-up requests are
        dropped. After the time a look is taken all the same: this process may have slept through it, and the answer
        is there, though not behind more than a client can have given up."""
        loop = asyncio.get_running_loop()
        deadline, late = loop.time() + self._timeout, 0
        while late <= MOST_LATE and await self._dealer.poll(int(max(0.0, deadline - loop.time()) * 1000) + 1):
            answer = read_reply(await self._dealer.recv(), request_id)
            if answer is not None:
                return answer
            late += loop.time() > deadline
        return None

    # --- feed -------------------------------------------------------------------------------------------------

    async def feed(self) -> AsyncIterator[wire.Feed]:
        """Everything the daemon publishes from now on: a Welcome first of all after each (re)connection and whenever
        another client subscribes, then Beats, RunEvents and JobChangeds. Lost messages stay lost: see `follow`.

        Finds a lost daemon again by itself, for as long as it takes; only the first connection raises NotRunning, or
        RequestRefused where there are too many subscribers. A daemon that is away shows in the beats that do not come.
        """
        found = find(self._dir)
        require_daemon(found, found.where.feed)
        pause, heard = 0.1, False
        while True:
            subscriber = self._context.socket(zmq.SUB)
            try:
                subscriber.setsockopt(zmq.LINGER, 0)
                subscriber.setsockopt(zmq.RCVHWM, 5000)
                subscriber.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
                subscriber.setsockopt(zmq.SUBSCRIBE, b"")
                subscriber.connect(endpoint(found.where.feed))
                while await subscriber.poll(int(SILENCE * 1000)):
                    message = await self._read_feed(await subscriber.recv())
                    if isinstance(message, wire.TurnedAway):
                        if not heard:
                            raise RequestRefused(message.what, fix=message.fix)
                        break  # one who was there before comes in again
                    pause, heard = 0.1, True
                    if message is not None:
                        yield message
            finally:
                subscriber.close(linger=0)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            with suppress(DaemonError):
                there = find(self._dir)
                require_daemon(there, there.where.feed)
                found = there

    async def _read_feed(self, data: bytes) -> wire.Feed | None:
        """None: a kind of message that newer daemons publish."""
        try:
            return wire.feed_decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as e:
            if wire.is_newer_kind(data):
                return None
            await self.hello()  # says so if it is another version by now
            raise DaemonError(
                f"the daemon published what this client cannot read: {e}", fix="Upgrade wanlora on both sides"
            ) from None


def _encoded(request: wire.Request) -> bytes:
    """Raises DaemonError for a value that no message carries."""
    try:
        return wire.encode(request)
    except OverflowError as e:
        raise DaemonError(
            f"a number in this request is too large for any ({e})", fix="Numbers have 64 bits; give another"
        ) from None
    except UnicodeEncodeError as e:
        raise DaemonError(
            f"{escaped(e.object)[:200]} is not UTF-8, so it cannot be sent", fix="Rename what it names"
        ) from None
