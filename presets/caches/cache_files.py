"""What the caches are as files: where they lie, their entries by age, making room, what writers left. No torch.

What one entry holds is in weight_cache and tensor_cache. A file's time of change is when it was last used.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Generic, Literal, TypeVar

import platformdirs
from msgspec import Struct

TensorKind = Literal["latents", "texts"]
CacheKind = Literal["weights", "latents", "texts"]
KINDS: tuple[CacheKind, ...] = ("weights", "latents", "texts")
# bytes of each cache
CAPS: dict[CacheKind, int] = {"weights": 64 * 2**30, "latents": 32 * 2**30, "texts": 4 * 2**30}
CALLED: dict[CacheKind, str] = {"weights": "packed weights", "latents": "latents of images", "texts": "text embeddings"}
SUFFIXES: dict[CacheKind, str] = {"weights": ".blocks", "latents": ".safetensors", "texts": ".safetensors"}
UNFINISHED = ".part"
DISK_SHARE = 0.5  # of the disk's space that is free but for the cache
T = TypeVar("T")


class CacheEntry(Struct, Generic[T], frozen=True):
    path: Path
    size: int  # bytes
    used: float  # wall clock
    about: T | None  # what it holds; None when the file is damaged


def caches_dir() -> Path:
    """The folder with all three. Makes nothing."""
    return Path(platformdirs.user_cache_dir("wanlora"))


def cache_folder(kind: CacheKind) -> Path:
    """The folder of one cache. Makes nothing."""
    return caches_dir() / kind


def list_entries(folder: Path, suffix: str, read: Callable[[Path], T | None]) -> list[CacheEntry[T]]:
    """What a cache holds, last used first. Files that vanish meanwhile are left out."""
    out = []
    for path in folder.glob(f"*{suffix}"):
        with suppress(FileNotFoundError):
            status = path.stat()
            out.append(CacheEntry(path, status.st_size, status.st_mtime, read(path)))
    return sorted(out, key=lambda e: e.used, reverse=True)


def clear_cache(folder: Path, suffix: str) -> int:
    """Delete every entry and what broken writers left; the bytes it freed. Raises OSError. Runs that train are not
    disturbed: they have what they use in memory, and make anew what they miss."""
    freed = sweep_unfinished(folder)
    entries: list[CacheEntry[None]] = list_entries(folder, suffix, lambda path: None)
    for entry in entries:
        entry.path.unlink(missing_ok=True)
        freed += entry.size
    return freed


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write an entry to, which takes its place at the end: a reader sees a whole file or none. It is locked
    meanwhile, which tells it from the leftovers of a writer that died. Raises OSError."""
    aside = path.with_name(f".{path.stem}.{os.getpid()}{UNFINISHED}")
    try:
        with aside.open("wb") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield f
            f.flush()
            aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def sweep_unfinished(folder: Path) -> int:
    """Delete unfinished files whose writer has ended. The bytes it freed."""
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
    """Note that an entry was used now."""
    now = time.time()
    os.utime(path, (now, now))


def budget(folder: Path, cap: int, own: int) -> int:
    """Bytes a cache that holds `own` may take in all: `cap`, or half of what would be free without it. `folder`
    exists."""
    return min(cap, int((shutil.disk_usage(folder).free + own) * DISK_SHARE))


def make_room(sizes: Mapping[Path, int], need: int) -> list[Path] | None:
    """Delete files, from the first on, until `need` bytes are freed; those deleted. None when all are not enough: then
    nothing is deleted."""
    if need > sum(sizes.values()):
        return None
    deleted = []
    for path, size in sizes.items():
        if need <= 0:
            break
        path.unlink(missing_ok=True)
        deleted.append(path)
        need -= size
    return deleted
