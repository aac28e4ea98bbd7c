"""How the dashboard and the commands talk to the daemon. Asyncio; no call waits for ever.

Requests are repeated under one id on a fresh socket when no answer comes, and act once. `follow` subscribes first and
then asks for what it missed, so it yields every event of a run exactly once, in order, through lost messages, a
daemon's restart and its own lateness.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from daemon.errors import NotAnswering, NotRunning
from daemon.wire import protocol as wire
from daemon.wire.answers import NotifyResult
from daemon.wire.connection import Connection
from daemon.wire.list_messages import Place
from presets.job.resume_check import ResumeCheck
from presets.machine.shell import Shell, shell_here
from presets.runs.checkpoints import StoredCheckpoint
from presets.runs.events import Event
from presets.runs.run_view import RunView


class BegunAnew(NamedTuple):
    """A run was begun again from nothing under the same job: its folder was emptied. Its events start at 1 again."""

    job: int


class Client(Connection):
    """A connection to the daemon of `dir` (the user's own by default). Use as `async with Client() as client`.

    Every method raises NotRunning, VersionMismatch or RequestRefused. A job is named by its id, an int, or by what a
    user types (daemon.queue.lookup); `note` says which one that was, when it could have been another.
    """

    # --- requests ---------------------------------------------------------------------------------------------

    async def submit(
        self,
        job_path: str | Path,
        out: str | Path = "",
        *,
        resume: bool = False,
        from_step: int | None = None,
        accepted: str | None = None,
        priority: int | None = None,
        hold: bool = False,
        after: Sequence[str | int] = (),
        planned: wire.PlannedTime | None = None,
        on_done: str | None = None,
        on_failed: str | None = None,
        on_stopped: str | None = None,
        no_restart: bool = False,
        anyway: bool = False,
    ) -> wire.JobRecord:
        """Queue a job file; `out` defaults to the folder `runs` beside it. Paths may be relative to here.

        `resume`: continue the run that lies in its run folder, whoever began it; the rest as for `resume`. `after`: it
        starts when these jobs are done. `on_done` and the others: commands in place of the settings' ones; "" for none.
        `no_restart`: never start it again by itself when an attempt fails.
        """
        asked = wire.Submit(
            str(Path(job_path).absolute()),
            str(Path(out).absolute()) if out else "",
            resume=resume,
            from_step=from_step,
            accepted=accepted,
            shell=await self._shell(),
            priority=priority,
            hold=hold,
            after=[_ref(job) for job in after],
            planned=planned,
            on_done=on_done,
            on_failed=on_failed,
            on_stopped=on_stopped,
            no_restart=no_restart,
            anyway=anyway,
        )
        return (await self._ask(asked, wire.JobReply)).job

    async def jobs(self) -> list[wire.JobRecord]:
        """All jobs, oldest first."""
        return (await self.queue()).jobs

    async def queue(self) -> wire.JobsReply:
        """All jobs, whether any of them may start, and what the daemon itself suffers from."""
        return await self._ask(wire.Jobs(), wire.JobsReply)

    async def notify_test(self, name: str = "") -> list[NotifyResult]:
        """Send a test message to all whom the settings name, or to one, and say what came back."""
        return (await self._ask(wire.NotifyTest(name), wire.NotifyReply)).results

    async def show(self, job: str | int) -> wire.JobRecord:
        return (await self._ask(wire.Show(_ref(job)), wire.JobReply)).job

    async def snapshot(
        self, job: str | int, reading: Callable[[int, int], None] = lambda done, total: None
    ) -> tuple[wire.JobRecord, RunView]:
        """The job and the fold of all its events so far. `reading`: while the daemon has to read them, called now and
        then with the bytes that it has read and those that there are."""
        reply = await self._ask(wire.Snapshot(_ref(job), or_reading=True), wire.SnapshotReply, reading)
        return reply.job, reply.view

    async def replay(self, job: str | int, since: int = 0) -> list[Event]:
        """Every event after `since`."""
        return [event async for event in self._replay(_ref(job), since)]

    async def stop(self, job: str | int) -> wire.JobRecord:
        """Have it saved and stopped; the answer comes at once, the end later in the feed."""
        return (await self._ask(wire.Stop(_ref(job)), wire.JobReply)).job

    async def resume(
        self, job: str | int, from_step: int | None = None, accepted: str | None = None, *, anyway: bool = False
    ) -> wire.JobRecord:
        """Queue an ended job again, from its newest checkpoint or that of `from_step`. Its job file is read anew:
        changes that break exactness are refused unless `accepted` is the digest of just these
        (presets.job.resume_check). One that waits for a user's word, a restart or its GPUs goes on at once; `anyway`:
        whoever else uses these."""
        asked = wire.Resume(_ref(job), from_step, accepted, await self._shell(), anyway)
        return (await self._ask(asked, wire.JobReply)).job

    async def resume_all(self) -> list[wire.JobRecord]:
        """Have everything go on that waits since the machine restarted. Gives all jobs."""
        return (await self._ask(wire.ResumeAll(), wire.JobsReply)).jobs

    async def _shell(self) -> Shell | None:
        here = self._here and not self._found.where.is_elsewhere
        return await asyncio.to_thread(shell_here) if here else None

    async def resume_check(self, job: str | int) -> ResumeCheck:
        """How the job file differs by now from what the last attempt was given, and whether the run may be resumed with
        it."""
        return (await self._ask(wire.Changes(_ref(job)), wire.ChangesReply)).resume_check

    async def checkpoints(self, job: str | int) -> tuple[wire.JobRecord, list[StoredCheckpoint]]:
        """The checkpoints that a job can go back to, oldest first."""
        reply = await self._ask(wire.Checkpoints(_ref(job), or_reading=True), wire.CheckpointsReply)
        return reply.job, reply.checkpoints

    async def set(self, job: str | int, field: str, value: str) -> wire.JobRecord:
        """Change a field of a running job; the answer comes at once, the `changed` event when the trainer has done
        it."""
        return (await self._ask(wire.Set(_ref(job), field, value), wire.JobReply)).job

    async def save_now(self, job: str | int) -> wire.JobRecord:
        return (await self._ask(wire.SaveNow(_ref(job)), wire.JobReply)).job

    async def sample_now(self, job: str | int) -> wire.JobRecord:
        return (await self._ask(wire.SampleNow(_ref(job)), wire.JobReply)).job

    async def cancel(self, job: str | int) -> wire.JobRecord:
        return (await self._ask(wire.Cancel(_ref(job)), wire.JobReply)).job

    async def set_priority(self, job: str | int, priority: int) -> wire.JobRecord:
        return (await self._ask(wire.SetPriority(_ref(job), priority), wire.JobReply)).job

    async def move(self, job: str | int, place: Place, other: str | int = "") -> wire.JobRecord:
        """Put a queued job first, last, or before or after an `other` one."""
        return (await self._ask(wire.Move(_ref(job), place, _ref(other)), wire.JobReply)).job

    async def hold(self, job: str | int) -> wire.JobRecord:
        return (await self._ask(wire.Hold(_ref(job)), wire.JobReply)).job

    async def release(self, job: str | int, *, anyway: bool = False) -> wire.JobRecord:
        """Let a held job go; with `anyway` it does not wait for other jobs either."""
        return (await self._ask(wire.Release(_ref(job), anyway), wire.JobReply)).job

    async def remove(self, job: str | int) -> wire.JobRecord:
        """Have a queued or ended job forgotten. Gives its last record."""
        return (await self._ask(wire.Remove(_ref(job)), wire.JobReply)).job

    async def rename(self, job: str | int, name: str) -> wire.JobRecord:
        return (await self._ask(wire.Rename(_ref(job), name), wire.JobReply)).job

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
            reply = await self._ask(wire.Replay(job, since, or_reading=True), wire.ReplayReply)
            more = reply.more
            for event in reply.events:
                since = event.seq
                yield event

    # --- feed -------------------------------------------------------------------------------------------------

    async def follow(
        self, job: str | int, since: int = 0, run: str = ""
    ) -> AsyncIterator[Event | wire.Beat | wire.JobRecord | BegunAnew]:
        """A run from event `since` on, without end: its events in order and each once, its record when it changes
        (an ended job's record comes after its last event), and every beat. `run`: whose event `since` is, if known.

        When the run begins anew, or has since then, BegunAnew comes and then all its events. Raises NotRunning at first
        only; later it waits for the daemon to come back.
        """
        record: wire.JobRecord | None = None
        last = since
        async for message in self.feed():
            doubt = record is not None and _another_run(message, record, last, run)
            if isinstance(message, wire.Welcome) or record is None or doubt or _behind(message, record, last):
                try:
                    fresh = await self.show(job if record is None else record.id)
                    async for missed in self._missed(fresh.id, last, run):
                        last, run = (0, "") if isinstance(missed, BegunAnew) else (missed.seq, missed.run)
                        yield missed
                except NotRunning:
                    continue
                if record is None or fresh.revision > record.revision:
                    record = fresh
                    yield record
            match message:
                case wire.RunEvent(job=number, event=event) if number == record.id and event.seq > last:
                    last, run = event.seq, event.run
                    yield event
                case wire.JobChanged(job=changed) if changed.id == record.id and changed.revision > record.revision:
                    record = changed
                    yield record
                case wire.Beat():
                    yield message

    async def _missed(self, job: int, last: int, run: str) -> AsyncIterator[Event | BegunAnew]:
        """The events after the one seen last, if that is still the run's; else that it begins anew, and all of them."""
        same = last == 0
        async for event in self._replay(_ref(job), max(0, last - 1)):
            if same:
                yield event
            elif event.seq == last and run in ("", event.run):
                same = True
            else:
                break
        if not same:
            yield BegunAnew(job)
            async for event in self._replay(_ref(job), 0):
                yield event


def _another_run(message: wire.Feed, record: wire.JobRecord, last: int, run: str) -> bool:
    """Whether a message may be of a run that has begun anew. A beat may also be older than what was asked for since."""
    match message:
        case wire.RunEvent(job=number, event=event):
            return number == record.id and run not in ("", event.run)
        case wire.Beat(runs=runs):
            return any(beat.job == record.id and beat.trainer_alive and beat.last_seq < last for beat in runs)
    return False


def _ref(job: str | int) -> str:
    """A number alone would be taken for a name first."""
    return f"#{job}" if isinstance(job, int) else job


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
