"""The daemon's sockets: ROUTER for requests, XPUB for the feed, both in a directory that only its owner may enter."""

import asyncio
import fcntl
import logging
import os
import signal
import time
import uuid
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from daemon.launch import torchrun
from daemon.paths import Places, endpoint, make_private
from daemon.protocol import (
    MAX_MESSAGE_BYTES,
    PROTOCOL_VERSION,
    Answer,
    Envelope,
    Refused,
    Reply,
    Welcome,
    encode,
    envelope_decoder,
    request_decoder,
)
from daemon.service import Service
from presets.errors import UserError

log = logging.getLogger("daemon")

TICK = 0.1  # seconds between two looks at the trainers
BEAT = 1.0
MAX_ID = 200  # characters of a request id


def take_lock(places: Places) -> int:
    """Become the one daemon of these places; the lock goes with the returned descriptor. Raises UserError."""
    make_private(places.state)
    descriptor = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise UserError(f"another daemon (pid {holder or 'unknown'}) already serves this directory", where=str(places.state), fix="Use it, or end it with: wanlora daemon stop") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def serve(places: Places, trainer_command: list[str] | None = None) -> None:
    """Run the daemon until SIGTERM, SIGINT or a Shutdown. Trainers go on.

    `trainer_command`: what starts a trainer, followed by the job file, `--out DIR` and perhaps `--resume`; the engine
    through torchrun by default. Raises UserError when another daemon serves these places, they cannot be used, or
    somebody removes them.
    """
    lock = take_lock(places)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # trainers inherit it: the end of a login ends nobody
    try:
        make_private(places.runtime)
        asyncio.run(Server(places, trainer_command or torchrun(), lock).run())
    finally:
        os.close(lock)


class Server:
    """Moves messages between the sockets and the service, and keeps its time."""

    def __init__(self, places: Places, trainer_command: list[str], lock: int) -> None:
        """`lock`: the descriptor from `take_lock`."""
        self._places, self._lock = places, lock
        self._service = Service(places, trainer_command, epoch=uuid.uuid4().hex)
        self._context = zmq.asyncio.Context()
        self._router = self._socket(zmq.ROUTER)
        self._router.setsockopt(zmq.RCVHWM, 16)
        self._router.setsockopt(zmq.SNDHWM, 32)  # replies to a client that does not read them are dropped
        self._feed = self._socket(zmq.XPUB)
        self._feed.setsockopt(zmq.XPUB_VERBOSE, 1)  # every subscription is seen, so that each gets its welcome
        self._feed.setsockopt(zmq.SNDHWM, 5000)  # beyond that a slow subscriber loses messages, and asks for them later

    def _socket(self, kind: int) -> Any:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.LINGER, 1000)
        return socket

    async def run(self) -> None:
        """Serve until asked to end."""
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end.set)
        self._bind()
        log.info("serving %s, pid %d", self._places.runtime, os.getpid())
        tasks = [asyncio.create_task(work) for work in (self._requests(end), self._subscriptions(), self._time())]
        waiting = asyncio.create_task(end.wait())
        try:
            done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in [waiting, *tasks]:
                task.cancel()
            await asyncio.gather(waiting, *tasks, return_exceptions=True)
            self._router.close()
            self._feed.close()
            self._context.term()
            for path in (self._places.control, self._places.feed):
                path.unlink(missing_ok=True)
            self._service.close()
            log.info("ended; trainers go on")

    def _bind(self) -> None:
        make_private(self._places.runtime)
        for socket, path in ((self._router, self._places.control), (self._feed, self._places.feed)):
            socket.bind(endpoint(path))
            path.chmod(0o600)

    # --- requests ---------------------------------------------------------------------------------------------

    async def _requests(self, end: asyncio.Event) -> None:
        while True:
            frames = await self._router.recv_multipart()
            reply = await self._reply(frames[1:])
            await self._publish()
            await self._router.send_multipart([frames[0], encode(reply)], flags=zmq.NOBLOCK)
            if self._service.closing:
                end.set()
            await asyncio.sleep(0)  # a flood of requests must not keep the beat from its turn

    async def _reply(self, frames: list[bytes]) -> Reply:
        """The answer to whatever came in: anything that is no request of our version gets a clear refusal."""
        envelope = Envelope()
        try:
            envelope = envelope_decoder.decode(b"".join(frames))
            if envelope.version != PROTOCOL_VERSION:
                return Reply(id=envelope.id[:MAX_ID], answer=_other_version(envelope.version))
            if not 0 < len(envelope.id) <= MAX_ID:
                return Reply(id=envelope.id[:MAX_ID], answer=Refused(f"a request id has 1 to {MAX_ID} characters"))
            request = request_decoder.decode(frames[0])
        except (msgspec.MsgspecError, ValueError, RecursionError) as e:
            return Reply(id=envelope.id[:MAX_ID], answer=Refused(f"not a request that this daemon knows: {e}", "Upgrade wanlora on both sides"))
        try:
            return Reply(id=request.id, answer=await self._service.answer(request))
        except Exception as e:  # a bug of ours: it must not take the other clients' daemon away
            log.exception("request failed")
            return Reply(id=request.id, answer=Refused(f"the daemon failed on this request: {type(e).__name__} {e}", f"Please report it, with {self._places.log}"))

    # --- feed -------------------------------------------------------------------------------------------------

    async def _subscriptions(self) -> None:
        while True:
            message = await self._feed.recv()
            if message.startswith(b"\x01"):
                await self._feed.send(encode(Welcome(self._service.epoch)), flags=zmq.NOBLOCK)
            await asyncio.sleep(0)

    async def _publish(self) -> None:
        messages, self._service.outbox = self._service.outbox, []
        for message in messages:
            await self._feed.send(encode(message), flags=zmq.NOBLOCK)

    async def _time(self) -> None:
        next_beat = 0.0
        while True:
            try:
                self._service.tick()
            except Exception:  # a bug of ours, in one job perhaps: the others go on
                log.exception("tick failed")
                await asyncio.sleep(BEAT)
            await self._publish()
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + BEAT
                await self._feed.send(encode(self._service.beat()), flags=zmq.NOBLOCK)
                self._require_state()
                self._rebind()
            await asyncio.sleep(TICK)

    def _require_state(self) -> None:
        """End when the state directory is gone, and the lock with it: the next daemon may be at work there already.
        Raises UserError."""
        try:
            ours = os.path.samestat(self._places.lock.stat(), os.fstat(self._lock))
        except FileNotFoundError:
            ours = False
        if not ours:
            raise UserError("the state directory was removed while the daemon ran, and its job table with it", where=str(self._places.state), fix="Trainers go on; their run folders are whole")

    def _rebind(self) -> None:
        """Come back when somebody removed the runtime directory, as login managers do when a user logs out."""
        if self._places.control.exists() and self._places.feed.exists():
            return
        try:
            for socket, path in ((self._router, self._places.control), (self._feed, self._places.feed)):
                socket.unbind(endpoint(path))
            self._bind()
            log.info("%s was removed; serving again", self._places.runtime)
        except (OSError, UserError, zmq.ZMQError) as e:
            log.warning("%s was removed and cannot be made again yet: %s", self._places.runtime, e)


def _other_version(version: int) -> Answer:
    older = "this client: upgrade wanlora there" if version < PROTOCOL_VERSION else "the daemon: upgrade wanlora where it runs, then `wanlora daemon stop` and `wanlora daemon start`"
    return Refused(f"this client speaks protocol version {version}, the daemon version {PROTOCOL_VERSION}", f"The older one is {older}")
