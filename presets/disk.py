"""Places on disks that may not exist yet."""

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


def same_disk(a: Path, b: Path) -> bool:
    return existing_parent(a).stat().st_dev == existing_parent(b).stat().st_dev
