"""The caches of latents and of text embeddings as files: where they lie, what they hold. No torch.

One safetensors file per entry: the tensor `x`, and in the metadata its key (also the file's name), the hash of its
bytes and what it is, in words. A file's time of change is when it was last used.
"""

import shutil
from pathlib import Path
from typing import Literal

import platformdirs
from msgspec import Struct

from presets.base.safetensors_header import MAX_HEADER, Damaged, json_object
from presets.caches.weight_cache import CAP, DISK_SHARE, cache_dir, sweep_unfinished

TensorKind = Literal["latents", "texts"]
CacheKind = Literal["weights", "latents", "texts"]
KINDS: tuple[CacheKind, ...] = ("weights", "latents", "texts")
CAPS: dict[CacheKind, int] = {"weights": CAP, "latents": 32 * 2**30, "texts": 4 * 2**30}  # bytes of each cache
CALLED: dict[CacheKind, str] = {"weights": "packed weights", "latents": "latents of images", "texts": "text embeddings"}
ENTRY = ".safetensors"


class TensorEntry(Struct, frozen=True, kw_only=True):
    path: Path
    size: int  # bytes
    used: float  # wall clock
    about: str | None  # what it is; None when the file is damaged


def caches_dir() -> Path:
    """The folder with all three. Makes nothing."""
    return Path(platformdirs.user_cache_dir("wanlora"))


def cache_folder(kind: CacheKind) -> Path:
    """The folder of one cache. Makes nothing."""
    return cache_dir() if kind == "weights" else caches_dir() / kind


def read_about(path: Path) -> str | None:
    """What an entry is; None when its header is damaged. Raises OSError."""
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 2 <= length <= MAX_HEADER:
            return None
        try:
            header = json_object(f.read(length))
        except Damaged:
            return None
    told = header.get("__metadata__")
    about = told.get("about") if isinstance(told, dict) and told.get("key") == path.stem else None
    return about if isinstance(about, str) else None


def list_tensors(folder: Path) -> list[TensorEntry]:
    """What a cache holds, last used first. Files that vanish meanwhile are left out."""
    out = []
    for path in folder.glob(f"*{ENTRY}"):
        try:
            status = path.stat()
            out.append(TensorEntry(path=path, size=status.st_size, used=status.st_mtime, about=read_about(path)))
        except FileNotFoundError:
            continue
    return sorted(out, key=lambda e: e.used, reverse=True)


def clear_tensors(folder: Path) -> int:
    """Delete every entry and what broken writers left; the bytes it freed. Raises OSError. Runs that go on encode anew
    what they miss."""
    freed = sweep_unfinished(folder)
    for path in folder.glob(f"*{ENTRY}"):
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            continue
        freed += size
    return freed


def tensor_budget(folder: Path, cap: int, own: int) -> int:
    """Bytes a cache that holds `own` may take in all: `cap`, or half of what would be free without it. `folder`
    exists."""
    return min(cap, int((shutil.disk_usage(folder).free + own) * DISK_SHARE))
