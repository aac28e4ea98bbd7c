"""The events of every job, read to their end before they are answered with, without holding up anybody else."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from daemon.jobs.background_io import BackgroundIO
from daemon.jobs.event_tail import Tail
from daemon.wire.protocol import JobRecord

KEEP = 8  # folds of ended jobs kept in memory


class Tails:
    """A tail per job. That of a job with a trainer is read on the loop, a little at a time; any other in a thread, by
    one reader at a time."""

    def __init__(self, background: BackgroundIO, is_live: Callable[[int], bool]) -> None:
        """`is_live`: whether a job has a trainer, and its tail is read by `poll`."""
        self._background, self._is_live = background, is_live
        self._tails: dict[int, Tail] = {}
        self._folders: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    def __getitem__(self, job: int) -> Tail:
        return self._tails[job]

    def get(self, job: int) -> Tail | None:
        """None before it was first read, and while it is being read in the background."""
        return self._tails.get(job)

    def open(self, record: JobRecord) -> Tail:
        """The tail of a job as it is, to be read here and now."""
        return self._tails.setdefault(record.id, Tail(Path(record.run_dir)))

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
        if self._is_live(job):
            return self._tails[job]
        # a thread that hangs has one that nobody else has
        tail = self._tails.pop(job, None) or Tail(Path(record.run_dir))
        # `wanlora train --resume` may have written there since
        while await self._background(tail.poll, what=str(tail.path)):
            pass
        ended = [j for j in self._tails if not self._is_live(j)]
        for old in ended[: max(0, len(ended) - KEEP + 1)]:
            del self._tails[old]
        self._tails[job] = tail
        return tail
