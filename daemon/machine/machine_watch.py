"""How the machine does that running jobs are on: their GPUs, their memory, their disks. Looked at beside the loop, one
look of a kind at a time whatever hangs, and only while clients are there to see it.

What a GPU says is presets.machine.gpu_health's; whether the daemon itself does well, daemon.jobs.health's.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from daemon.background_io import BackgroundIO
from daemon.processes.proc import families, memory_of
from daemon.wire.records import JobRecord, RunMachine
from presets.disk import existing_parent
from presets.errors import UserError
from presets.machine.gpu_health import GpuHealth, Nvml

GPUS_EVERY, MEMORY_EVERY, FAMILIES_EVERY = 2.0, 5.0, 15.0  # seconds between two looks
DISK_EVERY, FOLDER_EVERY = 20.0, 60.0  # at what is free, and at every file of a run
DEAR, SELDOM = 5000, 180.0  # the time to the next look at a folder, as a multiple of what one took; seconds, at most
SECONDS = 5.0  # for a look; one that takes longer may still come, and no other begins before
STALE = 3  # looks that may fail before what was seen counts no more


class _Look:
    """One kind of look: what it last gave, and when the next is due."""

    def __init__(self, every: float, dear: float = 0.0) -> None:
        self.every, self.dear = every, dear
        self.at_work = False  # in its thread, perhaps for ever
        self.due, self._began, self._counts_until = 0.0, 0.0, 0.0  # by time.monotonic
        self._seen: Any = None

    def seen(self, now: float) -> Any:
        return self._seen if now < self._counts_until else None

    def began(self, now: float) -> bool:
        """Whether to look now."""
        if self.at_work or now < self.due:
            return False
        self.at_work, self.due, self._began = True, now + self.every, now
        return True

    def ended(self, found: Any, took: float) -> None:
        """`took`: seconds of a core."""
        self.at_work, self._seen = False, found
        every = max(self.every, min(SELDOM, self.dear * took))
        self.due = max(self.due, self._began + every)
        self._counts_until = time.monotonic() + STALE * every + SECONDS


class MachineWatch:
    """What was last seen. Its tasks end with the loop."""

    def __init__(self, background: BackgroundIO, nvml: Nvml | None = None) -> None:
        self._background, self._nvml = background, nvml or Nvml()
        self._gpus, self._memory = _Look(GPUS_EVERY), _Look(MEMORY_EVERY)
        self._disks: dict[int, _Look] = {}  # job -> its own: one disk that hangs holds up no other
        self._folders: dict[int, _Look] = {}
        self._families: dict[int, list[int]] = {}  # launcher -> all processes of the trainer
        self._families_due = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def look(self, running: Iterable[tuple[JobRecord, bool]]) -> None:
        """Look at what is due, for jobs and whether their trainer lives."""
        now, records = time.monotonic(), [record for record, alive in running if alive]
        self._disks = {r.id: self._disks.get(r.id) or _Look(DISK_EVERY) for r in records}
        self._folders = {r.id: self._folders.get(r.id) or _Look(FOLDER_EVERY, DEAR) for r in records}
        gpus = list(dict.fromkeys(gpu for record in records for gpu in gpus_of(record)))
        if gpus and self._gpus.began(now):
            self._begin(self._gpus, "NVML", partial(self._nvml.look, gpus))
        if records and self._memory.began(now):
            pids = {record.id: record.pid for record in records if record.pid}
            self._begin(self._memory, "memory of trainers", partial(self._look_at_memory, pids))
        for record in records:
            for look, work in ((self._disks[record.id], _free), (self._folders[record.id], _used)):
                if look.began(now):
                    self._begin(look, record.run_dir, partial(work, Path(record.run_dir)))

    def of(self, record: JobRecord) -> RunMachine | None:
        """Of a job that was looked at; None when nothing is known."""
        now = time.monotonic()
        seen: dict[str, GpuHealth] = {g.gpu: g for g in self._gpus.seen(now) or ()}
        memory: dict[int, int] = self._memory.seen(now) or {}
        found = RunMachine(
            gpus=[seen[gpu] for gpu in gpus_of(record) if gpu in seen],
            memory=memory.get(record.id),
            memory_total=memory.get(0),
            disk_free=disk.seen(now) if (disk := self._disks.get(record.id)) is not None else None,
            disk_used=folder.seen(now) if (folder := self._folders.get(record.id)) is not None else None,
        )
        return found if found != RunMachine() else None

    def _look_at_memory(self, pids: dict[int, int]) -> dict[int, int]:
        """Which processes belong to whom is asked more seldom: that is a look at all there are."""
        now = time.monotonic()
        if now >= self._families_due or not self._families.keys() >= set(pids.values()):
            self._families, self._families_due = families(pids.values()), now + FAMILIES_EVERY
        return _memory(pids, self._families)

    def _begin(self, look: _Look, what: str, work: Callable[[], Any]) -> None:
        if self._background.is_full:  # other disks hang: later
            look.at_work = False
            return
        loop = asyncio.get_running_loop()

        def at_work() -> None:
            found, began = None, time.thread_time()  # what it costs, not how long a disk lets it wait
            with suppress(OSError, psutil.Error):
                found = work()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(look.ended, found, time.thread_time() - began)

        async def wait() -> None:
            with suppress(UserError):  # it hangs; when it comes after all, it counts
                await self._background(at_work, what=what, seconds=SECONDS)

        task = asyncio.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def gpus_of(record: JobRecord) -> list[str]:
    """As NVML is asked for them."""
    return record.devices or [str(gpu) for gpu in record.gpus]


def _memory(pids: dict[int, int], known: dict[int, list[int]]) -> dict[int, int]:
    """Job -> bytes of its trainer's processes, what they share counted once; 0 -> bytes that the machine has. `pids`:
    their launchers. `known`: all processes of each."""
    found = {0: psutil.virtual_memory().total}
    for job, pid in pids.items():
        own, shared = 0, 0
        for process in known[pid]:
            with suppress(OSError):  # it has ended meanwhile
                resident, common = memory_of(process)
                own, shared = own + resident - common, max(shared, common)
        if own + shared:
            found[job] = own + shared
    return found


def _free(run_dir: Path) -> int:
    """Bytes that are free for a run. Raises OSError."""
    return shutil.disk_usage(existing_parent(run_dir)).free


def _used(run_dir: Path) -> int:
    """Bytes of all files of a run."""
    used, folders = 0, [os.fspath(run_dir)]
    for folder in folders:  # they become more; os.walk takes three times as long
        with suppress(OSError), os.scandir(folder) as there:  # pruned meanwhile
            for entry in there:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    with suppress(OSError):
                        used += entry.stat(follow_symlinks=False).st_size
    return used
