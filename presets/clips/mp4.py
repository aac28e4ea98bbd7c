"""The outermost boxes of an MP4 file (ISO 14496-12, 4.2), without decoding any. Matroska's layout is `matroska`."""

import struct
from collections.abc import Iterator
from typing import BinaryIO


def boxes(f: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """(kind, offset of its end) of each outermost box of a file of `size` bytes, as its header says: the last one may
    end beyond the file. Stops at what is no box."""
    at = 0
    while at + 8 <= size:
        f.seek(at)
        header = f.read(16)
        length, kind = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:
            length = struct.unpack(">Q", header[8:16])[0]
        elif length == 0:  # up to the end of the file
            length = size - at
        if length < 8:
            return
        at += length
        yield kind, at
