"""The events in the folder of a run on this machine, while there is no daemon to tell them."""

import os
from pathlib import Path

from presets.files import open_regular
from presets.runs.event_data import QuickLine, readable
from presets.runs.events import EVENTS_FILE, Event

PIECE = 2**19  # bytes read at once: so many events are folded between two keys


class FolderEvents:
    """Reads on where it ended the last time; a file that has become shorter is read anew."""

    def __init__(self) -> None:
        self._path, self._offset = Path(), 0

    def more(self, run_dir: Path) -> list[Event | QuickLine] | None:
        """The next ones; None at the end of the file. Raises OSError."""
        path = run_dir / EVENTS_FILE
        with open_regular(path) as f:
            if path != self._path or os.fstat(f.fileno()).st_size < self._offset:
                self._path, self._offset = path, 0
            f.seek(self._offset)
            lines = [line for line in f.readlines(PIECE) if line.endswith(b"\n")]
        self._offset += sum(map(len, lines))
        return list(readable(lines)) if lines else None
