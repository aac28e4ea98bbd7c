"""The daemon's process: moves messages between its sockets and the service, and keeps its time.

What a request does is daemon.jobs.requests's; the sockets themselves are daemon.sockets's.
"""

import asyncio
import logging
import signal
import time
import uuid
from collections import deque

import msgspec
import zmq

from daemon.jobs.requests import Requests
from daemon.jobs.service import Service
from daemon.processes.start_trainer import torchrun
from daemon.sockets import Sockets
from daemon.wire.lock import Lock, take_lock
from daemon.wire.paths import DaemonPaths
from daemon.wire.protocol import (
    PROTOCOL_VERSION,
    Answer,
    Envelope,
    Refused,
    Reply,
    Welcome,
    any_version_decoder,
    encode,
    envelope_decoder,
    request_decoder,
)
from presets.errors import UserError

log = logging.getLogger("daemon")

TICK = 0.1  # seconds between two looks at the trainers
BEAT = 1.0
MAX_ID = 200  # characters of a request id
LANE = 16  # requests of one client that may wait for their turn


def serve(paths: DaemonPaths, trainer_command: list[str] | None = None) -> None:
    """Run the daemon until SIGTERM, SIGINT or a Shutdown. Trainers keep running.

    `trainer_command`: what starts a trainer, followed by the job file, `--out DIR` and perhaps `--resume`; the engine
    through torchrun by default. Raises UserError when another daemon serves these paths, they cannot be used, or
    somebody removes them.
    """
    lock = take_lock(paths)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # trainers inherit it: the end of a login ends nobody
    try:
        asyncio.run(_run(paths, trainer_command or torchrun(), lock))
    finally:
        lock.close()


async def _run(paths: DaemonPaths, trainer_command: list[str], lock: Lock) -> None:
    await Server(paths, trainer_command, lock).run()


class Server:
    """The daemon, but for its jobs."""

    def __init__(self, paths: DaemonPaths, trainer_command: list[str], lock: Lock) -> None:
        self._paths, self._lock = paths, lock
        self._service = Service(paths, trainer_command, epoch=uuid.uuid4().hex)
        self._requests = Requests(self._service)
        self._sockets = Sockets(paths, lock)
        self._router, self._feed = self._sockets.router, self._sockets.feed
        self._lanes: dict[bytes, deque[list[bytes]]] = {}  # client -> its requests that are not answered yet
        self._lane_tasks: set[asyncio.Task[None]] = set()
        self._publishing = asyncio.Lock()
        self._end = asyncio.Event()

    async def run(self) -> None:
        """Serve until asked to end."""
        end = self._end
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end.set)
        try:
            self._sockets.settle()
        except (OSError, zmq.ZMQError) as e:
            raise UserError(
                f"no folder for the sockets can be had: {e}",
                where=str(self._paths.runtime),
                fix="Name a directory of your own with --dir",
            ) from None
        tasks = [asyncio.create_task(work) for work in (self._receive(), self._subscriptions(), self._time())]
        waiting = asyncio.create_task(end.wait())
        try:
            done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in [waiting, *tasks]:
                task.cancel()
            await asyncio.gather(waiting, *tasks, return_exceptions=True)
            self._sockets.close()
            self._service.close()
            log.info("ended; trainers keep running")

    # --- requests ---------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        """A client's requests are answered in the order in which they came; one that waits for a disk holds up no other
        client."""
        while True:
            client, *frames = await self._router.recv_multipart()
            lane = self._lanes.get(client)
            if lane is None:
                self._lanes[client] = deque([frames])
                task = asyncio.create_task(self._serve(client))
                self._lane_tasks.add(task)
                task.add_done_callback(self._lane_tasks.discard)
            elif len(lane) < LANE:
                lane.append(frames)
            else:
                await self._send(
                    client, _refused(frames, "too many requests at once", "Wait for an answer before the next request")
                )
            await asyncio.sleep(0)  # a flood of requests must not keep the beat from its turn

    async def _serve(self, client: bytes) -> None:
        lane = self._lanes[client]
        while lane:
            reply = await self._reply(lane[0])
            await self._publish()
            await self._send(client, reply)
            lane.popleft()
        del self._lanes[client]

    async def _send(self, client: bytes, reply: bytes) -> None:
        try:
            await self._router.send_multipart([client, reply], flags=zmq.NOBLOCK)
        except zmq.ZMQError as e:
            log.warning("an answer could not be sent: %s", e)
        if self._requests.closing:
            self._end.set()

    async def _reply(self, frames: list[bytes]) -> bytes:
        """The answer to whatever came in: anything that is no request of our version gets a clear refusal."""
        try:
            envelope = envelope_decoder.decode(b"".join(frames))
            if envelope.version != PROTOCOL_VERSION:
                return self._to_other_version(envelope, frames)
            if not 0 < len(envelope.id) <= MAX_ID:
                return _refused(frames, f"a request id has 1 to {MAX_ID} characters")
            request = request_decoder.decode(frames[0])
        except (msgspec.MsgspecError, ValueError, RecursionError) as e:
            return _refused(frames, f"not a request that this daemon knows: {e}", "Upgrade wanlora on both sides")
        try:
            return await self._requests.reply(request)
        except Exception as e:  # a bug of ours: it must not take the other clients' daemon away
            log.exception("request failed")
            return _refused(
                frames,
                f"the daemon failed on this request: {type(e).__name__} {e}",
                f"Please report it, with {self._paths.log}",
            )

    def _to_other_version(self, envelope: Envelope, frames: list[bytes]) -> bytes:
        """Enough for another version to know us and to end us; the rest is refused."""
        try:
            request = any_version_decoder.decode(frames[0])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return encode(Reply(id=envelope.id[:MAX_ID], answer=_other_version(envelope.version)))
        return encode(
            Reply(version=request.version, id=request.id[:MAX_ID], answer=self._requests.stable(request.command))
        )

    # --- feed -------------------------------------------------------------------------------------------------

    async def _subscriptions(self) -> None:
        while True:
            message = await self._feed.recv()
            if message.startswith(b"\x01"):
                await self._feed.send(encode(Welcome(self._service.epoch)), flags=zmq.NOBLOCK)
            await asyncio.sleep(0)

    async def _publish(self) -> None:
        async with self._publishing:  # in the order in which it happened, whoever publishes
            messages, self._service.outbox = self._service.outbox, []
            for message in messages:
                await self._feed.send(encode(message), flags=zmq.NOBLOCK)

    async def _time(self) -> None:
        next_beat = 0.0
        while True:
            try:
                self._service.tick()
            except Exception:  # a bug of ours, in one job perhaps: the others continue
                log.exception("tick failed")
                await asyncio.sleep(BEAT)
            await self._publish()
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + BEAT
                await self._feed.send(encode(self._service.beat()), flags=zmq.NOBLOCK)
                self._keep_place()
            await asyncio.sleep(TICK)

    def _keep_place(self) -> None:
        """Stay reachable, and end when the state directory is missing, and the lock with it: the next daemon may be at
        work there already. Raises UserError."""
        if not self._lock.is_in_place():
            raise UserError(
                "the state directory was removed while the daemon ran, and its job table with it",
                where=str(self._paths.state),
                fix="Trainers keep running; their run folders are whole",
            )
        try:
            self._sockets.settle()
        except (OSError, UserError, zmq.ZMQError) as e:
            log.warning("no folder for the sockets can be had yet: %s", e)


def _refused(frames: list[bytes], what: str, fix: str = "") -> bytes:
    try:
        asked = envelope_decoder.decode(b"".join(frames)).id[:MAX_ID]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        asked = ""
    return encode(Reply(id=asked, answer=Refused(what, fix)))


def _other_version(version: int) -> Answer:
    older = (
        "this client: upgrade wanlora there"
        if version < PROTOCOL_VERSION
        else "the daemon: upgrade wanlora where it runs, then `wanlora daemon stop` and `wanlora daemon start`"
    )
    return Refused(
        f"this client speaks protocol version {version}, the daemon version {PROTOCOL_VERSION}",
        f"The older one is {older}",
    )
