"""The cache of packed weights as files: where it lies, what it holds, and making room in it. No torch.

One file holds the packed blocks of one expert in one precision: MAGIC, 8 bytes header length (little endian), the
header as JSON, then the blocks, each at a multiple of PAGE bytes. A file's time of change is when it was last used.
"""

import fcntl
import os
import shutil
import time
from pathlib import Path

import msgspec
import platformdirs
from msgspec import Struct

MAGIC = b"WANLORA1"
PAGE = 4096
SUFFIX = ".blocks"
UNFINISHED = ".part"
CAP = 64 * 2**30  # bytes of the whole cache
DISK_SHARE = 0.5  # of the disk's space that is free but for the cache
MAX_HEADER = 16 * 2**20


class CachedTensor(Struct, frozen=True):
    """Where one tensor lies within a block; see engine.weights.packed_blocks.TensorPlace."""

    key: str
    part: int
    dtype: str  # as torch calls it: "float8_e4m3fn"
    shape: tuple[int, ...]
    offset: int


class CacheHeader(Struct, frozen=True, kw_only=True):
    key: str  # hash of everything the blocks depend on; the file's name
    model: str  # folder of the base model
    expert: str
    precision: str
    block_bytes: int
    layout: tuple[CachedTensor, ...]
    hashes: tuple[str, ...]  # blake2b-128 of each block, in hex
    versions: dict[str, str]

    @property
    def stride(self) -> int:
        """Bytes from one block to the next."""
        return -(-self.block_bytes // PAGE) * PAGE

    def begin(self, block: int) -> int:
        """The block's first byte in the file."""
        return -(-(16 + len(msgspec.json.encode(self))) // PAGE) * PAGE + block * self.stride

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.begin(len(self.hashes))

    @property
    def start(self) -> bytes:
        """What stands before the first block, padding included."""
        text = msgspec.json.encode(self)
        return (MAGIC + len(text).to_bytes(8, "little") + text).ljust(self.begin(0), b"\0")


class CacheEntry(Struct, frozen=True, kw_only=True):
    path: Path
    size: int  # bytes
    used: float  # wall clock
    header: CacheHeader | None  # None when the file is damaged


def cache_dir() -> Path:
    """The user's cache of packed weights. Makes nothing."""
    return Path(platformdirs.user_cache_dir("wanlora")) / "weights"


def read_cache_header(path: Path) -> CacheHeader | None:
    """None when the file is no whole cache file. Raises OSError."""
    with path.open("rb") as f:
        start = f.read(16)
        length = int.from_bytes(start[8:], "little")
        if start[:8] != MAGIC or length > MAX_HEADER:
            return None
        try:
            header = msgspec.json.decode(f.read(length), type=CacheHeader)
        except msgspec.DecodeError:
            return None
    return header if path.stat().st_size == header.size else None


def list_cache(folder: Path) -> list[CacheEntry]:
    """What the cache holds, last used first. Files that vanish meanwhile are left out."""
    out = []
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            status = path.stat()
            out.append(CacheEntry(path=path, size=status.st_size, used=status.st_mtime, header=read_cache_header(path)))
        except FileNotFoundError:
            continue
    return sorted(out, key=lambda e: e.used, reverse=True)


def clear_cache(folder: Path) -> int:
    """Delete every file of the cache and what broken writers left; the bytes it freed. Raises OSError.

    Runs that go on are not disturbed: they have their weights in memory.
    """
    freed = sweep_unfinished(folder)
    for entry in list_cache(folder):
        entry.path.unlink(missing_ok=True)
        freed += entry.size
    return freed


def sweep_unfinished(folder: Path) -> int:
    """Delete unfinished files whose writer is gone: a live one holds a lock on its file. The bytes it freed."""
    freed = 0
    for path in folder.glob(f"*{UNFINISHED}"):
        try:
            with path.open("rb") as f:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                freed += path.stat().st_size
                path.unlink()
        except (FileNotFoundError, BlockingIOError):
            continue
    return freed


def touch(path: Path) -> None:
    """Note that a cache file was used now."""
    now = time.time()
    os.utime(path, (now, now))


def budget(folder: Path, cap: int) -> int:
    """Bytes the cache may take in all: `cap`, or half of what would be free without it."""
    own = sum(entry.size for entry in list_cache(folder))
    return min(cap, int((shutil.disk_usage(folder).free + own) * DISK_SHARE))


def make_room(folder: Path, header: CacheHeader, cap: int = CAP) -> bool:
    """Delete what was used longest ago until the new file fits. False when it cannot: then nothing is deleted.

    The other expert of the same model and precision stays, or the two would push each other out at every start.
    """
    sweep_unfinished(folder)
    entries = list_cache(folder)
    need = sum(e.size for e in entries) + header.size - budget(folder, cap)

    def sibling(e: CacheEntry) -> bool:
        return (
            e.header is not None
            and (e.header.model, e.header.precision) == (header.model, header.precision)
            and e.header.expert != header.expert
        )

    old = [e for e in reversed(entries) if not sibling(e)]
    if need > sum(e.size for e in old):
        return False
    for entry in old:
        if need <= 0:
            break
        entry.path.unlink(missing_ok=True)
        need -= entry.size
    return True
