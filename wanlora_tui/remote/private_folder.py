"""A short private folder for sockets, locked while its owner lives; those of owners that were killed are swept away."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon.wire.paths import spare_parent

PREFIX = "wanlora-ssh-"
LOCK = "lock"


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder (0700), deleted at the end. Short, for a socket path holds 107 bytes, and ssh needs 17 of them while
    it makes one."""
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=spare_parent()))
    held = os.open(folder / "new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        (folder / "new").rename(folder / LOCK)  # nobody sees it before it is locked
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def sweep() -> None:
    """Delete the folders whose owners have ended without doing so."""
    for folder in spare_parent().glob(f"{PREFIX}*"):
        try:
            facts = folder.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its owner lives
            pass
        finally:
            os.close(lock)
