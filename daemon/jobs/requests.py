"""What clients ask of the jobs: each request is carried out once, and its answer is remembered.

What reads or writes a user's files for a request, or prepares a run folder, is done in the background
(daemon.jobs.background_io) and may take its time; what follows from it is decided and committed on the loop in one go,
from the state of that moment. So requests and ticks interleave there only. Jobs are kept and watched in
daemon.jobs.service; the messages are those of daemon.wire.protocol.
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

from daemon.jobs.control_files import write_command
from daemon.jobs.entry import Entry, Instruction
from daemon.jobs.intake import Resumption, read_resumption, read_submission, require_absolute
from daemon.jobs.resume_request import require_accepted, require_checkpoint
from daemon.jobs.service import Service
from daemon.wire import protocol as wire
from presets import VERSION
from presets.atomic_file import write_file
from presets.errors import JobError, UserError
from presets.findings import of_job_error
from presets.job.diff import live_value
from presets.job.toml_file import load_job
from presets.machine.shell import Shell
from presets.runs.checkpoints import checkpoints_of
from presets.runs.control import TrainerCommand
from presets.runs.run_view import RunView

log = logging.getLogger("daemon")

_answer_decoder = msgspec.msgpack.Decoder(wire.Answer)


class Requests:
    """Carries out the requests to one daemon."""

    def __init__(self, jobs: Service) -> None:
        self.closing = False  # a client has asked for the daemon's end
        self._jobs = jobs
        self._under_way: dict[str, asyncio.Task[bytes]] = {}  # by the ids of the requests

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
                f"Check the disk of {getattr(e, 'filename', None) or self._jobs.paths.state}",
            )

    async def _carry_out(self, request: wire.Request) -> wire.Answer:
        queue = self._jobs.queue
        match request.command:
            case wire.Hello() | wire.Shutdown():
                return self.stable(request.command)
            case wire.Submit():
                return await self._submit(request.id, request.command)
            case wire.Jobs():
                return wire.JobsReply([self._jobs.record(e) for e in queue.entries.values()])
            case wire.Show(job=key):
                return wire.JobReply(self._jobs.record(queue.find(key)))
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
            case wire.Resume(job=key, from_step=from_step, accepted=accepted, shell=shell):
                return await self._resume(request.id, queue.find(key), from_step, accepted, shell)
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
                    )
                    there = await self._jobs.background(
                        partial(checkpoints_of, Path(entry.record.run_dir), seen), what=entry.record.run_dir
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
                return self._answer_with(request.id, entry, queue.cancel(entry.record.id, time.time()))

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
        if asked.shell is not None:
            asked.shell.require_sound()
        record, text, held, check, checkpoints = await self._jobs.background(
            partial(read_submission, asked, time.time()), what=asked.job_path
        )
        record.id = self._jobs.store.next_id()
        self._jobs.queue.require_free(record)
        record.position = self._jobs.queue.place_for(record)
        known = [e for e in self._jobs.queue.entries.values() if e.record.run_dir == record.run_dir]
        options: dict[str, Any] = {}
        if asked.resume and known:
            return await self._resume(
                request_id, known[-1], asked.from_step, asked.accepted, asked.shell, job_path=record.job_path
            )
        if asked.resume:
            if check is None:
                raise UserError(
                    "no run lies here that could be resumed",
                    where=record.run_dir,
                    fix="Submit the job without --resume",
                )
            require_accepted(record, check, asked.accepted, command=f"submit {asked.job_path}")
            require_checkpoint(record, checkpoints, asked.from_step)
            options = {"resume": True, "from_step": asked.from_step, "accept_changes": asked.accepted is not None}
        elif held:  # the trainer would refuse it, hours later perhaps
            way = f"wanlora resume {known[-1].record.id}" if known else f"wanlora submit {asked.job_path} --resume"
            raise UserError(
                "this folder already holds a run",
                where=record.run_dir,
                fix=f"Give this job another name, or resume that run: {way}",
            )
        shell, secrets = asked.shell.divided() if asked.shell is not None else (None, {})
        options |= {"shell": shell, "secrets": list(secrets)}
        write_file(self._jobs.paths.job_file(record.id), text.encode(), sync=True)
        # The acceptance is on disk before anything else: a client that asks again after a crash finds it accepted.
        answer = wire.JobReply(record)
        with self._jobs.store as store:
            store.save(Entry(record=record, order=self._jobs.queue.last_place(), **options))
            store.remember(request_id, wire.encode(answer))
        self._jobs.runner.secrets[record.id] = secrets
        log.info("job %d: %s submitted", record.id, record.name)
        self._jobs.apply(self._jobs.queue.submit(msgspec.structs.replace(record), time.time(), **options))
        return answer

    async def _read_resumption(self, record: wire.JobRecord, shell: Shell | None) -> Resumption:
        return await self._jobs.background(
            partial(read_resumption, msgspec.structs.replace(record), self._jobs.paths.job_file(record.id), shell),
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
        job, text, check, checkpoints, devices = await self._read_resumption(
            msgspec.structs.replace(entry.record, job_path=job_path), shell or entry.shell
        )
        record = entry.record
        more = job.training.steps > record.step
        self._jobs.queue.require_resumable(entry, further=from_step is not None or more)
        require_accepted(record, check, accepted)
        require_checkpoint(record, checkpoints, from_step)
        if shell is not None:
            entry.shell, secrets = shell.divided()
            entry.secrets, self._jobs.runner.secrets[record.id] = list(secrets), secrets
        record.job_path = job_path
        # always: an attempt that failed early may have left other values in it, taken back since
        write_file(self._jobs.paths.job_file(record.id), text.encode(), sync=True)
        record.gpus, record.devices = sorted(set(job.job.gpus)), devices
        if check.changes:
            record.steps = job.training.steps
        return self._answer_with(
            request_id,
            entry,
            self._jobs.queue.resume(
                record.id,
                time.time(),
                from_step=from_step,
                accept_changes=accepted is not None,
                further=from_step is not None or more,
            ),
        )

    async def _stop(self, request_id: str, entry: Entry) -> wire.Answer:
        answer = self._answer_with(request_id, entry, self._jobs.queue.stop(entry.record.id, time.time()))
        await self._jobs.runner.stop_left(entry.record.id)
        return answer

    async def _leave(self, request_id: str, entry: Entry, command: TrainerCommand) -> wire.Answer:
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
        async with self._jobs.tails.folder(record.id):
            await self._jobs.background(
                partial(write_command, Path(record.run_dir), request_id, command), what=record.run_dir
            )
        return self._answer_with(request_id, entry, [])

    def _answer_with(self, request_id: str, entry: Entry, instructions: list[Instruction]) -> wire.Answer:
        self._jobs.apply(instructions, answered=(request_id, entry))
        return wire.JobReply(self._jobs.record(entry))
