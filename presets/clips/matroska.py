"""Matroska and WebM without FFmpeg, which passes over what it cannot read: is the file whole, and its clusters sound?
RFC 8794 and 9559."""

import zlib
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

SEGMENT, CLUSTER, INFO, TIMESTAMP_SCALE, TIMESTAMP, CRC = 0x18538067, 0x1F43B675, 0x1549A966, 0x2AD7B1, 0xE7, 0xBF
# ... SeekHead, Tracks, Cues, Attachments, Chapters, Tags
TOP_LEVEL = frozenset({CLUSTER, INFO, 0x114D9B74, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367})
SIMPLE_BLOCK = 0xA3
# ... BlockGroup, EncryptedBlock, Void, Position, PrevSize, SilentTracks
IN_CLUSTER = frozenset({TIMESTAMP, SIMPLE_BLOCK, CRC, 0xA0, 0xAF, 0xEC, 0xA7, 0xAB, 0x5854})
CHUNK = 1 << 20


class _Element(Struct, frozen=True):
    id: int
    begin: int  # of its content, in bytes from the start of the file
    end: int | None  # None: unknown, as in a live recording


def missing_bytes(f: BinaryIO, size: int) -> int:
    """Bytes that the Segment promises beyond the end of a file of `size` bytes; 0 when its length is unknown (live
    recording)."""
    segment = _segment(f)
    return 0 if segment is None or segment.end is None else max(0, segment.end - size)


def damaged_clusters(path: Path) -> tuple[float, float] | None:
    """(from, to) in seconds of the file's clock: where the first damage of the clusters lies. None where nothing is
    wrong, or this is no Matroska.

    A cluster is damaged when its elements do not follow each other, or do not give its checksum, if it has one.
    """
    size = path.stat().st_size
    with path.open("rb") as f:
        segment = _segment(f)
        if segment is None:
            return None
        scale, time, at, end = 1e-3, 0.0, segment.begin, segment.end or size
        while at < end:
            element = _element(f, at)
            if element is None or (element.end or at) > end:
                return (time, time) if element is None or segment.end else None  # a live recording may end anywhere
            if element.id == INFO and element.end is not None:
                scale = _scale(f, element.begin, element.end)
            if element.id != CLUSTER:
                if element.end is None:
                    return time, time
                at = element.end
                continue
            sound, first, last, at = _read_cluster(f, element, end, time, scale, live=segment.end is None)
            if not sound:
                return first, last
            time = last
    return None


def _read_cluster(
    f: BinaryIO, cluster: _Element, file_end: int, time: float, scale: float, *, live: bool
) -> tuple[bool, float, float, int]:
    """(whether it is sound, first and last second that damage may touch, where the next element begins)."""
    at, end, base, last, checksum = cluster.begin, cluster.end or file_end, time, time, None
    while at < end:
        child = _element(f, at)
        if cluster.end is None and child is not None and child.id in TOP_LEVEL:
            break
        if live and child is not None and child.id in IN_CLUSTER and (child.end or 0) > file_end:
            return True, base, last, file_end  # the recording ended here
        if child is None or child.id not in IN_CLUSTER or child.end is None or child.end > end:
            return False, last, last, at
        if child.id == TIMESTAMP:
            f.seek(child.begin)
            base = last = int.from_bytes(f.read(min(8, child.end - child.begin)), "big") * scale
        elif child.id == SIMPLE_BLOCK:
            f.seek(child.begin)
            head = f.read(11)
            track = 9 - head[0].bit_length() if head and head[0] else 1
            last = max(last, base + int.from_bytes(head[track : track + 2], "big", signed=True) * scale)
        elif child.id == CRC and at == cluster.begin and child.end - child.begin == 4:
            f.seek(child.begin)
            checksum = child.end, int.from_bytes(f.read(4), "little")
        at = child.end
    if checksum is not None and cluster.end is not None and _crc(f, checksum[0], cluster.end) != checksum[1]:
        return False, base, last, at
    return True, base, last, at


def _segment(f: BinaryIO) -> _Element | None:
    head = _element(f, 0)
    if head is None or head.id != 0x1A45DFA3 or head.end is None:
        return None
    found = _element(f, head.end)
    return found if found is not None and found.id == SEGMENT else None


def _element(f: BinaryIO, at: int) -> _Element | None:
    """The element that begins at a byte; None when none can begin there."""
    f.seek(at)
    head = f.read(12)
    id_length = 9 - head[0].bit_length() if head and head[0] else 9
    if id_length > 4 or len(head) <= id_length:
        return None
    first = head[id_length]
    size_length = 9 - first.bit_length() if first else 9
    if size_length > 8 or len(head) < id_length + size_length:
        return None
    size = int.from_bytes(head[id_length : id_length + size_length], "big") & (1 << 7 * size_length) - 1
    begin = at + id_length + size_length
    return _Element(
        int.from_bytes(head[:id_length], "big"), begin, None if size == (1 << 7 * size_length) - 1 else begin + size
    )


def _scale(f: BinaryIO, at: int, end: int) -> float:
    """Seconds per unit of the clusters' timestamps."""
    while at < end and (child := _element(f, at)) is not None and child.end is not None:
        if child.id == TIMESTAMP_SCALE:
            f.seek(child.begin)
            return int.from_bytes(f.read(min(8, child.end - child.begin)), "big") * 1e-9
        at = child.end
    return 1e-3


def _crc(f: BinaryIO, at: int, end: int) -> int:
    f.seek(at)
    value = 0
    while at < end and (chunk := f.read(min(CHUNK, end - at))):
        value = zlib.crc32(chunk, value)
        at += len(chunk)
    return value
