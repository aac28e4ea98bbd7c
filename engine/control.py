"""What reaches a running trainer from outside: control files and signals. Both only set a wish; the loop honours it."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

CONTROL_DIR = "control"


class StopWished(Exception):
    """A stop is wished for, in the middle of something that leaves nothing behind."""


class Control:
    """Polled at each micro-step edge. Who launches an attempt empties the folder first. SIGTERM and SIGINT wish a stop with a save; a second one ends at once."""

    def __init__(self, folder: Path, *, refuse: Callable[[str], None]) -> None:
        self._refuse = refuse  # told of commands that nobody knows
        self.folder = folder / CONTROL_DIR
        self._signals = 0
        self.why = ""  # a stop is wished for, and why

    def open(self) -> None:
        """Make the folder: the job is accepted, and commands may come."""
        self.folder.mkdir(exist_ok=True)

    def listen(self) -> None:
        """Install the signal handlers. Main thread only."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            sys.exit(128 + number)
        self.why = f"{signal.Signals(number).name} received"

    def honour(self) -> None:
        """Raise StopWished when a stop is wished for."""
        if self.stop_wished():
            raise StopWished(self.why)

    def stop_wished(self) -> bool:
        """Read and delete the control files; true once a stop is wished for."""
        for file in sorted(self.folder.glob("*.json")):
            try:
                command = json.loads(file.read_text())["command"]
            except (ValueError, KeyError, TypeError):
                command = f"unreadable {file.name}"
            file.unlink(missing_ok=True)
            if command == "stop":
                self.why = "stop asked for"
            else:
                self._refuse(str(command))
        return bool(self.why)
