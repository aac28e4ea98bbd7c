"""Files that outlive a power loss: written beside, synced, renamed (presets.atomic_file), and then their folder synced.
Only after that may an event name them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from presets.atomic_file import fsync, replacing


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Inside, write to the path given; at the end that takes the place of `path`, whole and for good. An error leaves
    what was there before."""
    with replacing(path, sync=True) as aside:
        yield aside
    fsync(path.parent)


def make_folder(folder: Path) -> None:
    """The folder and those it lies in, as far as they are missing; their names outlive a power loss. Raises OSError."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        fsync(place.parent)


def sync_folders(folder: Path) -> None:
    """Whatever was renamed or removed in a folder, or in one below it, stays so after a power loss. Raises OSError."""
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        fsync(place)


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
