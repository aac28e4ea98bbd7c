"""Writes a run's events: one JSON line each, in order, without gaps across attempts."""

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from presets.events import EVENTS_FILE, TERMINAL_KINDS, Event, EventKind, read_events


class EventLog:
    """Appends to `events.jsonl`. Opening an existing file continues its run: same id, next seq, next attempt.

    A torn last line (the writer was killed inside a write) is cut off first. `listener` sees each event too: the
    console of `python -m engine`.
    """

    def __init__(self, folder: Path, *, listener: Callable[[Event], None], clock: Callable[[], float] = time.time) -> None:
        self.path = folder / EVENTS_FILE
        self._listener, self._clock = listener, clock
        self.run, self.attempt, self._seq = uuid.uuid4().hex[:12], 1, 0
        if self.path.exists():
            end, last = 0, None
            for event, offset in read_events(self.path):
                end, last = offset, event
            os.truncate(self.path, end)
            if last:
                self.run, self.attempt, self._seq = last.run, last.attempt + 1, last.seq
        self._file = self.path.open("ab", buffering=0)

    def emit(self, kind: EventKind, **data: Any) -> None:
        """Append one event. Terminal events are on the disk when this returns."""
        self._seq += 1
        event = Event(seq=self._seq, time=self._clock(), run=self.run, attempt=self.attempt, kind=kind, data=data)
        self._file.write(msgspec.json.encode(event) + b"\n")
        if kind in TERMINAL_KINDS:
            os.fsync(self._file.fileno())
        self._listener(event)

    def phase(self, name: str, done: int, total: int, text: str = "") -> None:
        self.emit("phase", name=name, done=done, total=total, text=text)

    def close(self) -> None:
        self._file.close()
