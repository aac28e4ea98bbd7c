"""Pieces of an events.jsonl read as events: what comes next in it, damaged lines told, and the frequent kinds quickly.

What a run adds up to, and where reading goes on, is daemon.events.event_tail's; what a line means,
presets.runs.events's.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from itertools import islice
from typing import BinaryIO, Literal, NamedTuple, overload

import msgspec

from daemon.wire.protocol import MAX_EVENT_BYTES, encode
from presets.runs.event_data import QuickLine, StepLine, data_of, quick_line, quick_lines
from presets.runs.events import EVENTS_FILE, Event, decode_event, decode_events

NEWLINE = ord("\n")
BLOCK_BYTES = 3 * 2**15  # that are folded at once
SEEN_BYTES = 512  # just before where reading goes on, by which a file that was put in place of another one shows


class Batch(NamedTuple):
    """What was read from a file and is not in the view yet."""

    anew: bool  # the file is another one: what was known before no longer counts
    events: Sequence[Event | StepLine]
    ends: Sequence[int] = ()  # the offset just behind each, or behind all of them, where there are lines
    seen: bytes = b""  # the bytes before the last of these offsets
    lines: Sequence[QuickLine] = ()  # the same events, to be folded: where all are of the frequent kinds


def batch_of(piece: bytes, begin: int, offset: int, last_seq: int, limit: int, *, as_lines: bool = False) -> Batch:
    """The same out of a piece of the file that begins at `begin`; several times quicker where all events in it are of
    the frequent kinds. `as_lines`: then steps stay lines."""
    end = piece.rfind(b"\n") + 1
    block = piece[offset - begin : end]
    lines = quick_block(block, last_seq)
    if not 0 < len(lines) <= limit:
        return batch_from(BytesIO(piece), begin, offset, last_seq, limit)
    seen = piece[max(0, end - SEEN_BYTES) : end]
    if as_lines:
        return Batch(False, sent_as(lines, block), [begin + end], seen, lines)
    try:
        events = decode_events(block)
        encode(events)
    except UNREADABLE:  # one of them cannot be sent: line by line
        return batch_from(BytesIO(piece), begin, offset, last_seq, limit)
    return Batch(False, events, [begin + end], seen, lines)


def sent_as(lines: Sequence[QuickLine], block: bytes) -> Sequence[Event | StepLine]:
    """The events of a block whose lines these are: its steps as they are, since a line is encoded as its event would
    be."""
    if {*map(type, lines)} == {StepLine}:
        return lines  # type: ignore[return-value]
    whole = zip(lines, block.split(b"\n"), strict=False)  # nothing stands behind the last line
    return [line if type(line) is StepLine else decode_event(bytes_of) for line, bytes_of in whole]


def read_together(blocks: Sequence[tuple[bytes, int]]) -> list[list[QuickLine]] | None:
    """The events of whole lines out of several files, each with the number of the event before them. One reading of
    all costs a fraction of one for each. None unless all can be read quickly and follow each other one by one."""
    try:
        lines = quick_lines(b"".join([block for block, _ in blocks]))
    except UNREADABLE:
        return None
    found, end = [], 0
    for block, last_seq in blocks:
        begin, end = end, end + block.count(b"\n")
        found.append(lines[begin:end])
        if [line.seq for line in found[-1]] != [*range(last_seq + 1, last_seq + 1 + end - begin)]:
            return None
    return found


def batch_from(f: BinaryIO, begin: int, offset: int, last_seq: int, limit: int, *, anew: bool = False) -> Batch:
    """At most so many events from `offset` on, out of a file, or of a piece of one that begins at `begin`. Raises
    OSError."""
    f.seek(offset - begin)
    found = list(islice(read_lines(f, offset, last_seq), limit))
    if not found:
        return Batch(anew, [])
    end = found[-1][1]
    first = max(begin, end - SEEN_BYTES)
    f.seek(first - begin)
    return Batch(anew, [event for event, _ in found], [end for _, end in found], f.read(end - first))


def before(f: BinaryIO, offset: int) -> bytes:
    """The bytes before an offset, as they are on the disk now. Raises OSError."""
    return os.pread(f.fileno(), min(SEEN_BYTES, offset), max(0, offset - SEEN_BYTES))


UNREADABLE = (ValueError, LookupError, TypeError, OverflowError, RecursionError)


@overload
def read_lines(f: BinaryIO, offset: int, last_seq: int) -> Iterator[tuple[Event, int]]: ...
@overload
def read_lines(
    f: BinaryIO, offset: int, last_seq: int, *, quick: Literal[True]
) -> Iterator[tuple[Event | QuickLine, int]]: ...
def read_lines(
    f: BinaryIO, offset: int, last_seq: int, *, quick: bool = False
) -> Iterator[tuple[Event | QuickLine, int]]:
    """Events from where the file stands, which is `offset`, each with the offset just behind it; `last_seq` is the one
    before. Raises OSError."""
    damage: list[DamagedLine] = []
    for line in iter(partial(f.readline, MAX_EVENT_BYTES + 1), b""):
        begin, offset = offset, offset + len(line)
        event: Event | QuickLine | None = None
        if line[-1] != NEWLINE:
            while (more := f.readline(MAX_EVENT_BYTES)) and more[-1] != NEWLINE:
                offset += len(more)
            offset += len(more)
            if not more:
                return
        elif quick:
            # suppress() takes a tenth of the time that a line may
            try:  # noqa: SIM105
                event = quick_line(line)
            except UNREADABLE:
                pass
        if event is None:
            try:
                event = _decode(line)
            except UNREADABLE as e:
                damage.append(DamagedLine(begin, offset, f"{type(e).__name__} {e}"))
                continue
        if event.seq <= last_seq:
            continue
        if damage and event.seq > last_seq + 1:
            yield _finding(damage, last_seq + 1, event), damage[-1].end
        damage.clear()
        last_seq = event.seq
        yield event, offset


class DamagedLine(NamedTuple):
    begin: int  # byte offsets of its start and just behind it
    end: int
    why: str


def quick_block(block: bytes, last_seq: int, read: Callable[[bytes], list[QuickLine]] = quick_lines) -> list[QuickLine]:
    """The events of whole lines; none unless all of them can be read quickly and they follow `last_seq` one by one."""
    try:
        lines = read(block)
    except UNREADABLE:
        return []
    first = last_seq + 1
    # counting b"\n" takes three times as long as parting the lines
    whole = len(lines) == len(BytesIO(block).readlines())
    whole = whole and [line.seq for line in lines] == [*range(first, first + len(lines))]
    return lines if whole else []


def _decode(line: bytes) -> Event:
    """An event that hurts no reader: its data is what its kind holds, and it can be sent."""
    if len(line) > MAX_EVENT_BYTES:
        raise msgspec.DecodeError(f"{len(line)} bytes in one line")
    event = decode_event(line)
    data_of(event)
    encode(event)
    return event


def _finding(damage: list[DamagedLine], seq: int, before: Event | QuickLine) -> Event:
    lines = f"{len(damage)} lines" if len(damage) > 1 else "a line"
    where = "; ".join(f"byte {line.begin}: {line.why}" for line in damage[:20])
    data = {
        "code": "events-damaged",
        "severity": "warning",
        "field": EVENTS_FILE,
        "message": f"{lines} of {EVENTS_FILE} cannot be read ({where[:300]}): what they say is not shown",
        "fix": "Training is not touched by this. Check the disk of the run folder",
    }
    return Event(seq=seq, time=before.time, run=before.run, attempt=before.attempt, kind="finding", data=data)
