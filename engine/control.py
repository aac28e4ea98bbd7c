"""What reaches a running trainer from outside: control files and signals. Both only set a wish; the loop honours it."""

import json
import signal
import sys
from pathlib import Path
from types import FrameType

CONTROL_DIR = "control"


class Control:
    """Polled at each micro-step edge. Who launches an attempt empties the folder first. SIGTERM and SIGINT wish a stop with a save; a second one ends at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / CONTROL_DIR
        self.folder.mkdir(exist_ok=True)
        self._signals = 0
        self.why = ""  # a stop is wished for, and why
        self.refused: list[str] = []  # commands nobody knows, for the event log

    def listen(self) -> None:
        """Install the signal handlers. Main thread only."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            sys.exit(128 + number)
        self.why = f"{signal.Signals(number).name} received"

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
                self.refused.append(str(command))
        return bool(self.why)
