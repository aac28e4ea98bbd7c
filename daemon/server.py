"""The daemon's process: moves messages between its sockets and the service, and keeps its time.

What a request does is daemon.jobs.requests's; the sockets themselves are daemon.sockets's.
"""

import asyncio
import gc
import logging
import signal
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from daemon.jobs.requests import Requests
from daemon.jobs.service import Service
from daemon.log_file import LogFile
from daemon.processes.open_files import raise_limit
from daemon.processes.start_trainer import torchrun
from daemon.sockets import Sockets, turned_away
from daemon.tcp.network import Network, NetworkClient
from daemon.wire.lock import Lock, take_lock
from daemon.wire.paths import DaemonPaths
from daemon.wire.protocol import (
    LANE,
    MAX_ID,
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
from daemon.zmtp.hub import LOOK
from daemon.zmtp.peer import Peer
from presets.errors import UserError

log = logging.getLogger("daemon")

TICK = 0.25  # seconds between two looks at the trainers, where nothing asks for one
AHEAD = 0.05  # seconds before it is due, in which it is taken along with news: a wake of the process costs more
BEAT = 1.0
GARBAGE = 50_000  # objects until it is collected: events, which are most of them, hold no cycles
LOG_LOOK = 60.0  # seconds between two looks at the trainers' logs
LAUNCH_SECONDS = 10.0  # for a launch that is under way when the daemon is to end


def serve(
    paths: DaemonPaths, log_file: LogFile, trainer_command: list[str] | None = None, settings: Path | None = None
) -> None:
    """Run the daemon until SIGTERM, SIGINT or a Shutdown. Trainers keep running.

    `trainer_command`: what starts a trainer, followed by the job file, `--out DIR` and perhaps `--resume`; the engine
    through torchrun by default. `settings`: their file, the user's own by default. `log_file`: where this process says
    what it does. Raises UserError when another daemon serves these paths, they cannot be used, or somebody removes
    them.
    """
    lock = take_lock(paths, *log_file.said)
    raise_limit()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # trainers inherit it: the end of a login ends nobody
    try:
        asyncio.run(_run(paths, trainer_command or torchrun(), lock, settings, log_file))
    finally:
        lock.close()


async def _run(
    paths: DaemonPaths, trainer_command: list[str], lock: Lock, settings: Path | None, log_file: LogFile
) -> None:
    await Server(paths, trainer_command, lock, settings, log_file).run()


class Server:
    """The daemon, but for its jobs."""

    def __init__(
        self, paths: DaemonPaths, trainer_command: list[str], lock: Lock, settings: Path | None, log_file: LogFile
    ) -> None:
        self._paths, self._lock, self._log = paths, lock, log_file
        self._service = Service(paths, trainer_command, epoch=uuid.uuid4().hex, settings=settings)
        self._service.on_news = self._on_news
        self._tick_due = 0.0
        self._requests = Requests(self._service)
        self._remote_requests = Requests(self._service, beside=self._requests)
        self._sockets = Sockets(paths, lock, lambda: encode(Welcome(self._service.epoch)))
        self._router, self._feed = self._sockets.router, self._sockets.feed
        self._network = Network(
            paths,
            self._service.background,
            encode(Welcome(self._service.epoch)),
            lambda: bool(self._service.settings.value.tcp.listen),
        )
        self._lanes: dict[
            Peer | NetworkClient, deque[list[bytes]]
        ] = {}  # client -> its requests that are not answered yet
        self._lane_tasks: set[asyncio.Task[None]] = set()
        self._end = asyncio.Event()

    async def run(self) -> None:
        """Serve until asked to end."""
        end = self._end
        gc.collect()
        gc.freeze()  # what was imported is no garbage
        gc.set_threshold(GARBAGE)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end.set)
        loop.add_signal_handler(signal.SIGCHLD, self._service.hurry.set)
        await self._network.start()
        try:
            self._sockets.settle()
        except OSError as e:
            raise UserError(
                f"no folder for the sockets can be had: {e}",
                where=str(self._paths.runtime),
                fix="Name a directory of your own with --dir",
            ) from None
        works = (
            self._receive(self._router.receive),
            self._receive(self._network.requests.get),
            self._network.run(),
            self._time(),
            self._keep_logs_small(),
        )
        tasks = [asyncio.create_task(work) for work in works]
        waiting = asyncio.create_task(end.wait())
        try:
            done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in [waiting, *tasks]:
                task.cancel()
            await asyncio.gather(waiting, *tasks, return_exceptions=True)
            await self._service.runner.launched(LAUNCH_SECONDS)
            await self._network.close()
            await self._sockets.close()
            self._service.close()
            log.info("ended; trainers keep running")

    # --- requests ---------------------------------------------------------------------------------------------

    async def _receive(self, next_one: Callable[[], Awaitable[tuple[Peer | NetworkClient, list[bytes]]]]) -> None:
        """A client's requests are answered in the order in which they came; one that waits for a disk holds up no other
        client."""
        while True:
            client, frames = await next_one()
            if client.surplus:
                why = turned_away(self._router.limits.connections)
                client.say_goodbye(_refused(frames, why.what, why.fix))
                continue
            lane = self._lanes.get(client)
            if lane is None:
                self._lanes[client] = deque([frames])
                task = asyncio.create_task(self._serve(client))
                self._lane_tasks.add(task)
                task.add_done_callback(self._lane_tasks.discard)
            elif len(lane) < LANE:
                lane.append(frames)
            else:
                client.send(_refused(frames, "too many requests at once", "Wait for an answer before the next request"))
            await asyncio.sleep(0)  # a flood of requests must not keep the beat from its turn

    async def _serve(self, client: Peer | NetworkClient) -> None:
        lane = self._lanes[client]
        while lane:
            while self._router.is_crowded:  # clients that read nothing are cut off, and then there is room again
                await asyncio.sleep(TICK)
            requests = self._remote_requests if client.remote else self._requests
            reply = await self._reply(lane[0], requests)
            self._publish()
            if requests.closing:
                client.say_goodbye(reply)
                self._end.set()
            await client.answer(reply)
            lane.popleft()
        del self._lanes[client]

    async def _reply(self, frames: list[bytes], requests: Requests) -> bytes:
        """The answer to whatever came in: anything that is no request of our version gets a clear refusal."""
        try:
            envelope = envelope_decoder.decode(b"".join(frames))
            if envelope.version != PROTOCOL_VERSION:
                return self._to_other_version(envelope, frames, requests)
            if not 0 < len(envelope.id) <= MAX_ID:
                return _refused(frames, f"a request id has 1 to {MAX_ID} characters")
            request = request_decoder.decode(frames[0])
        except (msgspec.MsgspecError, ValueError, RecursionError) as e:
            return _refused(frames, f"not a request that this daemon knows: {e}", "Upgrade wanlora on both sides")
        try:
            return await requests.reply(request)
        except Exception as e:  # a bug of ours: it must not take the other clients' daemon away
            log.exception("request failed")
            return _refused(
                frames,
                f"the daemon failed on this request: {type(e).__name__} {e}",
                f"Please report it, with {self._log.said.file or 'what the daemon has written'}",
            )

    def _to_other_version(self, envelope: Envelope, frames: list[bytes], requests: Requests) -> bytes:
        """Enough for another version to know us and to end us; the rest is refused."""
        try:
            request = any_version_decoder.decode(frames[0])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return encode(Reply(id=envelope.id[:MAX_ID], answer=_other_version(envelope.version)))
        return encode(Reply(version=request.version, id=request.id[:MAX_ID], answer=requests.stable(request.command)))

    # --- feed -------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        messages, self._service.outbox = self._service.outbox, []
        self._broadcast([encode(message) for message in messages])

    def _on_news(self) -> None:
        self._publish()
        if time.monotonic() >= self._tick_due - AHEAD:
            self._service.hurry.set()

    def _broadcast(self, messages: list[bytes]) -> None:
        self._feed.publish(messages)
        self._network.publish(messages)

    async def _time(self) -> None:
        next_beat = next_tidy = 0.0
        while True:
            try:
                self._service.tick()
            except Exception:  # a bug of ours, in one job perhaps: the others continue
                log.exception("tick failed")
                await asyncio.sleep(BEAT)
            self._publish()
            soon = time.monotonic() + TICK / 2  # what falls due before the next look is done with this one
            if soon >= next_tidy:
                next_tidy = time.monotonic() + LOOK
                self._sockets.tidy()
            if soon >= next_beat:
                next_beat = time.monotonic() + BEAT
                looked_at = self._feed.is_heard or self._network.is_heard
                self._broadcast([encode(self._service.beat(looked_at=looked_at))])
                self._service.show_life()
                self._log.keep_small()
                self._lock.tell(*self._log.said)
                self._keep_place()
            self._tick_due = time.monotonic() + TICK
            at_last = asyncio.get_running_loop().call_later(TICK, self._service.hurry.set)  # no wait_for: half as dear
            await self._service.hurry.wait()
            at_last.cancel()
            self._service.hurry.clear()

    async def _keep_logs_small(self) -> None:
        while True:
            await asyncio.sleep(LOG_LOOK)
            await self._service.runner.keep_logs_small()

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
        except (OSError, UserError) as e:
            log.warning("no folder for the sockets can be had yet: %s", e)


def _refused(frames: list[bytes], what: str, fix: str = "") -> bytes:
    try:
        asked = envelope_decoder.decode(b"".join(frames)).id[:MAX_ID]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        asked = ""
    return encode(Reply(id=asked, answer=Refused(what, fix)))


def _other_version(version: int) -> Answer:
    older = (
        "this client: upgrade wanlora there. What was open during an upgrade is only to be left and opened again"
        if version < PROTOCOL_VERSION
        else "the daemon: upgrade wanlora where it runs, if that is not done, and renew it there with: wanlora daemon"
        " restart"
    )
    return Refused(
        f"this client speaks protocol version {version}, the daemon version {PROTOCOL_VERSION}",
        f"The older one is {older}",
    )
