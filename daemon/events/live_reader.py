"""Follows the events of the jobs whose trainers run, as they are written.

The kernel tells when a file grows (inotify). Where it does not, as on some network disks, the file is looked at many
times a second. It is read in a thread (daemon.events.reader_thread): a disk that hangs holds up its own job alone.
What events mean for a job is daemon.jobs.service's.
"""

import asyncio
import ctypes
import logging
import os
import struct
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any

import inotify_simple
from inotify_simple import INotify, flags

from daemon.events.event_lines import Batch, read_together
from daemon.events.event_tail import Tail
from daemon.events.event_tails import Tails
from daemon.events.reader_thread import ReaderThread
from daemon.wire.protocol import JobRecord
from presets.errors import UserError
from presets.runs.event_data import StepLine
from presets.runs.events import EVENTS_FILE, Event

log = logging.getLogger("daemon")

GATHER = 0.045  # seconds in which what is written is read together
POLL = 0.04  # seconds between two looks at a file that nothing is told of
HEAR = 0.5  # seconds, at most, for which what the kernel says is not asked for
LOOK = 1.0  # and at one whose growth is told, should a word get lost
AGAIN = 2.0  # seconds until what could not be read is tried again
MOST = 500  # events read at once
MISSES = 3  # times that a file has grown without a word, until that is expected
HUNG = 10.0  # seconds without an answer of the disk, until that is said

# plain numbers: these enumerations take longer than all the rest
_GROWTH = int(flags.MODIFY | flags.CREATE | flags.MOVED_TO)
_MODIFY = int(flags.MODIFY)
_PUT_THERE = int(flags.CREATE | flags.MOVED_TO)
_GONE = int(flags.IGNORED | flags.UNMOUNT | flags.DELETE_SELF | flags.MOVE_SELF)
_WORD = struct.Struct("iIII")  # what the kernel says of one file, and behind it the name: inotify(7)
MOST_WORDS = 2**16  # bytes; what is left is read next time
NAME = os.fsencode(EVENTS_FILE) + b"\0"
_WATCHED, _OVERFLOW = int(_GROWTH | _GONE | flags.ONLYDIR), int(flags.Q_OVERFLOW)


class _Run:
    """One job's file."""

    def __init__(self, record: JobRecord) -> None:
        self.record = record
        self.tail: Tail | None = None  # None before it was first read to its end
        self.due = 0.0  # when it is looked at next, as time.monotonic counts
        self.since: float | None = None  # a read is under way since then
        self.watch: int | None = None  # inotify's number
        self.told = False  # that it has grown, since the last look
        self.is_told = False  # whether its growth is told at all
        self.same = False  # only the file that was read last can have grown
        self.quick = True  # what it grew by last was of the frequent kinds
        self.misses = 0  # one after the other
        self.ending = self.settled = False
        self.trouble = ""  # why it cannot be read


class LiveReader:
    """To be made in a running loop."""

    def __init__(
        self,
        tails: Tails,
        take: Callable[[int, Sequence[Event | StepLine]], None],
        took: Callable[[], None] = lambda: None,
    ) -> None:
        """`take`: called with a job and its new events, after they have come into its tail; `took`: then, once for the
        jobs that had some at the same time."""
        self._tails, self._take, self._done = tails, take, took
        self._looking = self._news = False  # news: something was taken, and `took` is not called yet
        self._busy, self._hear_due = False, 0.0  # busy: each file had grown at the last look
        self._runs: dict[int, _Run] = {}
        self._watches: dict[int, _Run] = {}
        self._thread = ReaderThread()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._notify = _inotify()
        self._resting = False
        self._next: asyncio.Handle = self._loop.call_soon(self._look_at_all)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._wake()
        self._next.cancel()
        self._thread.close()
        if self._notify is not None:
            self._notify.close()

    # --- for the service --------------------------------------------------------------------------------------

    def follow(self, record: JobRecord) -> None:
        """From now on, until `leave`."""
        if record.id not in self._runs:
            run = self._runs[record.id] = _Run(record)
            self._spawn(self._begin(run))

    def is_settled(self, job: int) -> bool:
        """Whether all that was written before the first call is in the tail: for a job whose trainer has ended."""
        run = self._runs[job]
        if not run.ending:
            run.ending, run.due = True, 0.0
            self._wake()
        return run.settled

    def leave(self, job: int) -> None:
        if (run := self._runs.pop(job, None)) is None:
            return
        self._unwatch(run)
        if run.tail is not None:
            run.tail.close()
            self._keep(run.tail, ended=True)

    def troubles(self) -> list[tuple[JobRecord, str]]:
        """The jobs whose events cannot be read at present, and why."""
        late = time.monotonic() - HUNG
        hung = "its disk does not answer"
        return [
            (run.record, hung if run.since is not None and run.since < late else run.trouble)
            for run in self._runs.values()
            if run.trouble or (run.since is not None and run.since < late)
        ]

    # --- reading ----------------------------------------------------------------------------------------------

    async def _begin(self, run: _Run) -> None:
        """Read what lies there already."""
        while self._runs.get(run.record.id) is run:
            try:
                async with self._tails.caught_up(run.record) as tail:
                    run.tail, run.trouble = tail, ""
            except (OSError, UserError) as e:
                self._complain(run, e)
                await asyncio.sleep(AGAIN)
            else:
                self._take(run.record.id, [])
                self._done()
                self._wake()
                return

    def _look_at_all(self) -> None:
        """Read what has grown. As long as something does, this is all: once in GATHER, with one wake of the loop. What
        was just written needs no disk; all else is read in the thread."""
        self._next = self._loop.call_later(GATHER, self._look_at_all)  # whatever happens here
        now, due = time.monotonic(), inf
        busy = self._busy and now < self._hear_due  # as long as all files grow all the time the kernel is asked seldom
        told = busy or self._hear()
        grown: list[tuple[_Run, Tail, bytes]] = []
        self._looking = self._busy = True
        try:
            for run in self._runs.values():
                if run.tail is None or run.since is not None:
                    continue
                if busy:
                    run.told, run.due = True, 0.0
                if run.due > now:
                    due, self._busy = min(due, run.due), False
                elif run.told and run.same and (block := run.tail.read_now()) is not None:
                    grown.append((run, run.tail, block))
                else:
                    self._busy = False
                    self._read(run, run.tail)
            self._take_grown(grown, now)
        finally:
            self._looking = False
            self._tell()
        self._thread.keep_going()
        self._thread.begin()
        if told:
            return
        self._next.cancel()
        self._resting = True
        self._next = self._loop.call_later(min(due - now, LOOK), self._end_rest)
        if self._notify is not None:
            self._loop.add_reader(self._notify.fileno(), self._wake)

    def _wake(self) -> None:
        """Something is to be read; what comes soon is read with it."""
        if self._resting:
            self._rest_no_more()
            self._next.cancel()
            self._next = self._loop.call_later(GATHER, self._look_at_all)

    def _end_rest(self) -> None:
        """It is time to look, told or not."""
        self._rest_no_more()
        self._look_at_all()

    def _rest_no_more(self) -> None:
        self._resting = False
        if self._notify is not None:
            self._loop.remove_reader(self._notify.fileno())

    def _read(self, run: _Run, tail: Tail) -> None:
        run.since, told, run.told = time.monotonic(), run.told, False
        run.same = True
        self._thread.submit(partial(self._look, run, tail), partial(self._took, run, tail, told, run.ending))

    def _look(self, run: _Run, tail: Tail) -> tuple[Batch, int | None]:
        """In the thread. Raises OSError."""
        watch = run.watch
        if watch is None and self._notify is not None:
            with suppress(OSError, ValueError):  # then it is looked at often
                watch = self._notify.add_watch(tail.run_dir, _WATCHED)
        return tail.read(MOST), watch

    def _take_grown(self, grown: list[tuple[_Run, Tail, bytes]], now: float) -> None:
        """As `_took`, of what the kernel had in memory: read together, but for the files that say what is rare."""
        whole = _whole(now)
        together = read_together([(block, tail.last_seq) for run, tail, block in grown if run.quick])
        of_each = iter(together or ())
        for run, tail, block in grown:
            if together is not None and run.quick:
                events = tail.take_lines(next(of_each), block)
            else:
                batch = tail.batch_now(block, MOST)
                events, run.quick = tail.take(batch), bool(batch.lines) or not batch.events
            run.told, run.trouble = False, ""
            run.due = now if len(events) == MOST or run.ending else whole
            if events:
                run.misses, self._news = 0, True
                self._take(run.record.id, events)
                self._keep(tail)
            else:
                self._busy = False

    def _took(
        self,
        run: _Run,
        tail: Tail,
        told: bool,
        ending: bool,
        found: tuple[Batch, int | None] | None,
        error: BaseException | None,
    ) -> None:
        """On the loop. `told`, `ending`: what was so when the read began."""
        run.since, now = None, time.monotonic()
        batch, watch = found or (Batch(False, []), None)
        if watch is not None and run.watch is None:
            run.watch, self._watches[watch] = watch, run
        if self._runs.get(run.record.id) is not run:  # it was left meanwhile
            self._unwatch(run)
            return
        if error is not None:
            self._complain(run, error)
            run.due = now + AGAIN
            return
        run.trouble = ""
        events = tail.take(batch)
        if events:
            run.misses = 0 if told else run.misses + 1
            run.is_told = run.is_told and run.misses < MISSES
        settled, run.settled = run.settled, run.settled or (ending and not events)
        run.due = _whole(now) if run.is_told else now + POLL
        if run.told or len(events) == MOST or (run.ending and not run.settled):
            run.due = now
        if run.due < now + LOOK:
            self._wake()
        if events or batch.anew or run.settled != settled:
            if not self._news:
                self._news = True
                if not self._looking:
                    self._loop.call_soon(self._tell)
            self._take(run.record.id, events)
            self._keep(tail)

    def _tell(self) -> None:
        """Once for all that was taken."""
        if self._news:
            self._news = False
            self._done()

    def _complain(self, run: _Run, error: BaseException) -> None:
        text = str(error)
        if text != run.trouble:
            unknown = None if isinstance(error, OSError | UserError) else error
            log.warning("job %d: its events cannot be read: %s", run.record.id, text, exc_info=unknown)
        run.trouble = text

    def _keep(self, tail: Tail, *, ended: bool = False) -> None:
        if (encoded := tail.to_store(ended=ended)) is not None:
            self._spawn(self._tails.keep(tail, encoded))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- being told -------------------------------------------------------------------------------------------

    def _hear(self) -> bool:
        """What the kernel says of the files by now; whether one has grown."""
        self._hear_due = time.monotonic() + HEAR
        if self._notify is None:
            return False
        try:
            data, at, told = os.read(self._notify.fileno(), MOST_WORDS), 0, False
        except BlockingIOError:
            return False
        while at < len(data):  # its parse_events() makes names and tuples of them, which takes ten times as long
            watch, mask, _, length = _WORD.unpack_from(data, at)
            name = at + _WORD.size
            at = name + length
            run = self._watches.get(watch)
            if mask & _OVERFLOW:
                for every in self._runs.values():
                    every.due = 0.0
            elif run is None or (run.told and mask == _MODIFY):
                pass
            elif mask & _GONE:
                self._unwatch(run)
                run.is_told, run.due = False, 0.0
            elif data.startswith(NAME, name):
                told = run.told = run.is_told = True
                run.same = run.same and not mask & _PUT_THERE
                run.due = 0.0
        return told

    def _unwatch(self, run: _Run) -> None:
        if run.watch is not None:
            self._watches.pop(run.watch, None)
            if self._notify is not None:
                with suppress(OSError):
                    self._notify.rm_watch(run.watch)
            run.watch = None


def _whole(now: float) -> float:
    """When a file is looked at, told or not: all of them together."""
    return (now + LOOK) // LOOK * LOOK + LOOK


def _inotify() -> INotify | None:
    """None where the user has no more of them: then files are looked at."""
    # it would look for the C library by running ldconfig, or even a compiler
    inotify_simple._libc = inotify_simple._libc or ctypes.CDLL(None, use_errno=True)
    try:
        return INotify(nonblocking=True)
    except OSError as e:
        log.warning("no inotify (%s): the runs' events are looked for %.0f times a second", e, 1 / POLL)
        return None
