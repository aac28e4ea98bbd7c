"""Jobs whose turn it is wait for GPUs that others use: another daemon's trainers, or anybody's processes.

What is looked at is in daemon.processes.occupants and presets.machine.gpu_locks; what waiting means in the queue, in
daemon.queue.restarts.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from daemon.background_io import BackgroundIO
from daemon.processes.occupants import marked_by, others_on
from daemon.queue import restarts
from daemon.queue.entry import Entry, Instruction
from daemon.queue.job_queue import Queue
from presets.errors import UserError
from presets.machine.gpu_locks import holder_of
from presets.text import to_type

log = logging.getLogger("daemon")

LOOK_EVERY = 5.0  # seconds


class GpuWait:
    """Looks at the GPUs of jobs whose turn it is; in threads, because a driver may not answer."""

    def __init__(
        self, state: Path, queue: Queue, background: BackgroundIO, apply: Callable[[list[Instruction]], None]
    ) -> None:
        self._state, self._queue, self._background, self._apply = state, queue, background, apply
        self._due = 0.0
        self._looks: dict[int, asyncio.Task[None]] = {}

    async def in_the_way(self, entry: Entry) -> str:
        """Why a job cannot have its GPUs now, with what the user may do; "" when it can, or wants them anyway."""
        record = entry.record
        if entry.anyway or not record.devices:
            return ""
        if why := locked(entry):
            return why
        try:
            return _waits(
                entry,
                await self._background(
                    partial(_others, self._state, record.gpus, record.devices), what="the NVIDIA driver"
                ),
            )
        except UserError as e:
            return _waits(entry, f"Its GPUs cannot be looked at: {e}.")

    def look(self, now: float) -> None:
        """Look again for those that wait, if it is time to."""
        waiting = [e for e in self._queue.queued() if e.busy]
        if not waiting or now < self._due:
            return
        self._due = now + LOOK_EVERY
        for entry in waiting:
            job = entry.record.id
            if job not in self._looks:  # of a driver that hangs, one thread is enough
                task = self._looks[job] = asyncio.create_task(self._look(entry))
                task.add_done_callback(lambda _, job=job: self._looks.pop(job))  # type: ignore[misc]

    async def _look(self, entry: Entry) -> None:
        try:
            why = await self.in_the_way(entry)
        except Exception:  # a bug of ours: the next look may be better
            log.exception("a look at the GPUs failed")
            return
        job = entry.record.id
        if self._queue.entries.get(job) is not entry or not entry.busy:  # its user has removed or started it meanwhile
            return
        self._apply(
            restarts.cannot_start(self._queue, job, why, self._now())
            if why
            else restarts.can_start(self._queue, job, self._now())
        )

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def locked(entry: Entry) -> str:
    """Why a job cannot have the locks of its GPUs, with what the user may do; "" when it can."""
    pairs = zip(entry.record.gpus, entry.record.devices, strict=False)
    return _waits(
        entry, " ".join(f"GPU {number} is taken by {holder}." for number, gpu in pairs if (holder := holder_of(gpu)))
    )


def _waits(entry: Entry, why: str) -> str:
    way = f"It starts when that has ended; or at once with: {to_type('resume', entry.record.name, '--anyway')}"
    return f"{why} {way}" if why else ""


def _others(state: Path, numbers: list[int], devices: list[str]) -> str:
    def ours() -> set[int]:
        return {process.pid for trainer in marked_by(state).values() for process in trainer}

    return others_on(numbers, devices, ours)
