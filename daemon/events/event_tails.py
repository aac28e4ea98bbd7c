"""The events of every job, read to their end before they are answered with, without holding up anybody else.

Those of jobs whose trainers run are followed by daemon.events.live_reader.
"""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from daemon.background_io import BackgroundIO
from daemon.events.event_tail import Tail
from daemon.events.stored_fold import write_fold
from daemon.wire.protocol import JobRecord
from presets.errors import UserError

KEEP = 8  # folds of ended jobs kept in memory


class Tails:
    """A tail per job, read in a thread, by one reader at a time."""

    def __init__(self, background: BackgroundIO, is_live: Callable[[int], bool]) -> None:
        """`is_live`: whether a job has a trainer; once read, its tail is kept up to date by the live reader."""
        self._background, self._is_live = background, is_live
        self._tails: dict[int, Tail] = {}
        self._folders: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._reading: dict[int, Tail] = {}
        self._first_looks: dict[int, asyncio.Task[None]] = {}
        self._storing: set[asyncio.Task[None]] = set()

    def get(self, job: int) -> Tail | None:
        """None before it was first read, and while it is being read in the background."""
        return self._tails.get(job)

    def forget(self, job: int) -> None:
        """The job is no more."""
        self._tails.pop(job, None)
        if not self._folders[job].locked():
            del self._folders[job]

    def folder(self, job: int) -> asyncio.Lock:
        """Held while something is done in a run folder that must not overlap: reading it to its end, preparing it,
        leaving a command there."""
        return self._folders[job]

    @asynccontextmanager
    async def caught_up(self, record: JobRecord) -> AsyncIterator[Tail]:
        """The job's tail, read to the end of the file; nobody else reads it inside. Raises OSError, and UserError when
        the disk hangs."""
        async with self.folder(record.id):
            yield await self.catch_up(record)

    async def catch_up(self, record: JobRecord) -> Tail:
        """The same for who holds the folder."""
        job = record.id
        if self._is_live(job) and job in self._tails:
            return self._tails[job]
        # a thread that hangs has one that nobody else has
        tail = self._tails.pop(job, None)
        fresh, tail = tail is None, tail or Tail(Path(record.run_dir))
        self._reading[job] = tail
        try:
            # `wanlora train --resume` may have written there since
            more = await self._background(partial(_begin, tail, fresh), what=str(tail.path))
            while more:
                more = await self._background(tail.fold, what=str(tail.path))
            if (encoded := tail.to_store()) is not None:  # who asks does not wait for that
                storing = asyncio.create_task(self.keep(tail, encoded))
                self._storing.add(storing)
                storing.add_done_callback(self._storing.discard)
        finally:
            del self._reading[job]
        ended = [j for j in self._tails if not self._is_live(j)]
        for old in ended[: max(0, len(ended) - KEEP + 1)]:
            del self._tails[old]
        self._tails[job] = tail
        return tail

    async def keep(self, tail: Tail, encoded: bytes) -> None:
        """Store a fold beside its events."""
        with suppress(UserError):  # the disk hangs; whoever needs it is told so
            await self._background(partial(write_fold, tail.run_dir, encoded), what=str(tail.path))

    async def being_read(self, record: JobRecord, seconds: float) -> tuple[int, int] | None:
        """Have a job's events read to their end. None when that is done within so many seconds, else the bytes that
        have been read and those that there are; it goes on by itself."""
        job = record.id
        if self._is_live(job) and job in self._tails:
            return None
        task = self._first_looks.get(job)
        if task is None:
            task = self._first_looks[job] = asyncio.create_task(self._look(record))
            task.add_done_callback(lambda _: self._first_looks.pop(job))
        await asyncio.wait({task}, timeout=seconds)
        tail = self._reading.get(job)
        return None if task.done() else (tail.offset, tail.size) if tail else (0, 0)

    async def _look(self, record: JobRecord) -> None:
        """What goes wrong is said to who asks for the tail itself."""
        try:
            async with self.caught_up(record):
                pass
        except Exception:
            return


def _begin(tail: Tail, fresh: bool) -> bool:
    if fresh:
        tail.load()
    return tail.fold()


def ends_of(records: Iterable[JobRecord], seconds: float = 3.0) -> dict[int, Tail]:
    """What the last events of several runs say, for a daemon that comes back to a machine where none of them runs any
    more. Blocking; of a disk that does not answer so long nothing comes."""
    found: dict[int, Tail] = {}

    def read(record: JobRecord) -> None:
        tail = Tail(Path(record.run_dir))
        with suppress(OSError):
            tail.fold_end()
            found[record.id] = tail

    threads = [threading.Thread(target=read, args=(record,), daemon=True) for record in records]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return found.copy()
