"""Files that are never half there: written beside, in the same folder, and renamed into place.

What must outlive a power loss, with its folder, is written by engine.system.durable_files. Writers that hold a lock on
what they write (the caches, the wizard's drafts) rename for themselves.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def fsync(path: Path) -> None:
    """What was written to a file, or which names a folder holds, is on the disk when this returns. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Inside, write to the path given; at the end that takes the place of `path`. With `sync` its content is on the
    disk before. An error leaves what was there before."""
    aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        yield aside
        if sync:
            fsync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_file(path: Path, content: bytes, *, sync: bool = False, private: bool = False) -> None:
    """Write a small file, and make the folders that it lies in. A file that was there keeps its permissions; a new one
    that is `private` only its owner may read. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync=sync) as aside:
        aside.touch(0o600 if private else 0o666, exist_ok=False)
        aside.write_bytes(content)
        if path.exists():
            aside.chmod(path.stat().st_mode & 0o777)
