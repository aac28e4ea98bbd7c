"""What the ranks behind the first have in place of an event log and control files: both are the first rank's alone."""

from typing import Any

from engine.runfolder.control import Control
from engine.runfolder.event_log import EventLog
from presets.runs.events import EventKind
from presets.runs.history import History


class QuietLog(EventLog):
    """Writes nothing. Warnings wait in `warnings` until the first rank is told; all else it says itself."""

    def __init__(self) -> None:
        self.history, self.watch, self.warnings = History(), None, list[str]()
        self.run, self.attempt = "", 0

    def emit(self, kind: EventKind, **data: Any) -> None:
        if kind == "log" and data["level"] == "warning":
            self.warnings.append(data["text"])

    def flush(self) -> bool:
        return True

    def sync(self) -> None:
        pass


def take_warnings(log: EventLog) -> list[str]:
    """What a quiet log has kept since; nothing of a log that writes."""
    if not isinstance(log, QuietLog):
        return []
    taken, log.warnings = log.warnings, []
    return taken


def warn(log: EventLog, rank: int, warnings: list[str]) -> None:
    """What another rank warns of."""
    for text in warnings:
        log.emit("log", level="warning", text=f"rank {rank}: {text}")


class QuietControl(Control):
    """Hears signals and reads no files. A stop does not end what this rank is at: `why` is told to the first rank,
    which ends all of them in order."""

    def stop_requested(self) -> bool:
        self.polled()
        return False
