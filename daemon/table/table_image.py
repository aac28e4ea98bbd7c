"""The job table read past SQLite: into memory, for a disk that takes no write (SQLite needs room even to read), and in
pieces, when the file is damaged.

The table itself is daemon.table.job_store's. Nothing is written here.
"""

import re
import sqlite3
import struct
from pathlib import Path

from daemon.queue.entry import Entry
from daemon.table.sound_rows import MAX_ENTRY_BYTES, read_row
from presets.files import read_regular

HEADER = b"SQLite format 3\0"
MAX_TABLE_BYTES = 512 * 2**20
_WAL_HEADER, _FRAME_HEADER = struct.Struct(">8I"), struct.Struct(">6I")
_WAL_MAGIC = 0x377F0682  # the last bit: checksums count in big-endian words
_ENTRY = re.compile(rb'\{"record":\{"id":')


def in_memory(path: Path) -> sqlite3.Connection:
    """A copy in memory of the table as it was last committed; an empty one where there is none. Raises OSError, and
    sqlite3.DatabaseError when it is damaged."""
    memory = sqlite3.connect(":memory:", isolation_level=None)
    if image := read_image(path):
        memory.deserialize(image)
        memory.execute("SELECT count(*) FROM sqlite_schema")
    return memory


def read_image(path: Path) -> bytes:
    """The file with all that its write-ahead log (WAL) has committed; b"" when there is none. Raises OSError."""
    try:
        image = bytearray(read_regular(path, MAX_TABLE_BYTES))
    except FileNotFoundError:
        return b""
    try:
        wal = read_regular(path.with_name(f"{path.name}-wal"), MAX_TABLE_BYTES)
    except FileNotFoundError:
        wal = b""
    size, pages = _committed(wal)
    for at, page in pages.items():
        image.extend(bytes(max(0, at + len(page) - len(image))))
        image[at : at + len(page)] = page
    if size:
        del image[size:]
    if image.startswith(HEADER):
        image[18:20] = b"\1\1"  # no WAL: memory has none
    return bytes(image)


def _committed(wal: bytes) -> tuple[int, dict[int, bytes]]:
    """The size of the file and its pages (offset -> content) by the last commit in a WAL, as its format says:
    https://www.sqlite.org/fileformat2.html#walformat. (0, {}) when it holds none."""
    if len(wal) < _WAL_HEADER.size:
        return 0, {}
    magic, _, page_size, _, salt_1, salt_2, *sums = _WAL_HEADER.unpack_from(wal)
    words = ">" if magic & 1 else "<"
    if magic & ~1 != _WAL_MAGIC or not page_size or _checksum(wal[:24], (0, 0), words) != tuple(sums):
        return 0, {}
    committed: dict[int, bytes] = {}
    open_pages: dict[int, bytes] = {}
    size, at, running = 0, _WAL_HEADER.size, (sums[0], sums[1])
    while at + _FRAME_HEADER.size + page_size <= len(wal):
        number, pages, frame_1, frame_2, *sums = _FRAME_HEADER.unpack_from(wal, at)
        page = wal[at + _FRAME_HEADER.size : at + _FRAME_HEADER.size + page_size]
        running = _checksum(wal[at : at + 8], running, words)
        running = _checksum(page, running, words)
        if (frame_1, frame_2) != (salt_1, salt_2) or running != tuple(sums) or not number:
            break
        open_pages[(number - 1) * page_size] = page
        if pages:
            size, committed = pages * page_size, committed | open_pages
        at += _FRAME_HEADER.size + page_size
    return size, committed


def _checksum(data: bytes, start: tuple[int, int], words: str) -> tuple[int, int]:
    a, b = start
    for x, y in struct.iter_unpack(f"{words}2I", data):
        a = (a + x + b) & 0xFFFFFFFF
        b = (b + y + a) & 0xFFFFFFFF
    return a, b


def entries_in(*pieces: bytes) -> dict[int, Entry]:
    """The jobs whose rows can be found anywhere in the bytes of a damaged table, by id; of several states of one the
    newest."""
    found: dict[int, Entry] = {}
    for data in pieces:
        for match in _ENTRY.finditer(data):
            text = _object_at(data, match.start())
            try:
                entry = read_row(text)
            except (ValueError, RecursionError):
                continue
            known = found.get(entry.record.id)
            if known is None or entry.record.revision >= known.record.revision:
                found[entry.record.id] = entry
    return dict(sorted(found.items()))


def _object_at(data: bytes, begin: int) -> bytes:
    """The JSON object that begins there; b"" when it does not end."""
    depth, at = 0, begin
    for match in re.compile(rb'"(?:[^"\\]|\\.)*"|[{}]', re.DOTALL).finditer(data, begin, begin + MAX_ENTRY_BYTES):
        at = match.end()
        depth += {b"{": 1, b"}": -1}.get(match[0], 0)
        if not depth:
            return data[begin:at]
    return b""
