"""What the daemon does, without its sockets: takes commands, carries out what the queue says, watches trainers.

What reads or writes a user's files for a request, or prepares a run folder, is done aside (daemon.jobs.background_io)
and may take its time; what is decided, committed and told from that is decided on the loop in one go, from the state of
that moment. So requests and ticks interleave there only. What clients should hear is left in `outbox`. Everything that
must survive is committed before anything is done about it.
"""

import asyncio
import logging
import os
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from daemon.jobs.attempt_result import last_word, result_of
from daemon.jobs.background_io import BackgroundIO
from daemon.jobs.control_files import write_command
from daemon.jobs.intake import Resumption, read_resumption, read_submission, require_absolute
from daemon.jobs.job_queue import AskStop, AttemptResult, Changed, Entry, Instruction, Kill, Launch, Queue, Terminate
from daemon.jobs.job_store import Store
from daemon.jobs.resume_request import require_accepted, require_checkpoint
from daemon.jobs.runner import Runner
from daemon.processes.proc import boot_id, is_alive, marked, oom_kills
from daemon.processes.trainer_process import Trainer
from daemon.wire import protocol as wire
from daemon.wire.paths import DaemonPaths, make_private
from presets import VERSION
from presets.errors import JobError, UserError
from presets.findings import of_job_error
from presets.job.diff import live_value
from presets.job.toml_file import load_job, save_text
from presets.machine.machine import visible_gpus
from presets.machine.shell import Shell
from presets.machine.visible_gpus import pick
from presets.runs.checkpoints import checkpoints_of
from presets.runs.control import ControlFile
from presets.runs.run_view import RunView

log = logging.getLogger("daemon")

BEAT_AFTER_END = 600.0  # seconds for which an ended job stays in the beat

_answer_decoder = msgspec.msgpack.Decoder(wire.Answer)


class Service:
    """All jobs of one daemon."""

    def __init__(self, paths: DaemonPaths, trainer_command: list[str], *, epoch: str) -> None:
        """Open the job table, adopt the trainers that still run, and go on where the last daemon ended. To be made in a
        running loop.

        Raises UserError when the table cannot be opened.
        """
        self.paths, self.epoch = paths, epoch
        self.outbox: list[wire.Feed] = []
        self.closing = False
        self._background = BackgroundIO()
        self._under_way: dict[str, asyncio.Task[bytes]] = {}  # requests, by their ids
        self._complaints: set[str] = set()
        self._unsaved: set[int] = set()
        make_private(paths.state)
        make_private(paths.state / "jobs")
        self._store = Store(paths.database)
        self._queue = Queue(self._store.entries(), paused=self._store.fact("paused"))
        self._runner = Runner(paths, trainer_command, self._queue, self._background, self._apply)
        self._trainers, self._tails = self._runner.trainers, self._runner.tails
        self._restore()

    def close(self) -> None:
        """Let go of everything. Trainers go on."""
        self._store.close()

    # --- coming back ------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        now = time.time()
        nameless = [
            e
            for e in self._queue.entries.values()
            if e.record.state in wire.LIVE_STATES and e.shell is None and not e.record.devices
        ]
        visible = visible_gpus() if nameless else None
        for entry in nameless:  # from before the table held the names
            entry.record.devices = pick(entry.record.gpus, visible, all_of_them=True)
        for entry in self._queue.running():
            self._read(entry, publish=False)
        boot, last_boot = boot_id(), self._store.fact("boot")
        with self._store as store:
            store.set_fact("boot", boot)
        if last_boot and last_boot != boot:
            log.info("the machine restarted")
            said = {e.record.id: last_word(e, self._tails[e.record.id]) for e in self._queue.running()}
            self._apply(
                self._queue.rebooted(
                    now, {job: word for job, word in said.items() if word is not None and word.state != "stopped"}
                )
            )
            return
        for entry in self._queue.running():
            job, marker = entry.record.id, self._runner.marker(entry.record.id)
            process = entry.trainer
            if process is None and (found := marked(marker)):  # the old daemon died right after launching it
                process = found[0]
                self._apply(self._queue.launched(job, process, now, first_seq=entry.first_seq, oom_kills=oom_kills()))
            if process is None:
                log.info("job %d had not been launched yet", job)
                self._apply(self._queue.never_launched(job, now))
            else:
                self._trainers[job] = Trainer(process, marker)
                log.info("job %d: %s trainer %d", job, "adopted" if is_alive(process) else "lost", process.pid)
                self._apply(self._queue.adopted(job, now))
        self._apply(self._queue.fill(now))

    # --- commands ---------------------------------------------------------------------------------------------

    async def reply(self, request: wire.Request) -> bytes:
        """Carry out one request and give the whole reply. The same request id again gets the same answer and acts once,
        also while the first is still under way."""
        task = self._under_way.get(request.id)
        if task is None:
            task = self._under_way[request.id] = asyncio.create_task(self._reply(request))
            task.add_done_callback(lambda _: self._under_way.pop(request.id))
        return await asyncio.shield(task)  # a client that has gone takes nothing back

    async def _reply(self, request: wire.Request) -> bytes:
        # at once: a tail may be read on afterwards
        return wire.encode(wire.Reply(id=request.id, answer=await self._answer(request)))

    async def _answer(self, request: wire.Request) -> wire.Answer:
        try:
            remembered = self._store.answer(request.id)
            if remembered is not None:
                return _answer_decoder.decode(remembered)
            return await self._carry_out(request)
        except JobError as e:
            return wire.Refused(str(e), findings=of_job_error(e))
        except UserError as e:
            return wire.Refused(f"{e.where}: {e.what}" if e.where else e.what, e.fix)
        except (OSError, sqlite3.Error) as e:
            log.exception("request failed")
            return wire.Refused(
                f"the daemon could not do it: {e}",
                f"Check the disk of {getattr(e, 'filename', None) or self.paths.state}",
            )

    async def _carry_out(self, request: wire.Request) -> wire.Answer:
        queue = self._queue
        match request.command:
            case wire.Hello() | wire.Shutdown():
                return self.stable(request.command)
            case wire.Submit():
                return await self._submit(request.id, request.command)
            case wire.Jobs():
                return wire.JobsReply([self._record(e) for e in queue.entries.values()])
            case wire.Show(job=key):
                return wire.JobReply(self._record(queue.find(key)))
            case wire.Snapshot(job=key):
                entry = queue.find(key)
                async with self._tails.caught_up(entry.record) as tail:
                    return wire.SnapshotReply(self._record(entry), tail.view)
            case wire.Replay(job=key, since=since):
                async with self._tails.caught_up(queue.find(key).record) as tail:
                    return wire.ReplayReply(*await self._background(partial(tail.page, since), what=str(tail.path)))
            case wire.Stop(job=key):
                return await self._stop(request.id, queue.find(key))
            case wire.Resume(job=key, from_step=from_step, accepted=accepted, shell=shell):
                return await self._resume(request.id, queue.find(key), from_step, accepted, shell)
            case wire.Changes(job=key):
                entry = queue.find(key)
                going = (await self._read_resumption(entry.record, entry.shell)).going
                return wire.ChangesReply(self._record(entry), going)
            case wire.Checkpoints(job=key):
                entry = queue.find(key)
                async with self._tails.caught_up(entry.record) as tail:
                    seen = RunView(
                        losses={expert: list(points) for expert, points in tail.view.losses.items()},
                        samples=list(tail.view.samples),
                    )
                    there = await self._background(
                        partial(checkpoints_of, Path(entry.record.run_dir), seen), what=entry.record.run_dir
                    )
                return wire.CheckpointsReply(self._record(entry), there)
            case wire.Set(job=key, field=field, value=value):
                live_value(field, value)
                return await self._leave(
                    request.id, queue.find(key), ControlFile(command="set", field=field, value=value)
                )
            case wire.SaveNow(job=key):
                return await self._leave(request.id, queue.find(key), ControlFile(command="save"))
            case wire.SampleNow(job=key):
                entry = queue.find(key)
                copy = self.paths.job_file(entry.record.id)
                if not (await self._background(partial(load_job, copy), what=str(copy))).sample.prompts:
                    raise UserError(
                        "has no sample prompts to make previews of",
                        where=entry.record.name,
                        fix="Give it some in [sample] when it has stopped, then resume",
                    )
                return await self._leave(request.id, entry, ControlFile(command="sample"))
            case wire.Cancel(job=key):
                entry = queue.find(key)
                return self._change(request.id, entry, queue.cancel(entry.record.id, time.time()))

    def stable(self, command: wire.Hello | wire.Shutdown) -> wire.Answer:
        """What is answered to clients of any version."""
        if isinstance(command, wire.Hello):
            return wire.HelloReply(wire.PROTOCOL_VERSION, self.epoch, os.getpid(), VERSION, str(self.paths.state))
        self.closing = True
        return wire.Done()

    async def _submit(self, request_id: str, asked: wire.Submit) -> wire.Answer:
        require_absolute(asked.job_path, asked.out or "/")
        if asked.shell is not None:
            asked.shell.require_sound()
        record, text, held, going, checkpoints = await self._background(
            partial(read_submission, asked, time.time()), what=asked.job_path
        )
        record.id = self._store.next_id()
        self._queue.require_free(record)
        record.position = self._queue.place_for(record)
        known = [e for e in self._queue.entries.values() if e.record.run_dir == record.run_dir]
        options: dict[str, Any] = {}
        if asked.resume and known:
            return await self._resume(
                request_id, known[-1], asked.from_step, asked.accepted, asked.shell, job_path=record.job_path
            )
        if asked.resume:
            if going is None:
                raise UserError(
                    "no run lies here that could be resumed",
                    where=record.run_dir,
                    fix="Submit the job without --resume",
                )
            require_accepted(record, going, asked.accepted, command=f"submit {asked.job_path}")
            require_checkpoint(record, checkpoints, asked.from_step)
            options = {"resume": True, "from_step": asked.from_step, "accept_changes": asked.accepted is not None}
        elif held:  # the trainer would refuse it, hours later perhaps
            way = f"wanlora resume {known[-1].record.id}" if known else f"wanlora submit {asked.job_path} --resume"
            raise UserError(
                "this folder already holds a run",
                where=record.run_dir,
                fix=f"Give this job another name, or go on with that run: {way}",
            )
        shell, secrets = asked.shell.divided() if asked.shell is not None else (None, {})
        options |= {"shell": shell, "secrets": list(secrets)}
        save_text(text, self.paths.job_file(record.id))
        # The acceptance is on disk before anything else: a client that asks again after a crash finds it accepted.
        answer = wire.JobReply(record)
        with self._store as store:
            store.save(Entry(record=record, order=self._queue.last_place(), **options))
            store.remember(request_id, wire.encode(answer))
        self._runner.secrets[record.id] = secrets
        log.info("job %d: %s submitted", record.id, record.name)
        self._apply(self._queue.submit(msgspec.structs.replace(record), time.time(), **options))
        return answer

    async def _read_resumption(self, record: wire.JobRecord, shell: Shell | None) -> Resumption:
        return await self._background(
            partial(read_resumption, msgspec.structs.replace(record), self.paths.job_file(record.id), shell),
            what=record.job_path,
        )

    async def _resume(
        self,
        request_id: str,
        entry: Entry,
        from_step: int | None,
        accepted: str | None,
        shell: Shell | None,
        *,
        job_path: str = "",
    ) -> wire.Answer:
        """Queue an ended job again, with its job file (or the one at `job_path`) as it is now."""
        if shell is not None:
            shell.require_sound()
        job_path = job_path or entry.record.job_path
        job, text, going, checkpoints, devices = await self._read_resumption(
            msgspec.structs.replace(entry.record, job_path=job_path), shell or entry.shell
        )
        record = entry.record
        more = job.training.steps > record.step
        self._queue.require_resumable(entry, further=from_step is not None or more)
        require_accepted(record, going, accepted)
        require_checkpoint(record, checkpoints, from_step)
        if shell is not None:
            entry.shell, secrets = shell.divided()
            entry.secrets, self._runner.secrets[record.id] = list(secrets), secrets
        record.job_path = job_path
        # always: an attempt that failed early may have left other values in it, taken back since
        save_text(text, self.paths.job_file(record.id))
        record.gpus, record.devices = sorted(set(job.job.gpus)), devices
        if going.changes:
            record.steps = job.training.steps
        return self._change(
            request_id,
            entry,
            self._queue.resume(
                record.id,
                time.time(),
                from_step=from_step,
                accept_changes=accepted is not None,
                further=from_step is not None or more,
            ),
        )

    async def _stop(self, request_id: str, entry: Entry) -> wire.Answer:
        answer = self._change(request_id, entry, self._queue.stop(entry.record.id, time.time()))
        await self._runner.stop_left(entry.record.id)
        return answer

    async def _leave(self, request_id: str, entry: Entry, command: ControlFile) -> wire.Answer:
        """Leave a command for the job's trainer. Raises UserError unless it runs."""
        record = entry.record
        if record.state not in ("starting", "running"):
            fix = "It is about to end" if record.state == "stopping" else "Only a running job can do that"
            if command.command == "set" and record.state != "stopping":
                first = (
                    f"Take it from the queue with: wanlora stop {record.name}. Then change"
                    if record.state == "queued"
                    else "Change"
                )
                fix = f"{first} its job file {record.job_path}, and queue it again with: wanlora resume {record.name}"
            raise UserError(f"is {record.state}, so its trainer takes no commands", where=record.name, fix=fix)
        async with self._tails.folder(record.id):
            await self._background(
                partial(write_command, Path(record.run_dir), request_id, command), what=record.run_dir
            )
        return self._change(request_id, entry, [])

    def _change(self, request_id: str, entry: Entry, instructions: list[Instruction]) -> wire.Answer:
        self._apply(instructions, answered=(request_id, entry))
        return wire.JobReply(self._record(entry))

    # --- carrying out -----------------------------------------------------------------------------------------

    def _apply(self, instructions: list[Instruction], *, answered: tuple[str, Entry] | None = None) -> None:
        """Commit and announce every change, then do the rest; it may lead to more."""
        changed = list(dict.fromkeys(i.job for i in instructions if isinstance(i, Changed)))
        for job in changed:
            self._queue.entries[job].record.revision += 1
            self._record(self._queue.entries[job])
        self._save(changed, answered)
        self.outbox += [wire.JobChanged(msgspec.structs.replace(self._queue.entries[job].record)) for job in changed]
        for instruction in instructions:
            entry = self._queue.entries[instruction.job]
            match instruction:
                case Launch():
                    self._runner.launch(entry)
                case _ if self._runner.is_launching(instruction.job):
                    pass  # it ends before it starts
                case AskStop():
                    self._runner.ask_stop(entry)
                case Terminate():
                    self._trainers[instruction.job].terminate()
                case Kill():
                    log.info("job %d: killing its trainer", instruction.job)
                    self._trainers[instruction.job].kill()

    def _save(self, jobs: list[int], answered: tuple[str, Entry] | None = None) -> None:
        """Commit. What a full disk refuses is kept and tried again at every tick: training must not suffer from it."""
        self._unsaved.update(jobs)
        if not self._unsaved and not answered:
            return
        try:
            with self._store as store:
                for job in self._unsaved:
                    store.save(self._queue.entries[job])
                if store.fact("paused") != self._queue.paused:
                    store.set_fact("paused", self._queue.paused)
                if answered:
                    store.remember(answered[0], wire.encode(wire.JobReply(answered[1].record)))
            self._unsaved.clear()
        except sqlite3.Error as e:
            self._complain(f"the job table cannot be written: {e}")

    # --- watching ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Read what trainers wrote, notice those that ended, send signals that fell due."""
        now = time.time()
        self._save([])
        for entry in self._queue.running():
            job = entry.record.id
            if self._runner.is_launching(job):
                continue
            trainer, tail = self._trainers[job], self._tails[job]
            alive = trainer.poll()  # before reading: of a trainer that is gone, everything is there to be read
            more = self._read(entry, publish=True)
            if tail.started is not None and tail.started.seq > entry.first_seq:
                self._apply(self._queue.started(job))
            if last_word(entry, tail) and not more:
                self._apply(self._queue.said_last_word(job, now))
            if not alive and not more:
                del self._trainers[job]
                end = result_of(entry, tail, exit_code=trainer.exit_code, log=self._runner.log_of(entry.record))
                if end.state == "failed" and entry.lacking:
                    names = " and ".join(entry.lacking)
                    end = AttemptResult(
                        "failed",
                        f"{end.outcome}\n{names} of the shell that it came from was not at hand: the daemon keeps that"
                        " in memory alone, and was restarted. If it is needed, go on from a shell that has it: wanlora"
                        f" resume {entry.record.name}",
                    )
                log.info("job %d: %s %s", job, end.state, end.outcome)
                self._apply(self._queue.ended(job, end, now))
        self._apply(
            self._queue.tick(
                now, {e.record.id: self._last_event(e) for e in self._queue.running() if e.record.id in self._trainers}
            )
        )

    def _read(self, entry: Entry, *, publish: bool) -> bool:
        """Take in new events; True when there are more to come at once. Without `publish` it goes on to the end."""
        job = entry.record.id
        tail = self._tails.open(entry.record)
        try:
            events = tail.poll()
            while events and not publish:
                events = tail.poll()
        except OSError as e:
            self._complain(f"job {job}: {tail.path} cannot be read: {e}")
            return False
        self.outbox += [wire.RunEvent(job, event) for event in events]
        self._record(entry)
        return bool(events)

    def _last_event(self, entry: Entry) -> float:
        return max(self._tails[entry.record.id].view.updated_at, entry.record.started_at)

    def _record(self, entry: Entry) -> wire.JobRecord:
        """The record with the progress of now."""
        if tail := self._tails.get(entry.record.id):
            entry.record.step = tail.view.step
            # what is queued to go on may have been given other steps
            if entry.record.state != "queued" and tail.view.attempt >= entry.record.attempt:
                entry.record.steps = tail.view.steps or entry.record.steps
            entry.record.doing = tail.view.phase.name if entry.record.id in self._trainers else ""
        return entry.record

    def beat(self) -> wire.Beat:
        now = time.time()
        runs = []
        for entry in self._queue.entries.values():
            record, job = entry.record, entry.record.id
            if record.state in wire.ENDED_STATES and now - record.finished_at > BEAT_AFTER_END:
                continue
            trainer = job in self._trainers
            quiet = max(0.0, now - self._last_event(entry)) if trainer else 0.0
            tail = self._tails.get(job)
            runs.append(wire.RunBeat(job, record.state, tail.last_seq if tail else 0, trainer, quiet))
        return wire.Beat(self.epoch, runs)

    def _complain(self, text: str) -> None:
        """Log what would otherwise be logged ten times a second."""
        if text not in self._complaints:
            self._complaints.add(text)
            log.error("%s", text)
