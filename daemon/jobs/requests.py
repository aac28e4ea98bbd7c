"""What clients ask of the jobs: each request is carried out once, and its answer is remembered.

What reads or writes a user's files for a request, or prepares a run folder, is done in the background
(daemon.background_io) and may take its time; what follows from it is decided and committed on the loop in one go,
from the state of that moment. So requests and ticks interleave there only. Jobs are kept and watched in
daemon.jobs.service; the messages are those of daemon.wire.protocol.
"""

import asyncio
import logging
import os
import sqlite3
import time
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from daemon.jobs.control_files import write_command
from daemon.jobs.health import health_of
from daemon.jobs.intake import Resumption, Submission, commands_of, read_resumption, read_submission, require_absolute
from daemon.jobs.list_requests import ask_queue
from daemon.jobs.refusals import refused
from daemon.jobs.restore import adopt_orphans
from daemon.jobs.resume_request import require_accepted, require_checkpoint
from daemon.jobs.roots import Roots
from daemon.jobs.service import Service
from daemon.processes.occupants import require_unoccupied
from daemon.queue import restarts
from daemon.queue.entry import Entry, Instruction
from daemon.queue.list_requests import ON_HOLD, require_priority
from daemon.queue.lookup import by_id, note_on
from daemon.table.job_copies import written_aside
from daemon.wire import protocol as wire
from presets import VERSION
from presets.errors import UserError
from presets.job.diff import live_value
from presets.job.toml_file import load_job
from presets.machine.shell import Shell
from presets.report.best import ranked_checkpoints
from presets.runs.control import TrainerCommand
from presets.runs.run_view import RunView
from presets.text import to_type

log = logging.getLogger("daemon")

READING_SECONDS = 1.0  # until who waits for a long run to be read is told how far that is
# of Submit and Resume, that a client from the network may give; new ones only when they name nothing to be run or read
FROM_NETWORK = frozenset(
    {"job", "job_path", "out", "resume", "from_step", "accepted", "priority", "hold", "after", "planned", "no_restart"}
)
_answer_decoder = msgspec.msgpack.Decoder(wire.Answer)


class Requests:
    """Carries out the requests to one daemon."""

    def __init__(self, jobs: Service, *, beside: "Requests | None" = None) -> None:
        """`beside`: those of this machine's clients; then these are of clients from the network, who may do less."""
        self.closing = False  # a client has asked for the daemon's end
        self._jobs, self._remote = jobs, beside is not None
        # by the ids of the requests
        self._under_way: dict[str, asyncio.Task[bytes]] = beside._under_way if beside else {}

    async def reply(self, request: wire.Request) -> bytes:
        """Carry out one request and give the whole reply. The same request id again gets the same answer and acts once,
        also while the first is still under way."""
        task = self._under_way.get(request.id)
        if task is None:
            task = self._under_way[request.id] = asyncio.create_task(self._reply(request))
            task.add_done_callback(lambda _: self._under_way.pop(request.id))
        return await asyncio.shield(task)  # a client that has left takes nothing back

    async def _reply(self, request: wire.Request) -> bytes:
        # at once: a tail may be read on afterwards
        return wire.encode(wire.Reply(id=request.id, answer=await self._answer(request)))

    async def _answer(self, request: wire.Request) -> wire.Answer:
        try:
            remembered = self._jobs.store.answer(request.id)
            if remembered is not None:
                return self._remembered(remembered)
            answer = await self._carry_out(request)
            key = getattr(request.command, "job", "")
            if key and isinstance(answer, wire.JobReply | wire.SnapshotReply | wire.CheckpointsReply):
                answer.note = note_on(self._jobs.queue.entries, key, answer.job)
            return answer
        except (UserError, OSError, sqlite3.Error) as e:
            return refused(e, self._jobs.paths.state)

    async def _carry_out(self, request: wire.Request) -> wire.Answer:
        self._require_allowed(request.command)
        queue = self._jobs.queue
        match request.command:
            case wire.Hello() | wire.Shutdown():
                return self.stable(request.command)
            case wire.Submit():
                return await self._submit(request.id, request.command)
            case wire.Jobs():
                await self._jobs.settings.look(self._jobs.background)
                records = [self._jobs.record(e) for e in queue.entries.values()]
                return wire.JobsReply(records, queue.paused, self._jobs.idle.left, self._jobs.troubles())
            case wire.Show(job=key):
                return wire.JobReply(self._jobs.record(queue.find(key)))
            case wire.Snapshot(job=key, or_reading=True) if reading := await self._reading(key):
                return reading
            case wire.Replay(job=key, or_reading=True) if reading := await self._reading(key):
                return reading
            case wire.Checkpoints(job=key, or_reading=True) if reading := await self._reading(key):
                return reading
            case wire.Snapshot(job=key):
                entry = queue.find(key)
                async with self._jobs.tails.caught_up(entry.record) as tail:
                    return wire.SnapshotReply(self._jobs.record(entry), tail.view)
            case wire.Replay(job=key, since=since):
                async with self._jobs.tails.caught_up(queue.find(key).record) as tail:
                    return wire.ReplayReply(
                        *await self._jobs.background(partial(tail.page, since), what=str(tail.path))
                    )
            case wire.Stop(job=key):
                return await self._stop(request.id, queue.find(key))
            case wire.Resume(job=key) as asked:
                return await self._resume(request.id, queue.find(key), asked)
            case wire.ResumeAll():
                self._jobs.apply(restarts.resume_all(queue, time.monotonic()))
                return wire.JobsReply([self._jobs.record(e) for e in queue.entries.values()])
            case wire.Changes(job=key):
                entry = queue.find(key)
                check = (await self._read_resumption(entry.record, entry.shell)).resume_check
                return wire.ChangesReply(self._jobs.record(entry), check)
            case wire.Checkpoints(job=key):
                entry = queue.find(key)
                async with self._jobs.tails.caught_up(entry.record) as tail:
                    seen = RunView(
                        losses={expert: list(points) for expert, points in tail.view.losses.items()},
                        samples=list(tail.view.samples),
                        checkpoints=list(tail.view.checkpoints),
                        measured=list(tail.view.measured),
                    )
                    there = await self._jobs.background(
                        partial(ranked_checkpoints, Path(entry.record.run_dir), seen), what=entry.record.run_dir
                    )
                return wire.CheckpointsReply(self._jobs.record(entry), there)
            case wire.Set(job=key, field=field, value=value):
                live_value(field, value)
                return await self._leave(
                    request.id, queue.find(key), TrainerCommand(command="set", field=field, value=value)
                )
            case wire.SaveNow(job=key):
                return await self._leave(request.id, queue.find(key), TrainerCommand(command="save"))
            case wire.SampleNow(job=key):
                entry = queue.find(key)
                copy = self._jobs.paths.job_file(entry.record.id)
                if not (await self._jobs.background(partial(load_job, copy), what=str(copy))).sample.prompts:
                    raise UserError(
                        "has no sample prompts to make previews of",
                        where=entry.record.name,
                        fix="Give it some in [sample] when it has stopped, then resume",
                    )
                return await self._leave(request.id, entry, TrainerCommand(command="sample"))
            case wire.Cancel(job=key):
                entry = queue.find(key)
                return self._answer_with(request.id, entry, queue.cancel(entry.record.id, time.monotonic()))
            case wire.NotifyTest(name=name):
                return wire.NotifyReply(await self._jobs.follow_ups.test(name))
            case wire.Health():
                return await health_of(self._jobs)
            case command:
                entry = queue.find(command.job)
                return self._answer_with(request.id, entry, await ask_queue(self._jobs, entry, command))

    def _remembered(self, answer: bytes) -> wire.Answer:
        try:
            return _answer_decoder.decode(answer)
        except (ValueError, RecursionError):
            return wire.Refused("this was done already, and its answer cannot be read any more", "See: wanlora jobs")

    def _written_aside(self, text: str) -> AbstractAsyncContextManager[Path]:
        """A copy of a job file, to be put in its place once all that is decided on the loop is."""
        folder = self._jobs.paths.job_file(0).parent
        return written_aside(text, folder, partial(self._jobs.background, what=str(folder)))

    async def _reading(self, job: str) -> wire.Reading | None:
        """None once the job's events have been read to their end, which is waited for a little."""
        read = await self._jobs.tails.being_read(self._jobs.queue.find(job).record, READING_SECONDS)
        return wire.Reading(*read) if read is not None else None

    def stable(self, command: wire.Hello | wire.Shutdown) -> wire.Answer:
        """What is answered to clients of any version."""
        if isinstance(command, wire.Hello):
            return wire.HelloReply(
                wire.PROTOCOL_VERSION, self._jobs.epoch, os.getpid(), VERSION, str(self._jobs.paths.state)
            )
        self.closing = True
        return wire.Done()

    async def _submit(self, request_id: str, asked: wire.Submit) -> wire.Answer:
        require_absolute(asked.job_path, asked.out or "/")
        self._jobs.require_writable()
        commands = commands_of(asked)
        if asked.shell is not None:
            asked.shell.require_sound()
        if asked.planned is not None:
            asked.planned.require_sound()
        require_priority(asked.priority or 0)
        read = await self._jobs.background(
            partial(read_submission, asked, time.time(), self._roots()), what=asked.job_path
        )
        async with self._written_aside(read.text) as copy:
            return await self._accept(request_id, asked, read, commands, copy)

    async def _accept(
        self, request_id: str, asked: wire.Submit, read: Submission, commands: dict[str, str], copy: Path
    ) -> wire.Answer:
        """With nothing waited for, but to resume a job."""
        record, _, held, check, checkpoints, pids = read
        self._require_free(record, pids)
        queue = self._jobs.queue
        record.id = self._jobs.store.next_id()
        record.priority, record.after = asked.priority or 0, queue.predecessors(asked.after)
        record.held = queue.why_held(record, ON_HOLD if asked.hold else "")
        record.position = queue.place_for(record)
        known = [e for e in queue.entries.values() if e.record.run_dir == record.run_dir]
        options: dict[str, Any] = {}
        if asked.resume and known:
            again = wire.Resume("", asked.from_step, asked.accepted, asked.shell, asked.anyway)
            return await self._resume(request_id, known[-1], again, submitted=asked)
        if asked.resume:
            if check is None:
                raise UserError(
                    "no run lies here that could be resumed",
                    where=record.run_dir,
                    fix="Submit the job without --resume",
                )
            require_accepted(record, check, asked.accepted, submitted=asked.job_path)
            require_checkpoint(record, checkpoints, asked.from_step)
            options = {"resume": True, "from_step": asked.from_step, "accept_changes": asked.accepted is not None}
        elif held:  # the trainer would refuse it, hours later perhaps
            way = (
                to_type("resume", by_id(queue.entries, known[-1].record.id))
                if known
                else to_type("submit", asked.job_path, "--resume")
            )
            raise UserError(
                "this folder already holds a run",
                where=record.run_dir,
                fix=f"Give this job another name, or resume that run: {way}",
            )
        shell, secrets = asked.shell.divided() if asked.shell is not None else (None, {})
        record.commands = list(commands)
        options |= {
            "shell": shell,
            "secrets": list(secrets),
            "planned": asked.planned,
            "commands": commands,
            "no_restart": asked.no_restart,
            "anyway": asked.anyway,
        }
        copy.replace(self._jobs.paths.job_file(record.id))
        # The acceptance is on disk before anything else: a client that asks again after a crash finds it accepted.
        answer = wire.JobReply(record)
        with self._jobs.store as store:
            # as it will be when it waits behind others: then this is the only commit
            kept = msgspec.structs.replace(record, revision=1, order=queue.last_place(), planned=asked.planned)
            store.save(Entry(record=kept, order=kept.order, hold=ON_HOLD if asked.hold else "", **options))
            store.remember(request_id, wire.encode(answer))
        self._jobs.runner.secrets[record.id] = secrets
        log.info("job %d: %s submitted", record.id, record.name)
        options["hold"] = asked.hold
        self._jobs.apply(queue.submit(msgspec.structs.replace(record), time.monotonic(), **options))
        return answer

    async def _read_resumption(self, record: wire.JobRecord, shell: Shell | None) -> Resumption:
        return await self._jobs.background(
            partial(
                read_resumption,
                msgspec.structs.replace(record),
                self._jobs.paths.job_file(record.id),
                shell,
                self._roots(),
            ),
            what=record.job_path,
        )

    def _roots(self) -> Roots:
        return Roots(self._jobs.paths.settings, remote=self._remote)

    def _require_allowed(self, command: wire.Command) -> None:
        """Raises UserError for what a client from the network may not say: anything but which job, where from and in
        what place. Its shell's settings name files and servers of its own; a command would run here."""
        if self._remote and isinstance(command, wire.Submit | wire.Resume):
            for field in msgspec.structs.fields(command):
                if field.name not in FROM_NETWORK and getattr(command, field.name) != field.default:
                    raise UserError(
                        f"a client from the network cannot give a job its {field.name}",
                        fix="Submit it on the machine of the daemon, as through ssh",
                    )

    async def _resume(
        self,
        request_id: str,
        entry: Entry,
        asked: wire.Resume,
        *,
        submitted: wire.Submit | None = None,
    ) -> wire.Answer:
        """Queue an ended job again, with its job file as it is now, or as it was `submitted` anew."""
        self._jobs.require_writable()
        shell, from_step, accepted = asked.shell, asked.from_step, asked.accepted
        if shell is not None:
            shell.require_sound()
        job_path = submitted.job_path if submitted else entry.record.job_path
        job, text, check, checkpoints, devices, pids = await self._read_resumption(
            msgspec.structs.replace(entry.record, job_path=job_path), shell or entry.shell
        )
        async with self._written_aside(text) as copy:
            record = entry.record
            more = job.training.steps > record.step
            self._jobs.queue.require_known(entry)
            if record.state in wire.ENDED_STATES:
                self._require_free(record, pids)
            self._jobs.queue.require_resumable(entry, further=from_step is not None or more)
            require_accepted(record, check, accepted)
            require_checkpoint(record, checkpoints, from_step)
            if submitted is not None:
                self._jobs.queue.come_after(entry, self._jobs.queue.predecessors(submitted.after))
                record.priority = record.priority if submitted.priority is None else submitted.priority
                entry.planned = submitted.planned or entry.planned
                entry.commands |= commands_of(submitted)
                record.commands = list(entry.commands)
            if shell is not None:
                entry.shell, secrets = shell.divided()
                entry.secrets, self._jobs.runner.secrets[record.id] = list(secrets), secrets
            record.job_path = job_path
            # always: an attempt that failed early may have left other values in it, taken back since
            copy.replace(self._jobs.paths.job_file(record.id))
            record.gpus, record.devices = sorted(set(job.job.gpus)), devices
            if check.changes:
                record.steps = job.training.steps
            return self._answer_with(
                request_id,
                entry,
                self._jobs.queue.resume(
                    record.id,
                    time.monotonic(),
                    from_step=from_step,
                    accept_changes=accepted is not None,
                    further=from_step is not None or more,
                    hold=submitted is not None and submitted.hold,
                    anyway=asked.anyway,
                ),
            )

    def _require_free(self, record: wire.JobRecord, pids: list[int]) -> None:
        """Raises UserError when a live job uses the run folder, or the processes `pids` do, which write there: those of
        a trainer of ours that the job table has lost become a job first."""
        self._jobs.queue.require_free(record)
        if pids:
            adopt_orphans(self._jobs)
            self._jobs.queue.require_free(record)
            require_unoccupied(Path(record.run_dir), pids)

    async def _stop(self, request_id: str, entry: Entry) -> wire.Answer:
        answer = self._answer_with(request_id, entry, self._jobs.queue.stop(entry.record.id, time.monotonic()))
        await self._jobs.runner.stop_left(entry.record.id)
        return answer

    async def _leave(self, request_id: str, entry: Entry, command: TrainerCommand) -> wire.Answer:
        """Leave a command for the job's trainer. Raises UserError unless it runs."""
        record = entry.record
        if record.state not in ("starting", "running"):
            fix = "It is about to end" if record.state == "stopping" else "Only a running job can do that"
            if command.command == "set" and record.state != "stopping":
                first = (
                    f"Take it from the queue with: {to_type('stop', record.name)}. Then change"
                    if record.state == "queued"
                    else "Change"
                )
                again = to_type("resume", record.name)
                fix = f"{first} its job file {record.job_path}, and queue it again with: {again}"
            raise UserError(f"is {record.state}, so its trainer takes no commands", where=record.name, fix=fix)
        async with self._jobs.tails.folder(record.id):
            await self._jobs.background(
                partial(write_command, Path(record.run_dir), request_id, command), what=record.run_dir
            )
        return self._answer_with(request_id, entry, [])

    def _answer_with(self, request_id: str, entry: Entry, instructions: list[Instruction]) -> wire.Answer:
        self._jobs.apply(instructions, answered=(request_id, entry))
        return wire.JobReply(self._jobs.record(entry))
