"""Reading files that anybody may have put there: regular ones only, no more of them than is sensible, and never waiting
for a writer."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError; of a named pipe, a socket or a device too, on which a reader could wait
    for ever."""
    _require_regular(path.stat(), path)  # before it is opened: that alone does something to a pipe or a device
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _require_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def _require_regular(facts: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(
            errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(facts.st_mode), 'something else')} and not a file", str(path)
        )


def read_regular(path: Path, limit: int) -> bytes:
    """The whole of a file. Raises OSError, also when it has more than `limit` bytes."""
    with open_regular(path) as f:
        size = os.fstat(f.fileno()).st_size
        # None: there is nothing yet, as in some files of /proc
        data = b"" if size > limit else f.read(limit + 1) or b""
        if max(size, len(data)) > limit:
            raise OSError(
                errno.EFBIG, f"it has {max(size, len(data)):,} bytes, and such a file at most {limit:,}", str(path)
            )
        return data
