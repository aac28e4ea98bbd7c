"""The events in the folder of a run, while there is no daemon to tell them.

How a file of another machine is read is wanlora_tui.transfer.over_ssh's.
"""

import os
from pathlib import Path
from typing import Protocol

from presets.files import open_regular
from presets.runs.event_data import QuickLine, readable
from presets.runs.events import EVENTS_FILE, Event

PIECE = 2**19  # bytes read at once: so many events are folded between two keys


class Pieces(Protocol):
    """How a file is read that grows."""

    def read(self, path: Path, offset: int, most: int) -> tuple[bytes, int]:
        """At most so many bytes from there on, and the size of the file. Raises OSError; ConnectionError while the
        machine that has it is away."""
        ...

    def close(self) -> None:
        """Let go of what reading has opened; it may go on later."""


class HerePieces:
    """Of files of this machine."""

    def read(self, path: Path, offset: int, most: int) -> tuple[bytes, int]:
        with open_regular(path) as f:
            f.seek(offset)
            return f.read(most), os.fstat(f.fileno()).st_size

    def close(self) -> None:
        """Each reading has."""


class FolderEvents:
    """Reads on where it ended the last time; a file that has become shorter is read anew."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.close = pieces.close
        self._path, self._offset, self._most = Path(), 0, PIECE

    def more(self, run_dir: Path) -> list[Event | QuickLine] | None:
        """The next ones; None at the end of the file. Raises OSError."""
        path = run_dir / EVENTS_FILE
        if path != self._path:
            self._path, self._offset = path, 0
        data, size = self._pieces.read(path, self._offset, self._most)
        if size < self._offset:
            self._offset = 0
            data, size = self._pieces.read(path, 0, self._most)
        *lines, rest = data.split(b"\n")
        self._offset += len(data) - len(rest)
        # a line that is longer than a piece needs more at once
        self._most = 2 * self._most if not lines and len(data) == self._most else PIECE
        return list(readable(line + b"\n" for line in lines)) if lines or self._most > PIECE else None
