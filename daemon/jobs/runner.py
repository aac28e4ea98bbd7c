"""Starts trainers and leaves stop requests for them. What touches a run folder is done in the background, so a folder
that hangs fails its own job and no other."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from daemon.jobs.background_io import BackgroundIO
from daemon.jobs.control_files import prepare, write_command
from daemon.jobs.entry import AttemptResult, Entry, Instruction
from daemon.jobs.event_tail import Tail
from daemon.jobs.event_tails import Tails
from daemon.jobs.job_queue import Queue
from daemon.processes.proc import identify, oom_kills
from daemon.processes.start_trainer import start_trainer
from daemon.processes.trainer_process import Trainer
from daemon.wire.paths import DaemonPaths
from daemon.wire.protocol import JobRecord
from presets.machine.shell import environment
from presets.machine.visible_gpus import shown_to_cuda
from presets.runs.control import TrainerCommand

log = logging.getLogger("daemon")


class Runner:
    """What becomes of the queue's Launch and AskStop."""

    def __init__(
        self,
        paths: DaemonPaths,
        command: list[str],
        queue: Queue,
        background: BackgroundIO,
        apply: Callable[[list[Instruction]], None],
    ) -> None:
        """`apply`: takes what the queue says to what has happened."""
        self.trainers: dict[int, Trainer] = {}
        self.tails = Tails(background, lambda job: job in self.trainers)
        self._paths, self._command, self._queue = paths, command, queue
        self._background, self._apply = background, apply
        self._launches: dict[int, asyncio.Task[None]] = {}
        self._stops: dict[int, asyncio.Task[None]] = {}
        # tokens and passwords of the shells that jobs came from: never written down
        self.secrets: dict[int, dict[str, str]] = {}

    def marker(self, job: int) -> str:
        return f"{self._paths.state}:{job}"

    def log_of(self, record: JobRecord) -> Path:
        return Path(record.run_dir) / "logs" / f"attempt_{record.attempt}.log"

    def is_launching(self, job: int) -> bool:
        """Its trainer is about to start. A request to end it is carried out before that."""
        return job in self._launches

    # --- starting ---------------------------------------------------------------------------------------------

    def launch(self, entry: Entry) -> None:
        task = self._launches[entry.record.id] = asyncio.create_task(self._launch(entry))
        task.add_done_callback(lambda _: self._launches.pop(entry.record.id, None))

    async def _launch(self, entry: Entry) -> None:
        job, run_dir = entry.record.id, Path(entry.record.run_dir)
        try:
            async with self.tails.folder(job):
                tail = await self.tails.catch_up(entry.record)
                begun = await self._background(partial(prepare, run_dir), what=str(run_dir))
            then = (
                self._queue.never_launched(job, time.time())
                if entry.ending
                else self._start(entry, tail, _options(entry) if begun else [])
            )
        except Exception as e:
            if not isinstance(e, (OSError, ValueError)):  # a bug of ours, in one job perhaps: the others continue
                log.exception("launch failed")
            then = self._queue.ended(
                job,
                AttemptResult(
                    "failed",
                    f"The trainer could not be launched: {e}. Fix that, then: wanlora resume {entry.record.name}",
                ),
                time.time(),
            )
        del self._launches[job]
        self._apply(then)

    def _start(self, entry: Entry, tail: Tail, options: list[str]) -> list[Instruction]:
        """Raises OSError."""
        record, job = entry.record, entry.record.id
        record.attempt = max(record.attempt, tail.view.attempt + 1)
        kills = oom_kills()
        # whatever has that name: a pipe without a reader would be waited for
        self.log_of(record).unlink(missing_ok=True)
        secrets = self.secrets.get(job, {})
        kept = {name: os.environ[name] for name in entry.secrets if name not in secrets and name in os.environ}
        entry.lacking = [name for name in entry.secrets if name not in secrets | kept]
        child = start_trainer(
            self._command,
            job_file=self._paths.job_file(job),
            out=record.out,
            options=options,
            marker=self.marker(job),
            log=self.log_of(record),
            environment=environment(os.environ, entry.shell, kept | secrets)
            | shown_to_cuda(dict(zip(record.gpus, record.devices, strict=False))),
        )
        process = identify(child.pid)
        assert process is not None  # it is our child and nobody has waited for it yet
        self.trainers[job] = Trainer(process, self.marker(job), child)
        log.info("job %d: trainer %d launched, attempt %d", job, child.pid, record.attempt)
        return self._queue.launched(job, process, time.time(), first_seq=tail.last_seq, oom_kills=kills)

    # --- stopping ---------------------------------------------------------------------------------------------

    def ask_stop(self, entry: Entry) -> None:
        task = self._stops[entry.record.id] = asyncio.create_task(self._ask_stop(entry))
        task.add_done_callback(lambda _: self._stops.pop(entry.record.id, None))

    async def stop_left(self, job: int) -> None:
        """Wait until a stop request that is under way lies in the run folder, or has become a signal."""
        if task := self._stops.get(job):
            await asyncio.shield(task)

    async def _ask_stop(self, entry: Entry) -> None:
        record, attempt = entry.record, entry.record.attempt
        try:
            async with self.tails.folder(record.id):
                await self._background(
                    partial(write_command, Path(record.run_dir), f"stop-{attempt}", TrainerCommand(command="stop")),
                    what=record.run_dir,
                )
        except (OSError, ValueError) as e:
            if record.id in self.trainers and record.attempt == attempt:
                log.warning(
                    "job %d: its trainer cannot be left a command (%s) and is asked with SIGTERM instead, which"
                    " saves too",
                    record.id,
                    e,
                )
                self.trainers[record.id].terminate()


def _options(entry: Entry) -> list[str]:
    """The options for the trainer of a run that lies there already."""
    if not entry.resume:
        return []
    back = ["--from", str(entry.from_step)] if entry.from_step is not None else []
    return ["--resume", *back, *(["--accept-changes"] if entry.accept_changes else [])]
