"""A second process that reads most of a long events.jsonl ahead of the daemon, which reads the rest of it: the decoding
of lines is what a first fold takes long for, and in that one process uses one core.

It sends, cut down to what their fold needs, the blocks that hold nothing but events of the frequent kinds. What it
sends too late, or not at all, daemon.events.event_tail reads itself: with and without it comes the same.
"""

import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from fcntl import F_SETPIPE_SZ, fcntl
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from daemon.events.event_lines import BLOCK_BYTES, UNREADABLE, quick_block
from presets import VERSION
from presets.machine.limits import cores
from presets.runs.alike_steps import ShortPart, alike_lines, parts_of, shortened
from presets.runs.event_data import quick_line

LONG = 48 * 2**20  # bytes that are left to read, from which on it is worth its start
LEAD = 24 * 2**20  # of them that the daemon has read by itself until it has started
THEIRS, OURS = 7, 3 * BLOCK_BYTES  # blocks in a row that it reads, and bytes that the daemon reads in between
PATIENCE = 0.5  # seconds that the daemon waits for it in all,
OWN_SECONDS = 0.001  # but for so many for each block: to read it by itself takes no less
PIPE_BYTES = 2**20
_RECEIVE = 2**16
_HEAD = 4  # bytes before each piece that say how long it is


class Piece(Struct, array_like=True):
    """The events of a block."""

    version: str  # of the one who read it: another one may be installed while the daemon runs
    begin: int  # in the file
    end: int
    after: int  # the number of the event before it; -1: it cannot be read quickly
    parts: list[ShortPart]
    following: int | None  # where the next piece begins; None: there is none


_decoder = msgspec.msgpack.Decoder(Piece)


def is_worth_it(size: int) -> bool:
    """Of so many bytes: on a machine where all cores are busy it would take longer with it."""
    return size > LONG and 1 < cores() >= _at_work()


def _at_work() -> int:
    """How many threads the machine runs, or would, at this moment, ours among them. Raises OSError."""
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])


class ReadAhead:
    """The daemon's end. It never waits long: a process that does not keep up is ended."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        """Of the events behind `offset` in a file of that size. Raises OSError."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(offset + LEAD), str(size)],
            cwd="/",
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        assert self._process.stdout is not None
        self._pipe, self._heard = self._process.stdout, b""
        self._comes = select.poll()  # select() takes no descriptor above 1023, and many clients may be there
        self._comes.register(self._pipe, select.POLLIN)
        with suppress(OSError):  # less fits into it, then
            fcntl(self._pipe.fileno(), F_SETPIPE_SZ, PIPE_BYTES)
        self._file = os.fstat(file.fileno())
        self._patience = PATIENCE
        self.next: int | None = None  # where its next piece begins

    def reads(self, file: BinaryIO) -> bool:
        """Whether it is this very file. Raises OSError."""
        return os.path.samestat(self._file, os.fstat(file.fileno()))

    def piece_at(self, offset: int) -> Piece | None:
        """What has been read from there on."""
        while not self._pipe.closed and (self.next is None or self.next <= offset):
            is_due = self.next == offset
            began = time.monotonic()
            piece = self._receive(self._patience if is_due else 0.0)
            self._patience = min(PATIENCE, self._patience + OWN_SECONDS - (time.monotonic() - began))
            if piece is None:
                if is_due:
                    self.close()
                break
            if piece.following is None or piece.version != VERSION:
                self.close()
            self.next = piece.following
            if piece.begin == offset and piece.version == VERSION:
                return piece
        return None

    def _receive(self, seconds: float) -> Piece | None:
        until = time.monotonic() + seconds
        while True:
            end = _HEAD + int.from_bytes(self._heard[:_HEAD], "big")
            if len(self._heard) >= max(end, _HEAD + 1):
                piece, self._heard = self._heard[_HEAD:end], self._heard[end:]
                try:
                    return _decoder.decode(piece)
                except msgspec.MsgspecError:  # another version's
                    self.close()
                    return None
            if not self._comes.poll(max(0.0, until - time.monotonic()) * 1000):
                return None
            if not (data := os.read(self._pipe.fileno(), _RECEIVE)):
                self.close()
                return None
            self._heard += data

    def close(self) -> None:
        """End it."""
        self.next = None
        self._pipe.close()
        self._process.kill()
        self._process.wait()


def _send(piece: Piece) -> None:
    data = msgspec.msgpack.encode(piece)
    sys.stdout.buffer.write(len(data).to_bytes(_HEAD, "big") + data)
    sys.stdout.buffer.flush()


def _behind_line(offset: int) -> int | None:
    """Where the line ends that holds that byte."""
    found = os.pread(0, BLOCK_BYTES, offset).find(b"\n")
    return offset + found + 1 if found >= 0 else None


def _read(begin: int, block: bytes) -> tuple[int, list[object]]:
    try:
        after = quick_line(block[: block.index(b"\n") + 1]).seq - 1
    except UNREADABLE:
        return -1, []
    lines = quick_block(block, after, alike_lines)
    return (after, [shortened(part) for part in parts_of(lines)]) if lines else (-1, [])


def main(offset: int, size: int) -> None:
    """Read the file that is stdin, from the first line behind `offset` on."""
    begin = _behind_line(offset)
    _send(Piece(VERSION, -1, -1, -1, [], begin))
    blocks = 0
    while begin is not None and begin < size:
        block = os.pread(0, BLOCK_BYTES, begin)
        block = block[: block.rfind(b"\n") + 1]
        end = begin + len(block)
        blocks += 1
        following = end if blocks % THEIRS else _behind_line(end + OURS)
        after, parts = _read(begin, block)
        _send(Piece(VERSION, begin, end, after, parts, following if block else None))  # type: ignore[arg-type]
        begin = following if block else None


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
