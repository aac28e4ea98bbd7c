"""The daemon's own log while it runs: all that the process says, its libraries included, in one file that is begun anew
when it has grown. The trainers' logs are daemon.jobs.runner's."""

import os
import sys
from contextlib import suppress
from pathlib import Path

KEEP_BYTES = 4 * 2**20  # with the one before, twice that


class LogFile:
    """`path` as the place of what this process writes to stdout and stderr, as far as it is."""

    def __init__(self, path: Path, *, take_over: bool = False) -> None:
        """`take_over`: whatever they were before. Raises OSError."""
        self._path = path
        if take_over:
            self._reopen(sys.stdout.fileno(), sys.stderr.fileno())
        self._ours = [number for number in (1, 2) if _same(number, path)]

    def keep_small(self, most: int = KEEP_BYTES) -> None:
        """Begin anew when it has grown past `most` bytes, or somebody has moved it away. A full disk changes nothing:
        to be called again and again."""
        with suppress(OSError):
            if not self._ours:
                return
            if _same(self._ours[0], self._path):
                if os.fstat(self._ours[0]).st_size <= most:
                    return
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._reopen(*self._ours)

    def _reopen(self, *numbers: int) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            for number in numbers:
                os.dup2(descriptor, number)
        finally:
            os.close(descriptor)


def _same(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except OSError:
        return False
