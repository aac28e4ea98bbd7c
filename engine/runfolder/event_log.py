"""Writes a run's events: one JSON line each, in order, without gaps across attempts. They are read by
presets.runs.events, which says what each holds."""

import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from engine.runfolder.checkpoint import FULL
from engine.system import fault_injection
from presets.atomic_file import fsync
from presets.files import open_own, require_own
from presets.findings import Finding
from presets.runs.events import COMMAND_ID, EVENTS_FILE, TERMINAL_KINDS, DamagedLine, Event, EventKind, read_events
from presets.runs.history import History
from presets.runs.run_folder import RESERVE_FILE
from presets.runs.spent import TRAINING

# and what applies a command: it must outlive a power loss, for the control file is deleted by then
SYNCED = TERMINAL_KINDS | {"changed"}
RESERVE_BYTES = 64 * 2**10


class EventLog:
    """Appends to `events.jsonl`. Opening an existing file continues its run: same id, next seq, next attempt.

    A torn last line (the writer was killed inside a write) is cut off first. A damaged line further up (a bad disk) is
    left alone and counted in `damaged`: its seq is taken. `listener` sees each event too: the console of `python -m
    engine`. `history` has been fed with all of them.

    A full disk raises nothing: the events wait in memory (`waiting` of them), `flush` tries again, and the file never
    holds half a line. A small file kept in reserve gives way then, so that the run can still say why it pauses.
    """

    def __init__(
        self, folder: Path, *, listener: Callable[[Event], None], clock: Callable[[], float] = time.time
    ) -> None:
        self.path = folder / EVENTS_FILE
        self._reserve = folder / RESERVE_FILE
        self._listener, self._clock = listener, clock
        self.run, self.attempt, self._seq = uuid.uuid4().hex[:12], 1, 0
        self.damaged = 0
        self._size = 0  # bytes of the file, whole lines
        self.history = History()
        self.watch: Callable[[Event], None] | None = None  # sees each event last, and may emit what it makes of it
        self._waiting: deque[tuple[Event, bytes]] = deque()
        self.lock = threading.RLock()  # held while an event is written; another thread may have the last word
        self.doing = ""  # the phase of the last word
        self.ended = False  # the event that ends the attempt is emitted
        require_own(self.path)
        if self.path.exists():
            self._continue()
        self._file = open_own(self.path, append=True)
        fsync(folder)  # its name must outlive a power loss, else what is synced in it is lost all the same
        self._keep_reserve()

    def _continue(self) -> None:
        for event, end in read_events(self.path, report=self._pass_over):
            self.run, self.attempt, self._seq, self._size = event.run, event.attempt + 1, event.seq, end
            self.history.add(event)
        os.truncate(self.path, self._size)

    def _pass_over(self, line: DamagedLine) -> None:
        self.damaged, self._seq, self._size = self.damaged + 1, self._seq + 1, line.end

    @property
    def waiting(self) -> int:
        """Events that a full disk has not taken yet."""
        return len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        return sum(len(line) for _, line in self._waiting)

    def emit(self, kind: EventKind, **data: Any) -> None:
        """Append one event. Those of the kinds in SYNCED, and those that apply a command, are on the disk when this
        returns, if it has room for them."""
        with self.lock:
            self._seq += 1
            event = Event(seq=self._seq, time=self._clock(), run=self.run, attempt=self.attempt, kind=kind, data=data)
            self._waiting.append((event, msgspec.json.encode(event) + b"\n"))
            self.ended = self.ended or kind in TERMINAL_KINDS
            self.doing = {"phase": data.get("name"), "step": TRAINING}.get(kind) or self.doing
            self.history.add(event)
            self.flush()
            self._listener(event)
            if self.watch:
                self.watch(event)

    def phase(self, name: str, done: int, total: int, text: str = "") -> None:
        self.emit("phase", name=name, done=done, total=total, text=text)

    def finding(self, finding: Finding, **more: Any) -> None:
        self.emit(
            "finding",
            code=finding.code,
            severity=finding.severity,
            field=finding.field,
            message=finding.message,
            fix=finding.fix,
            **more,
        )

    def flush(self) -> bool:
        """Write what waits; False when the disk is full. Raises OSError for any other trouble."""
        while self._waiting:
            event, line = self._waiting[0]
            try:
                self._write(event, line)
            except OSError as e:
                self._file.truncate(self._size)  # whole lines only
                if e.errno not in FULL:
                    raise
                if not self._reserve.exists():
                    return False
                self._reserve.unlink()
                continue
            self._size += len(line)
            self._waiting.popleft()
        return True

    def sync(self) -> None:
        """What was emitted so far outlives a power loss."""
        os.fsync(self._file.fileno())

    def _write(self, event: Event, line: bytes) -> None:
        fault_injection.at("event.before-write", step := event.data.get("step", -1))
        if fault_injection.due("event.mid-write", step):
            self._file.write(line[: len(line) // 2])
            fault_injection.at("event.mid-write", step)
        written = 0
        while written < len(line):  # a disk that fills up takes a part and says so only at the next write
            written += self._file.write(line[written:])
        if event.kind in SYNCED or COMMAND_ID in event.data:
            os.fsync(self._file.fileno())

    def _keep_reserve(self) -> None:
        with suppress(OSError):  # without it, a full disk is said in the log of the process alone
            if not self._reserve.exists() or self._reserve.stat().st_size < RESERVE_BYTES:
                with open_own(self._reserve) as f:
                    f.write(os.urandom(RESERVE_BYTES))  # no file system can store that as a hole

    def close(self) -> None:
        self._file.close()
        self._reserve.unlink(missing_ok=True)
