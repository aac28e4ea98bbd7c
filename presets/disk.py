"""Places on disks that may not exist yet."""

import tempfile
from pathlib import Path


def existing_parent(path: Path) -> Path:
    """`path` itself if it exists, else the nearest folder above it that does."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if exists(p))


def exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # inside a folder that we may not look into
        return False


def not_writable(path: Path) -> str:
    """Why nothing can be written at a place, "" when it can. It is tried: permission bits lie on read-only disks and
    for root."""
    try:
        with tempfile.TemporaryFile(dir=existing_parent(path)):
            return ""
    except OSError as e:
        return (e.strerror or str(e)).lower()


def same_disk(a: Path, b: Path) -> bool:
    return existing_parent(a).stat().st_dev == existing_parent(b).stat().st_dev


def require_room(folder: Path, size: int = 4096) -> None:
    """Raises OSError where the disk of a folder takes nothing just now: it is tried."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as f:
        left = size
        while left:
            left -= f.write(bytes(left))
