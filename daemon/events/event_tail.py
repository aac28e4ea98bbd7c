"""Follows one run's events.jsonl: new events as they are written, their fold, and pages of old ones.

The tails of all jobs are daemon.events.event_tails's; the fold that is kept on disk, daemon.events.stored_fold's; how
pieces of the file become events, daemon.events.event_lines's.
"""

import logging
import os
import stat
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fcntl import F_SETFL, fcntl
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO

from daemon.events.event_lines import (
    BLOCK_BYTES,
    SEEN_BYTES,
    Batch,
    batch_from,
    batch_of,
    before,
    quick_block,
    read_lines,
    sent_as,
)
from daemon.events.read_ahead import ReadAhead, is_worth_it
from daemon.events.stored_fold import StoredFold, read_fold
from daemon.wire.protocol import MAX_EVENT_BYTES, REPLAY_PAGE, REPLAY_PAGE_BYTES, encode
from presets.files import open_regular
from presets.runs.alike_steps import alike_lines, parts_of
from presets.runs.event_data import QuickLine, StepLine
from presets.runs.events import EVENTS_FILE, TERMINAL_KINDS, Event
from presets.runs.run_view import RunView, apply_all, apply_lines, apply_parts, show_pace

log = logging.getLogger("daemon")

INDEX_EVERY = 256  # events between two remembered offsets, at least
END_BYTES = 2**18  # in which an attempt's last word stands
FOLD_SECONDS = 0.2  # of reading in one go
SMALL_PIECE = 2**14  # what comes within a moment is mostly smaller
PIECE_BYTES = 2**18  # of new events that are read at once
MOST_PENDING = 500  # new events that are folded together, at most
STORE_EVERY, STORE_AT_END = 20_000, 1000  # new events after which the fold is stored


class Tail:
    """A reader that is always at the end of what was written completely.

    A last line without its newline waits for the rest. A complete line that cannot be read is passed over, and an
    event of kind `finding` stands in its place, under the sequence number that the line must have had: so every
    reader of the file sees the same events.

    `poll` is `read`, which changes nothing here and may be done in another thread, and `take`.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.path = run_dir, run_dir / EVENTS_FILE
        self._path = os.fspath(self.path)  # a look takes a third of the time so
        self.size = 0  # of the file, when it was last folded
        self._fruitless: tuple[int, ...] | None = None  # the file and our place in it, when nothing came of reading it
        self._said = -1  # the place behind which it was said that nothing can be read
        self._file: tuple[tuple[int, int], BinaryIO] | None = None  # which it is and the file, as `read` left it
        self._buffer = bytearray(SMALL_PIECE)
        self._ahead: ReadAhead | None = None  # of a `fold` that takes long, until it is done
        self._restart()

    def _restart(self) -> None:
        self._end_ahead()
        self._view = RunView()
        self._pending: list[Event | QuickLine] = []  # events that are not in it yet
        self.last_word: Event | None = None  # the newest done, stopped or failed
        self.started: Event | None = None  # the newest `started`
        self.offset = 0
        self._seen = b""  # the bytes just before it, as far as they are known
        self._index: list[tuple[int, int]] = [(0, 0)]  # (seq, offset just behind it)
        self._stored = 0  # the last event that the stored fold holds

    @property
    def last_seq(self) -> int:
        return self._pending[-1].seq if self._pending else self._view.last_seq

    @property
    def view(self) -> RunView:
        """The fold of all events. It is made when it is looked at: many at once are folded several times quicker."""
        if self._pending:
            pending, self._pending = self._pending, []
            for are_lines, some in groupby(pending, lambda event: type(event) is not Event):
                if are_lines:
                    apply_lines(self._view, list(some))  # type: ignore[arg-type]
                else:
                    apply_all(self._view, some)
        return self._view

    # --- new events -------------------------------------------------------------------------------------------

    def poll(self, limit: int = 2000) -> list[Event]:
        """At most `limit` events that are new since the last call; [] when there is no file yet. Raises OSError.

        A file that has become shorter, or holds something else by now, is another one (somebody emptied the run
        folder): it is read from its start.
        """
        return list(self.take(self.read(limit)))  # type: ignore[arg-type]

    def read_now(self) -> bytes | None:
        """The whole lines that have been added to the file that was read last, where the kernel has them in memory:
        this never waits for a disk. None when it must be asked for with `read`. They count by `take_lines`, or by
        `take` of their `batch_now`."""
        if self._file is None:
            return None
        seen, buffer = self._seen, self._buffer
        try:
            size = os.preadv(self._file[1].fileno(), [buffer], self.offset - len(seen), os.RWF_NOWAIT)
        except OSError:  # it would wait, or this file system cannot say
            return None
        if size == SMALL_PIECE or not buffer.startswith(seen, 0, size):
            return None
        return bytes(buffer[len(seen) : buffer.rfind(b"\n", 0, size) + 1])

    def batch_now(self, block: bytes, limit: int = 2000) -> Batch:
        """What `read_now` gave, read by itself."""
        begin = self.offset - len(self._seen)
        return batch_of(self._seen + block, begin, self.offset, self.last_seq, limit, as_lines=True)

    def read(self, limit: int = 2000) -> Batch:
        """What `poll` would give. Raises OSError. An end that cannot be read is not read again before it changes."""
        with suppress(FileNotFoundError):
            facts = self.path.stat()
            state = facts.st_ino, facts.st_size, facts.st_mtime_ns, self.offset
            if state == self._fruitless:
                return Batch(False, [])
            batch = self._read_new(limit)
            self._fruitless = None if batch.anew or batch.events else state
            if self._fruitless and facts.st_size - self.offset > MAX_EVENT_BYTES and self._said != self.offset:
                self._said = self.offset
                log.warning("%s holds nothing that can be read from byte %d on", self.path, self.offset)
            return batch
        return self._read_new(limit)

    def _read_new(self, limit: int) -> Batch:
        try:
            facts = os.stat(self._path)  # noqa: PTH116
        except FileNotFoundError:
            return Batch(self.offset > 0, [])  # the next one may be longer by the time that it is looked at
        anew = facts.st_size < self.offset
        if facts.st_size == self.offset and stat.S_ISREG(facts.st_mode):
            return Batch(anew, [])
        which = (facts.st_dev, facts.st_ino)
        if self._file is None or self._file[0] != which:
            self._file = which, open_regular(self.path)
            with suppress(OSError):  # of another user's file; else each look at it would be written down beside it
                fcntl(self._file[1].fileno(), F_SETFL, os.O_NOATIME)
        begin = self.offset - len(self._seen)
        if not anew and (size := facts.st_size - begin) <= PIECE_BYTES:  # in one go, with what shows another file
            piece = os.pread(self._file[1].fileno(), size, begin)
            if piece.startswith(self._seen):
                return batch_of(piece, begin, self.offset, self.last_seq, limit)
            anew = True
        with open_regular(self.path) as file:
            anew = anew or self._holds_another(file)
            return batch_from(file, 0, *((0, 0) if anew else (self.offset, self.last_seq)), limit, anew=anew)

    def _holds_another(self, file: BinaryIO) -> bool:
        """Whether other events lie where those did that were read. Raises OSError."""
        return not before(file, self.offset).endswith(self._seen)

    def close(self) -> None:
        """Hold no file open, until the next `read`."""
        self._file = None

    def take(self, batch: Batch) -> Sequence[Event | StepLine]:
        """Let what was read count."""
        if batch.anew:
            self._restart()
        if batch.lines:
            self._pending += batch.lines
            self._note_end(batch.lines[-1].seq, batch.ends[0])
        else:
            self._pending += self._noted(zip(batch.events, batch.ends, strict=True))
        self._seen = batch.seen or self._seen
        self._fold_many()
        return batch.events

    def take_lines(self, lines: Sequence[QuickLine], block: bytes) -> Sequence[Event | StepLine]:
        """Let what `read_now` gave count, which was read together with others'."""
        if not lines:
            return ()
        self._pending += lines
        self._note_end(lines[-1].seq, self.offset + len(block))
        self._seen = (self._seen + block)[-SEEN_BYTES:]
        self._fold_many()
        return sent_as(lines, block)

    def _fold_many(self) -> None:
        if len(self._pending) > MOST_PENDING:
            assert self.view

    def _note_end(self, seq: int, offset: int) -> None:
        """An event and the offset behind it; of those before it nothing is to be kept beside the view."""
        self.offset = offset
        if seq >= self._index[-1][0] + INDEX_EVERY:
            self._index.append((seq, offset))

    def fold(self, seconds: float = FOLD_SECONDS) -> bool:
        """Read on towards the end, as long as that and without giving events: several times quicker. Whether there may
        be more. Raises OSError."""
        try:
            facts = self.path.stat()
        except FileNotFoundError:
            facts = None
        self.size = facts.st_size if facts else 0
        if self.size < self.offset:
            self._restart()
        if not self.size and (facts is None or stat.S_ISREG(facts.st_mode)):
            return False
        with open_regular(self.path) as f:
            if self._holds_another(f):
                self._restart()
            if self._ahead is not None and not self._ahead.reads(f):
                self._end_ahead()
            with suppress(OSError):  # then it takes longer
                if self._ahead is None and is_worth_it(self.size - self.offset):
                    self._ahead = ReadAhead(f, self.offset, self.size)
            last, until, more = self.last_seq, time.monotonic() + seconds, True
            try:
                while more:
                    more = self._fold_block(f) and time.monotonic() < until
                self._seen = before(f, self.offset)
            except OSError:
                self._end_ahead()
                raise
            show_pace(self._view)
        if self.last_seq == last:
            self._end_ahead()
        return self.last_seq > last

    def _end_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _fold_block(self, f: BinaryIO) -> bool:
        """Some hundred events more, at once where all of them are of the frequent kinds. Whether there were any. Raises
        OSError."""
        view, last, size = self.view, self.last_seq, BLOCK_BYTES
        if self._ahead is not None:
            piece = self._ahead.piece_at(self.offset)
            if piece is not None and piece.after == last and piece.end <= self.size:
                apply_parts(view, piece.parts)
                self._note_end(view.last_seq, piece.end)
                return True
            if self._ahead.next is not None and self._ahead.next > self.offset:
                size = min(size, self._ahead.next - self.offset)
        block = os.pread(f.fileno(), size, self.offset)
        block = block[: block.rfind(b"\n") + 1]
        lines = quick_block(block, last, alike_lines)
        if not lines:
            f.seek(self.offset)
            apply_all(view, self._noted(islice(read_lines(f, self.offset, last, quick=True), INDEX_EVERY)))
            return self.last_seq > last
        apply_parts(view, parts_of(lines))
        self._note_end(view.last_seq, self.offset + len(block))
        return True

    def _noted(self, found: Iterable[tuple[Event | QuickLine, int]]) -> Iterator[Event | QuickLine]:
        """The events, with all that is kept of them beside the view."""
        index = self._index
        due = index[-1][0] + INDEX_EVERY
        for event, offset in found:
            self.offset = offset
            if type(event) is Event:
                if event.kind in TERMINAL_KINDS:
                    self.last_word = event
                elif event.kind == "started":
                    self.started = event
            if event.seq >= due:
                index.append((event.seq, offset))
                due = event.seq + INDEX_EVERY
            yield event

    def fold_end(self) -> None:
        """Read the last events alone: enough for an attempt's last word and its last step, for no more. Raises
        OSError."""
        with suppress(FileNotFoundError), open_regular(self.path) as f:
            size = f.seek(0, 2)
            f.seek(max(0, size - END_BYTES))
            if size > END_BYTES:
                f.readline()
            self.offset = f.tell()
            while self.fold():
                pass

    # --- the fold on disk -------------------------------------------------------------------------------------

    def load(self) -> None:
        """Begin where the stored fold ends, if there is one that fits the file."""
        if (stored := read_fold(self.run_dir)) is not None:
            self._view, self.last_word, self.started = stored.view, stored.last_word, stored.started
            self.offset, self._index, self._stored = stored.offset, stored.index, stored.view.last_seq

    def to_store(self, *, ended: bool = False) -> bytes | None:
        """The fold for `write_fold`, when there is much in it that is not stored yet. `ended`: no more will come."""
        if self.last_seq - self._stored < (STORE_AT_END if ended else STORE_EVERY):
            return None
        self._stored = self.last_seq
        return encode(
            StoredFold(
                offset=self.offset,
                index=self._index,
                view=self.view,
                last_word=self.last_word,
                started=self.started,
            )
        )

    # --- old events -------------------------------------------------------------------------------------------

    def page(self, since: int) -> tuple[list[Event], bool]:
        """Events after `since` that `poll` has seen, as many as a reply carries, and whether there are more. Raises
        OSError."""
        since = max(0, since)
        seq, offset = self._index[bisect_right(self._index, since, key=lambda pair: pair[0]) - 1]
        events: list[Event] = []
        start = offset
        if since >= self.last_seq:
            return events, False
        with open_regular(self.path) as f:
            f.seek(offset)
            for event, behind in read_lines(f, offset, seq):
                if event.seq > self.last_seq:
                    break
                if event.seq > since:
                    if len(events) == REPLAY_PAGE or (events and behind - start > REPLAY_PAGE_BYTES):
                        return events, True
                    events.append(event)
                else:
                    start = behind
        return events, False
