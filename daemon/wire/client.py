"""How the dashboard and the commands talk to the daemon. Asyncio; no call waits for ever.

Requests are repeated under one id on a fresh socket when no answer comes, and act once. `follow` subscribes first and
then asks for what it missed, so it yields every event of a run exactly once, in order, through lost messages, a
daemon's restart and its own lateness.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import zmq
import zmq.asyncio

from daemon.errors import DaemonError, NotAnswering, NotRunning
from daemon.wire import protocol as wire
from daemon.wire.blocking import dealer, read_reply
from daemon.wire.find import DaemonLocation, find, not_running, require_daemon
from daemon.wire.paths import daemon_paths, endpoint
from presets.job.resume_check import ResumeCheck
from presets.machine.shell import Shell, shell_here
from presets.runs.checkpoints import StoredCheckpoint
from presets.runs.events import Event
from presets.runs.run_view import RunView

SILENCE = 3.0  # seconds without any message, three beats, after which a feed counts as lost
LONGEST_PAUSE = 8.0  # seconds between two attempts to find a lost daemon again

_T = TypeVar("_T", bound=wire.Answer)


class Client:
    """A connection to the daemon of `dir` (the user's own by default). Use as `async with Client() as client`.

    Every method raises NotRunning, VersionMismatch or RequestRefused. A job is named by its id or its name.
    """

    def __init__(self, dir: Path | None = None, *, timeout: float = 5.0, retries: int = 3, here: bool = True) -> None:
        """`timeout`: seconds for one answer; a request is sent again `retries` times. `here`: the daemon is on this
        machine, so what is submitted or resumed takes this process's settings along (presets.machine.shell)."""
        self._dir, self._here = dir, here
        self._found = DaemonLocation(daemon_paths(dir), None)  # as far as is known; looked up anew for each request
        self._timeout, self._retries = timeout, retries
        self._context = zmq.asyncio.Context()
        self._dealer: Any = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> "Client":
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

    async def submit(
        self,
        job_path: str | Path,
        out: str | Path = "",
        *,
        resume: bool = False,
        from_step: int | None = None,
        accepted: str | None = None,
    ) -> wire.JobRecord:
        """Queue a job file; `out` defaults to the folder `runs` beside it. Paths may be relative to here.

        `resume`: continue the run that lies in its run folder, whoever began it; the rest as for `resume`.
        """
        where = str(Path(job_path).absolute()), str(Path(out).absolute()) if out else ""
        return (
            await self._ask(
                wire.Submit(*where, resume=resume, from_step=from_step, accepted=accepted, shell=await self._shell()),
                wire.JobReply,
            )
        ).job

    async def jobs(self) -> list[wire.JobRecord]:
        """All jobs, oldest first."""
        return (await self._ask(wire.Jobs(), wire.JobsReply)).jobs

    async def show(self, job: str | int) -> wire.JobRecord:
        return (await self._ask(wire.Show(str(job)), wire.JobReply)).job

    async def snapshot(self, job: str | int) -> tuple[wire.JobRecord, RunView]:
        """The job and the fold of all its events so far."""
        reply = await self._ask(wire.Snapshot(str(job)), wire.SnapshotReply)
        return reply.job, reply.view

    async def replay(self, job: str | int, since: int = 0) -> list[Event]:
        """Every event after `since`."""
        return [event async for event in self._replay(str(job), since)]

    async def stop(self, job: str | int) -> wire.JobRecord:
        """Have it saved and stopped; the answer comes at once, the end later in the feed."""
        return (await self._ask(wire.Stop(str(job)), wire.JobReply)).job

    async def resume(self, job: str | int, from_step: int | None = None, accepted: str | None = None) -> wire.JobRecord:
        """Queue an ended job again, from its newest checkpoint or that of `from_step`. Its job file is read anew:
        changes that break exactness are refused unless `accepted` is the digest of just these
        (presets.job.resume_check)."""
        return (await self._ask(wire.Resume(str(job), from_step, accepted, await self._shell()), wire.JobReply)).job

    async def _shell(self) -> Shell | None:
        return await asyncio.to_thread(shell_here) if self._here else None

    async def resume_check(self, job: str | int) -> ResumeCheck:
        """How the job file differs by now from what the last attempt was given, and whether the run may be resumed with
        it."""
        return (await self._ask(wire.Changes(str(job)), wire.ChangesReply)).resume_check

    async def checkpoints(self, job: str | int) -> tuple[wire.JobRecord, list[StoredCheckpoint]]:
        """The checkpoints that a job can go back to, oldest first."""
        reply = await self._ask(wire.Checkpoints(str(job)), wire.CheckpointsReply)
        return reply.job, reply.checkpoints

    async def set(self, job: str | int, field: str, value: str) -> wire.JobRecord:
        """Change a field of a running job; the answer comes at once, the `changed` event when the trainer has done
        it."""
        return (await self._ask(wire.Set(str(job), field, value), wire.JobReply)).job

    async def save_now(self, job: str | int) -> wire.JobRecord:
        return (await self._ask(wire.SaveNow(str(job)), wire.JobReply)).job

    async def sample_now(self, job: str | int) -> wire.JobRecord:
        return (await self._ask(wire.SampleNow(str(job)), wire.JobReply)).job

    async def cancel(self, job: str | int) -> wire.JobRecord:
        return (await self._ask(wire.Cancel(str(job)), wire.JobReply)).job

    async def shutdown(self) -> None:
        """End the daemon; trainers keep running. A daemon that has ended already is no error."""
        try:
            await self._ask(wire.Shutdown(), wire.Done)
        except NotAnswering:
            raise
        except NotRunning:
            return

    async def _replay(self, job: str, since: int) -> AsyncIterator[Event]:
        more = True
        while more:
            reply = await self._ask(wire.Replay(job, since), wire.ReplayReply)
            more = reply.more
            for event in reply.events:
                since = event.seq
                yield event

    async def _ask(self, command: wire.Command, expected: type[_T]) -> _T:
        data = wire.encode(wire.Request(id=(request_id := uuid.uuid4().hex), command=command))
        if len(data) > wire.MAX_MESSAGE_BYTES:
            raise DaemonError(f"the request has {len(data)} bytes, the daemon takes {wire.MAX_MESSAGE_BYTES}")
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
                        if not isinstance(answer, expected):
                            raise DaemonError(
                                f"the daemon answered {type(answer).__name__} where {expected.__name__} was due"
                            )
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
        dropped."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        while (left := deadline - loop.time()) > 0:
            if await self._dealer.poll(int(left * 1000) + 1):
                answer = read_reply(await self._dealer.recv(), request_id)
                if answer is not None:
                    return answer
        return None

    # --- feed -------------------------------------------------------------------------------------------------

    async def feed(self) -> AsyncIterator[wire.Feed]:
        """Everything the daemon publishes from now on: a Welcome first of all after each (re)connection and whenever
        another client subscribes, then Beats, RunEvents and JobChangeds. Lost messages stay lost: see `follow`.

        Finds a lost daemon again by itself, for as long as it takes; only the first connection raises NotRunning.
        A daemon that is away shows in the beats that do not come.
        """
        found = find(self._dir)
        require_daemon(found, found.where.feed)
        pause = 0.1
        while True:
            subscriber = self._context.socket(zmq.SUB)
            try:
                subscriber.setsockopt(zmq.LINGER, 0)
                subscriber.setsockopt(zmq.RCVHWM, 5000)
                subscriber.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
                subscriber.setsockopt(zmq.SUBSCRIBE, b"")
                subscriber.connect(endpoint(found.where.feed))
                while await subscriber.poll(int(SILENCE * 1000)):
                    yield await self._read_feed(await subscriber.recv())
                    pause = 0.1
            finally:
                subscriber.close(linger=0)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            with suppress(DaemonError):
                there = find(self._dir)
                require_daemon(there, there.where.feed)
                found = there

    async def _read_feed(self, data: bytes) -> wire.Feed:
        try:
            return wire.feed_decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as e:
            await self.hello()  # says so if it is another version by now
            raise DaemonError(
                f"the daemon published what this client cannot read: {e}", fix="Upgrade wanlora on both sides"
            ) from None

    async def follow(self, job: str | int, since: int = 0) -> AsyncIterator[Event | wire.Beat | wire.JobRecord]:
        """A run from event `since` on, without end: its events in order and each once, its record when it changes
        (an ended job's record comes after its last event), and every beat.

        Raises NotRunning at first only; later it waits for the daemon to come back.
        """
        record: wire.JobRecord | None = None
        last = since
        async for message in self.feed():
            if isinstance(message, wire.Welcome) or record is None or _behind(message, record, last):
                try:
                    fresh = await self.show(job if record is None else record.id)
                    async for event in self._replay(str(fresh.id), last):
                        last = event.seq
                        yield event
                except NotRunning:
                    continue
                if record is None or fresh.revision > record.revision:
                    record = fresh
                    yield record
            match message:
                case wire.RunEvent(job=number, event=event) if number == record.id and event.seq > last:
                    last = event.seq
                    yield event
                case wire.JobChanged(job=changed) if changed.id == record.id and changed.revision > record.revision:
                    record = changed
                    yield record
                case wire.Beat():
                    yield message


def _behind(message: wire.Feed, record: wire.JobRecord, last: int) -> bool:
    """Whether a message shows that something of this job was missed."""
    match message:
        case wire.RunEvent(job=number, event=event):
            return number == record.id and event.seq > last + 1
        case wire.JobChanged(job=changed):
            return changed.id == record.id and (
                changed.revision > record.revision + 1 or changed.state in wire.ENDED_STATES
            )
        case wire.Beat(runs=runs):
            return any(run.job == record.id and (run.last_seq > last or run.state != record.state) for run in runs)
    return False
