"""Files where anybody may have put something: what is read is regular, no larger than sensible and never waited for;
what is written is where its name says, and nobody else may write to it. Weights, which are large, are told apart by
samples."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import BinaryIO

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
SAMPLED_PAGES = 64
# Bytes of files of weights whose header's length is not in their first 8 bytes: of all others that is taken to be
# there, whatever it comes to, and so a tokenizer is read whole.
HEADED, HEAD = (".gguf", ".pth"), 2**20


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


def open_own(path: Path, *, append: bool = False) -> FileIO:
    """Open a file for writing, unbuffered, that must not be a link: its target would be emptied or written to. Raises
    OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_APPEND if append else os.O_TRUNC)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as e:
        raise _link(path) if e.errno == errno.ELOOP else e from None
    return os.fdopen(descriptor, "ab" if append else "wb", buffering=0)


def require_own(path: Path) -> None:
    """Raises OSError when there is a link in place of a file or folder that is written to."""
    if path.is_symlink():
        raise _link(path)


def _link(path: Path) -> OSError:
    return OSError(errno.ELOOP, "it is a link, and what is written there must not go elsewhere: remove it", str(path))


def share_no_writing() -> None:
    """Whatever this process and those that it starts make from now on, no other user may write to. A stricter umask
    stays; one that lets others in, as of a container's or a batch system's shell, does not."""
    os.umask(os.umask(0o077) | 0o022)


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


def same_weights(a: Path, b: Path) -> bool:
    """Whether two files are one under two names, or copies, by their samples. Raises OSError."""
    if a.samefile(b):
        return True
    size = a.stat().st_size
    if b.stat().st_size != size:
        return False
    with a.open("rb") as one, b.open("rb") as other:
        for i in range(SAMPLED_PAGES):  # of other weights the first or second page tells
            one.seek(size * i // SAMPLED_PAGES)
            other.seek(size * i // SAMPLED_PAGES)
            if one.read(4096) != other.read(4096):
                return False
    return True


def identity(files: Iterable[Path], *, times: bool = True) -> str:
    """Without `times`, by content alone: a copy is the same. With them, a file rewritten in place is another, sampled
    or not."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        status = file.stat()
        size = status.st_size
        digest.update(f"{size}\0{status.st_mtime_ns if times else 0}\0".encode())
        with file.open("rb") as f:
            header = HEAD if file.suffix in HEADED else int.from_bytes(f.read(8), "little")
            digest.update(f.read(min(header, size)))
            for i in range(SAMPLED_PAGES):
                f.seek(size * i // SAMPLED_PAGES)
                digest.update(f.read(4096))
    return digest.hexdigest()
