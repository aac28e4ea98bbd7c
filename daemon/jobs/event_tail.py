"""Follows one run's events.jsonl: new events as they are written, their fold, and pages of old ones.

The tails of all jobs are daemon.jobs.event_tails's; what a line means, presets.runs.events's.
"""

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import msgspec

from daemon.wire.protocol import MAX_EVENT_BYTES, REPLAY_PAGE, REPLAY_PAGE_BYTES, encode
from presets.runs.events import EVENTS_FILE, TERMINAL_KINDS, DamagedLine, Event, decode_event, read_events
from presets.runs.run_view import RunView, apply_event

INDEX_EVERY = 256  # events between two remembered offsets

_view_decoder = msgspec.msgpack.Decoder(RunView)


class Tail:
    """A reader that is always at the end of what was written completely.

    A last line without its newline waits for the rest. A complete line that cannot be read is passed over, and an
    event of kind `finding` stands in its place, under the sequence number that the line must have had: so every
    reader of the file sees the same events.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / EVENTS_FILE
        self._restart()

    def _restart(self) -> None:
        self.view = RunView()
        self.last_word: Event | None = None  # the newest done, stopped or failed
        self.started: Event | None = None  # the newest `started`
        self._offset = 0
        self._index: list[tuple[int, int]] = [(0, 0)]  # (seq, offset just behind it)

    @property
    def last_seq(self) -> int:
        return self.view.last_seq

    def poll(self, limit: int = 2000) -> list[Event]:
        """At most `limit` events that are new since the last call; [] when there is no file yet. Raises OSError.

        A file that has become shorter is another one (somebody emptied the run folder): it is read from its start.
        """
        try:
            if self.path.stat().st_size < self._offset:
                self._restart()
        except FileNotFoundError:
            return []
        events: list[Event] = []
        for event, offset in _read(self.path, self._offset, self.last_seq):
            self._offset = offset
            apply_event(self.view, event)
            if event.kind in TERMINAL_KINDS:
                self.last_word = event
            elif event.kind == "started":
                self.started = event
            if event.seq >= self._index[-1][0] + INDEX_EVERY:
                self._index.append((event.seq, offset))
            events.append(event)
            if len(events) >= limit:
                break
        return events

    def page(self, since: int) -> tuple[list[Event], bool]:
        """Events after `since` that `poll` has seen, as many as a reply carries, and whether there are more. Raises
        OSError."""
        since = max(0, since)
        seq, offset = self._index[bisect_right(self._index, since, key=lambda pair: pair[0]) - 1]
        events: list[Event] = []
        start = offset
        if since >= self.last_seq:
            return events, False
        for event, behind in _read(self.path, offset, seq):
            if event.seq > self.last_seq:
                break
            if event.seq > since:
                if len(events) == REPLAY_PAGE or (events and behind - start > REPLAY_PAGE_BYTES):
                    return events, True
                events.append(event)
            else:
                start = behind
        return events, False


def _read(path: Path, offset: int, last_seq: int) -> Iterator[tuple[Event, int]]:
    """Events from `offset` on, each with the offset just behind it; `last_seq` is the one before."""
    damage: list[DamagedLine] = []
    for event, end in read_events(path, offset=offset, report=damage.append, decode=_decode):
        if event.seq <= last_seq:
            continue
        if damage and event.seq > last_seq + 1:
            yield _finding(damage, last_seq + 1, event), damage[-1].end
        damage.clear()
        last_seq = event.seq
        yield event, end


def _decode(line: bytes) -> Event:
    """An event that hurts no reader: it is applied to a view of its own, and sent through the wire's types."""
    if len(line) > MAX_EVENT_BYTES:
        raise msgspec.DecodeError(f"{len(line)} bytes in one line")
    event = decode_event(line)
    view = RunView(last_seq=event.seq - 1)
    apply_event(view, event)
    _view_decoder.decode(encode(view))
    encode(event)
    return event


def _finding(damage: list[DamagedLine], seq: int, before: Event) -> Event:
    lines = f"{len(damage)} lines" if len(damage) > 1 else "a line"
    where = "; ".join(f"byte {line.begin}: {line.why}" for line in damage)
    data = {
        "code": "events-damaged",
        "severity": "warning",
        "field": EVENTS_FILE,
        "message": f"{lines} of {EVENTS_FILE} cannot be read ({where[:300]}): what they say is not shown",
        "fix": "Training is not touched by this. Check the disk of the run folder",
    }
    return Event(seq=seq, time=before.time, run=before.run, attempt=before.attempt, kind="finding", data=data)
