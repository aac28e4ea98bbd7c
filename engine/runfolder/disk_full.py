"""A full disk pauses the run: it waits for room, says what for, and continues by itself. What is written, and which
errors mean a full disk, is in engine.runfolder.checkpoint and event_log."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from engine.runfolder.checkpoint import DiskFull, refusal_of
from engine.runfolder.control import Control
from engine.runfolder.event_log import EventLog
from presets.text import human

RETRY_SECONDS = 15.0
T = TypeVar("T")


def retry_when_disk_has_room(
    log: EventLog, control: Control, folder: Path, what: str, need: int, write: Callable[[], T]
) -> T:
    """The result of `write`, tried again while the disk is full. `what` takes about `need` bytes. Raises StopRequested
    when a stop comes meanwhile."""
    paused = False
    while True:
        try:
            result = write()
        except Exception as e:
            if not isinstance(refusal_of(e, folder), DiskFull):
                raise
            if not paused:
                _pause(log, folder, what, need)
            paused = True
        else:
            if paused:
                log.phase("saving", 0, 1, f"there is room again: {what}")
            return result
        control.sleep(RETRY_SECONDS)


def until_events_are_written(log: EventLog, control: Control) -> None:
    """Returns at once unless the disk has refused events. Raises StopRequested when a stop comes while it waits."""
    if log.flush():
        return
    _pause(log, log.path.parent, f"{log.path.name} ({log.waiting} events wait in memory)", log.waiting_bytes)
    while not log.flush():
        control.sleep(RETRY_SECONDS)
    log.phase("training", 0, 1, "there is room again")


def _pause(log: EventLog, folder: Path, what: str, need: int) -> None:
    text = (
        f"the disk is full: {what} needs {human(need)}, {human(shutil.disk_usage(folder).free)} are free at {folder}."
        f" Free some space and it continues by itself; it tries again every {RETRY_SECONDS:.0f} s"
    )
    log.phase("paused", 0, 1, text)
