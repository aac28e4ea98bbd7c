"""The daemon's own log while it runs: all that the process says, its libraries included, in one file that is begun anew
when it has grown. The trainers' logs are daemon.jobs.runner's."""

import os
import stat
import sys
from pathlib import Path
from typing import NamedTuple

from presets.disk import require_room
from presets.text import escaped

KEEP_BYTES = 4 * 2**20  # with the one before, twice that


class Said(NamedTuple):
    """Where what this process says is to be read."""

    file: str  # "" when it is in none
    why: str = ""  # there is none


class LogFile:
    """`path` as the place of what this process writes to stdout and stderr, as far as it is."""

    def __init__(self, path: Path, *, take_over: bool = False) -> None:
        """`take_over`: whatever they were before. Where the file cannot be opened they stay what they are until it
        can: a daemon without a log still serves."""
        self._path = path
        self._trouble = ""  # why it could not be opened
        self._ours = [number for number in (1, 2) if take_over or _same(number, path)]
        self.keep_small()

    def keep_small(self, most: int = KEEP_BYTES) -> None:
        """Begin anew when it has grown past `most` bytes, or somebody has moved it away. A full disk changes nothing:
        to be called again and again."""
        try:
            if not self._ours:
                return
            if all(_same(number, self._path) for number in self._ours):
                if os.fstat(self._ours[0]).st_size <= most:
                    return
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._reopen(*self._ours)
            self._trouble = ""
        except OSError as e:
            self._trouble = e.strerror or str(e)

    @property
    def said(self) -> Said:
        """By what stderr is now, which may be another file."""
        if _same(2, self._path):
            return Said(escaped(str(self._path)))
        try:
            place, facts = escaped(str(Path("/proc/self/fd/2").readlink())), os.fstat(2)
        except OSError:
            return Said("", "its stderr is closed")
        if stat.S_ISREG(facts.st_mode) and facts.st_nlink:
            return Said(place)
        if self._trouble:
            return Said("", f"{escaped(str(self._path))} cannot be opened ({self._trouble})")
        if os.isatty(2):
            return Said("", f"what it says goes to the terminal {place}")
        if stat.S_ISCHR(facts.st_mode):
            return Said("", f"what it says goes to {place}")
        return Said("", "what it says goes to the program that started it")

    def _reopen(self, *numbers: int) -> None:
        require_room(self._path.parent)  # a file is opened on a full disk too, and then takes nothing
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            for number in numbers:
                os.dup2(descriptor, number)
        finally:
            os.close(descriptor)


def _same(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except OSError:
        return False
