"""Writes a run's events: one JSON line each, in order, without gaps across attempts."""

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from engine import faults
from presets.events import EVENTS_FILE, TERMINAL_KINDS, Event, EventKind, decode_event


class EventLog:
    """Appends to `events.jsonl`. Opening an existing file continues its run: same id, next seq, next attempt.

    A torn last line (the writer was killed inside a write) is cut off first. A damaged line further up (a bad disk) is
    left alone and counted in `damaged`: its seq is taken. `listener` sees each event too: the console of `python -m engine`.
    """

    def __init__(self, folder: Path, *, listener: Callable[[Event], None], clock: Callable[[], float] = time.time) -> None:
        self.path = folder / EVENTS_FILE
        self._listener, self._clock = listener, clock
        self.run, self.attempt, self._seq = uuid.uuid4().hex[:12], 1, 0
        self.damaged = 0
        if self.path.exists():
            self._continue()
        self._file = self.path.open("ab", buffering=0)

    def _continue(self) -> None:
        whole = self.path.read_bytes()
        end = whole.rfind(b"\n") + 1
        for line in whole[:end].splitlines():
            try:
                last = decode_event(line)
            except msgspec.MsgspecError:
                self.damaged += 1
                self._seq += 1
            else:
                self.run, self.attempt, self._seq = last.run, last.attempt + 1, last.seq
        os.truncate(self.path, end)

    def emit(self, kind: EventKind, **data: Any) -> None:
        """Append one event. Terminal events are on the disk when this returns."""
        self._seq += 1
        event = Event(seq=self._seq, time=self._clock(), run=self.run, attempt=self.attempt, kind=kind, data=data)
        line = msgspec.json.encode(event) + b"\n"
        faults.at("event.before-write", step := data.get("step", -1))
        if faults.due("event.mid-write", step):
            self._file.write(line[: len(line) // 2])
            faults.at("event.mid-write", step)
        self._file.write(line)
        if kind in TERMINAL_KINDS:
            os.fsync(self._file.fileno())
        self._listener(event)

    def phase(self, name: str, done: int, total: int, text: str = "") -> None:
        self.emit("phase", name=name, done=done, total=total, text=text)

    def close(self) -> None:
        self._file.close()
