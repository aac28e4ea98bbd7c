"""Starts trainers and leaves stop requests for them. What touches a run folder is done in the background, so a folder
that hangs fails its own job and no other."""

import asyncio
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from daemon.background_io import BackgroundIO
from daemon.events.event_tail import Tail
from daemon.events.event_tails import Tails
from daemon.jobs.control_files import name_run, prepare, write_command
from daemon.machine.gpu_wait import GpuWait, locked
from daemon.machine.lost_gpus import Left, left
from daemon.processes.proc import ProcessId, identify, marked, oom_kills
from daemon.processes.start_trainer import for_gpus, start_trainer
from daemon.processes.trainer_process import Trainer
from daemon.queue import restarts
from daemon.queue.entry import AttemptResult, Entry, Instruction
from daemon.queue.job_queue import Queue
from daemon.wire.paths import DaemonPaths
from daemon.wire.protocol import JobRecord
from presets.atomic_file import replacing
from presets.files import open_regular
from presets.machine.gpu_locks import lock_gpus
from presets.machine.shell import environment
from presets.machine.visible_gpus import shown_to_cuda
from presets.runs.control import TrainerCommand
from presets.text import to_type

log = logging.getLogger("daemon")

MOST_LOG = 64 * 2**20  # bytes of a trainer's log; those before are kept once
SAVED_AGAIN = 0.5  # seconds between two looks at whether a launch is in the job table


class Runner:
    """What becomes of the queue's Launch and AskStop."""

    def __init__(
        self,
        paths: DaemonPaths,
        command: list[str],
        queue: Queue,
        background: BackgroundIO,
        apply: Callable[[list[Instruction]], None],
        is_saved: Callable[[], bool],
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        """`apply`: takes what the queue says to what has happened. `is_saved`: whether the job table says so by now.
        `looked`: called when more is known of a trainer."""
        self.trainers: dict[int, Trainer] = {}
        self.tails = Tails(background, lambda job: job in self.trainers)
        self._paths, self._command, self._queue = paths, command, queue
        self._background, self._apply, self._is_saved = background, apply, is_saved
        self._looks, self._looked = BackgroundIO(), looked  # of its own: however many disks hang, trainers are seen
        self._gpus = GpuWait(paths.state, queue, background, apply)
        self._launches: dict[int, asyncio.Task[None]] = {}
        self._stops: dict[int, asyncio.Task[None]] = {}
        # tokens and passwords of the shells that jobs came from: never written down
        self.secrets: dict[int, dict[str, str]] = {}

    def new_marker(self, job: int) -> str:
        """Of one attempt alone: no other job table, nor a later one of this folder, ever gives it again."""
        return f"{self._paths.state}:{job}:{secrets.token_hex(8)}"

    def marker(self, entry: Entry) -> str:
        return entry.marker or f"{self._paths.state}:{entry.record.id}"

    def adopt(self, entry: Entry, launcher: ProcessId, marker: str) -> None:
        """Take up a trainer that another daemon has started. One from before GPUs were locked has no lock of its
        own."""
        lock, _ = lock_gpus(entry.record.devices, entry.record.name)
        self.trainers[entry.record.id] = Trainer(launcher, marker, lock, self._look(marker), self._looked)

    def _look(self, marker: str) -> Callable[[], Coroutine[Any, Any, list[ProcessId]]]:
        """Every process there is has to be looked at, which takes a while where there are many."""
        return partial(self._looks, partial(marked, marker), what="/proc")

    def let_go(self, job: int) -> Trainer:
        """All processes of a trainer have ended."""
        trainer = self.trainers.pop(job)
        trainer.lock.close()
        return trainer

    def log_of(self, record: JobRecord) -> Path:
        return Path(record.run_dir) / "logs" / f"attempt_{record.attempt}.log"

    async def keep_logs_small(self) -> None:
        """Those of all that run: a library that complains at every step fills a disk in days."""
        for job in list(self.trainers):
            log_file = self.log_of(self._queue.entries[job].record)
            with suppress(OSError, ValueError):  # lost or full: there is nothing to be done
                await self._background(partial(cut, log_file), what=str(log_file))

    def is_launching(self, job: int) -> bool:
        """Its trainer is about to start. A request to end it is carried out before that."""
        return job in self._launches

    def look(self, now: float) -> None:
        """See to what waits for more than its turn."""
        self._gpus.look(now)

    # --- starting ---------------------------------------------------------------------------------------------

    def launch(self, entry: Entry) -> None:
        task = self._launches[entry.record.id] = asyncio.create_task(self._launch(entry))
        task.add_done_callback(lambda _: self._launches.pop(entry.record.id, None))

    async def launched(self, seconds: float) -> None:
        """Wait until every launch that is under way is over, for a while: the next daemon can do it, but later."""
        if self._launches:
            await asyncio.wait(list(self._launches.values()), timeout=seconds)

    async def _launch(self, entry: Entry) -> None:
        job, run_dir = entry.record.id, Path(entry.record.run_dir)
        try:
            # the next daemon must know of this attempt, else it would start a second one beside it
            while not self._is_saved() and not entry.ending:
                await asyncio.sleep(SAVED_AGAIN)
            why = await self._gpus.in_the_way(entry)
            async with self.tails.folder(job):
                tail = await self.tails.catch_up(entry.record)
                begun = not why and await self._background(partial(prepare, run_dir), what=str(run_dir))
                options = _options(entry) if begun else []
                there = Left(entry.record.gpus, [])
                if options:  # the trainer refuses a job that names a GPU which has never been there
                    look = partial(left, entry.record, self._paths.job_file(job))
                    there = await self._background(look, what="the NVIDIA driver")
                if entry.record.file_name:  # it was renamed before it began
                    copy = self._paths.job_file(job)
                    await self._background(partial(name_run, copy, run_dir.name), what=str(copy))
            if entry.ending:
                then = self._queue.never_launched(job, time.monotonic())
            elif why:
                then = restarts.cannot_start(self._queue, job, why, time.monotonic())
            elif there.refused:
                end = AttemptResult("failed", f"{there.why} {there.refused}.")
                then = self._queue.ended(job, end, time.monotonic())
            else:
                then = self._start(entry, tail, options, there)
        except Exception as e:
            if not isinstance(e, (OSError, ValueError)):  # a bug of ours, in one job perhaps: the others continue
                log.exception("launch failed")
            then = self._queue.ended(
                job,
                AttemptResult(
                    "failed",
                    f"The trainer could not be launched: {e}. Fix that, then: {to_type('resume', entry.record.name)}",
                ),
                time.monotonic(),
            )
        del self._launches[job]
        self._apply(then)

    def _start(self, entry: Entry, tail: Tail, options: list[str], there: Left) -> list[Instruction]:
        """Raises OSError."""
        record, job = entry.record, entry.record.id
        lock, missing = lock_gpus(record.devices, record.name)
        if missing and not entry.anyway:  # another daemon was quicker
            lock.close()
            return restarts.cannot_start(self._queue, job, locked(entry), time.monotonic())
        record.attempt = max(record.attempt, tail.view.attempt + 1)
        record.gone = there.gone
        devices = dict(zip(record.gpus, record.devices, strict=False))
        if there.gone:
            log.warning("job %d: %s It goes on with GPU %s", job, there.why, " and ".join(map(str, there.use)))
            devices = {gpu: devices[gpu] for gpu in there.use}
            options = [*options, "--gpus", ",".join(map(str, there.use))]
        kills = oom_kills()
        # whatever has that name: a pipe without a reader would be waited for
        self.log_of(record).unlink(missing_ok=True)
        given = self.secrets.get(job, {})
        kept = {name: os.environ[name] for name in entry.secrets if name not in given and name in os.environ}
        entry.lacking = [name for name in entry.secrets if name not in given | kept]
        try:
            child = start_trainer(
                for_gpus(self._command, len(there.use)),
                job_file=self._paths.job_file(job),
                out=record.out,
                options=options,
                marker=self.marker(entry),
                log=self.log_of(record),
                keep=lock.descriptors,
                environment=environment(os.environ, entry.shell, kept | given) | shown_to_cuda(devices),
            )
        except OSError:
            lock.close()
            raise
        process = identify(child.pid)
        assert process is not None  # it is our child and nobody has waited for it yet
        marker = self.marker(entry)
        self.trainers[job] = Trainer(process, marker, lock, self._look(marker), self._looked, child)
        log.info("job %d: trainer %d launched, attempt %d", job, child.pid, record.attempt)
        return self._queue.launched(job, process, time.monotonic(), first_seq=tail.last_seq, oom_kills=kills)

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


def cut(log_file: Path, most: int = MOST_LOG) -> None:
    """Move what a log holds into a second file beside it, when that is too much. What is written at this very moment
    may be lost. Raises OSError."""
    with open_regular(log_file) as f:
        if os.fstat(f.fileno()).st_blocks * 512 <= most:
            return
        with replacing(log_file.with_name(f"{log_file.name}.1")) as aside, aside.open("xb") as older:
            shutil.copyfileobj(f, older)
    os.truncate(log_file, 0)


def _options(entry: Entry) -> list[str]:
    """The options for the trainer of a run that lies there already."""
    if not entry.resume:
        return []
    back = ["--from", str(entry.from_step)] if entry.from_step is not None else []
    return ["--resume", *back, *(["--accept-changes"] if entry.accept_changes else [])]
