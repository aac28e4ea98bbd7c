"""MPEG transport streams without FFmpeg, which passes over packets that are lost or garbled: have all of the picture's
come, one after the other? ISO/IEC 13818-1, 2.4.3.

A packet has 188 bytes; 192 with a time in front (.m2ts), 204 with parity behind. Each that carries something raises its
stream's counter (4 bits) by one, so a hole shows but for one of 16 lengths; so does a place where no packet begins.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

SYNC, PLAIN = 0x47, 188
LAYOUTS = ((188, 0), (192, 4), (204, 0))  # bytes from packet to packet, and before its first
ALIKE = 8  # packets in a row by which a layout is known
HEAD = 1 << 16  # bytes in which the first packet begins; recordings may begin in the middle of one
AT_ONCE = 1 << 13  # packets
PROGRAMS = 0  # the stream that lists the programs, with which every file begins
CLOCK = 90_000  # ticks of a time a second
WRAP = 1 << 33  # ticks after which it begins anew

Rows = NDArray[np.uint8]  # (packets, 188)


class Hole(Struct, frozen=True):
    """The first place where something of a stream is missing."""

    pts: int | None  # of the last picture that begins before it, in ticks; None: of none
    at_end: bool = False  # the file ends in the middle of a packet


def hole_in(path: Path, stream: int) -> Hole | None:
    """Where the first of a stream's packets are missing or garbled; None where all are there, or this is no transport
    stream.

    Files that were put together of others (cat a.ts b.ts) are no damage: where one of them begins, the programs are
    listed, and the counters start again.
    """
    size = path.stat().st_size
    with path.open("rb") as f:
        layout = _layout(f.read(HEAD + ALIKE * 204))
        if layout is None:
            return None
        begin, step, before = layout
        f.seek(begin)
        last = _Counters(stream)
        for rows in _packets(f, step, before):
            if (found := last.first_hole(rows)) is not None:
                return found
        return Hole(last.pts, at_end=True) if (size - begin) % step >= before + 4 else None


def _layout(head: bytes) -> tuple[int, int, int] | None:
    """(first byte, bytes from packet to packet, bytes before a packet)."""
    for begin in range(min(HEAD, len(head))):
        for step, before in LAYOUTS:
            marks = head[begin + before : begin + before + ALIKE * step : step]
            if marks and marks == bytes([SYNC]) * len(marks) and (len(marks) == ALIKE or begin == 0):
                return begin, step, before
    return None


def _packets(f: BinaryIO, step: int, before: int) -> Iterator[Rows]:
    while len(chunk := f.read(AT_ONCE * step)) >= step:
        whole = np.frombuffer(chunk, np.uint8)[: len(chunk) // step * step]
        yield whole.reshape(-1, step)[:, before : before + PLAIN]


class _Counters:
    """What is known after the packets so far: the counters of one stream and of the list of programs."""

    def __init__(self, stream: int) -> None:
        self.pts: int | None = None  # of the last picture that has begun
        self._stream = stream
        self._counters: dict[int, int] = {}
        self._listed = self._programs_anew = False  # since the stream's last packet: at all, and with another count

    def first_hole(self, rows: Rows) -> Hole | None:
        """The first one in these packets."""
        lost = np.flatnonzero(rows[:, 0] != SYNC)
        whole = rows[: lost[0]] if len(lost) else rows
        numbers = ((whole[:, 1] & 0x1F).astype(np.uint16) << 8) | whole[:, 2]
        for i in np.flatnonzero((numbers == self._stream) | (numbers == PROGRAMS)):
            if not self._goes_on(int(numbers[i]), whole[i, :32].tobytes()):
                return Hole(self.pts)
        return Hole(self.pts) if len(lost) else None

    def _goes_on(self, number: int, packet: bytes) -> bool:
        carries, counter = packet[3] >> 4 & 1, packet[3] & 15
        new = bool(packet[3] >> 4 & 2 and packet[4] and packet[5] & 0x80)  # it says that the count begins anew
        before = self._counters.get(number)
        self._counters[number] = counter
        # the same count again is the same packet again, which may be sent twice
        sound = new or before is None or counter in ((before + carries) & 15, before)
        if number == PROGRAMS:
            self._listed, self._programs_anew = True, self._programs_anew or not sound
            return True
        starts = bool(packet[1] & 0x40)
        joined = starts and self._listed and (self._programs_anew or counter == 0)
        lost = not sound or (self._programs_anew and not starts)  # the latter: 16 of its packets, and a list between
        self._listed = self._programs_anew = False
        if packet[1] & 0x80 or (lost and not joined):
            return False
        if starts:
            self.pts = _pts(packet, self.pts)
        return True


def _pts(packet: bytes, otherwise: int | None) -> int | None:
    """The time of the picture that begins in a packet, where its header is in the first bytes."""
    at = 4 + (1 + packet[4] if packet[3] >> 4 & 2 else 0)
    header = packet[at : at + 14]
    if len(header) < 14 or header[:3] != b"\0\0\1" or not header[7] & 0x80:
        return otherwise
    a, b, c, d, e = header[9:14]
    return (a >> 1 & 7) << 30 | b << 22 | c >> 1 << 15 | d << 7 | e >> 1
