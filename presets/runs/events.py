"""Events: what a trainer says about its run, in `events.jsonl` and on the wire; the only reader of that file. What
events add up to: presets.runs.run_view for people, presets.runs.history for the trainer, which writes them in
engine.runfolder.event_log.

One JSON object per line; `seq` rises by one from 1 within a run, across attempts. Kinds and their data (all keys always
there unless marked optional):

| kind | data |
|---|---|
| started | name, job (tables, as it counts from here on), plan (text), versions {package: version}, device, steps,
resumed_from (step, 0 at first), optional rollback (someone went back to that step: true), vram_total_gib, ram_total_gib
(what the machine has) |
| phase | name (loading, quantizing, caching, training, sampling, saving, paused: the disk is full and the text says
what waits), done, total, text |
| step | step, expert (high_noise or low_noise), loss, parts {term: loss}, lr, grad_norm, timestep, seconds {part: s,
total: s}, vram_gib, ram_gib, clips [id] |
| sample | step, path, poster, prompt, seed, optional sheet (all prompts of the step), compare and compare_video (this
prompt across the steps), sha256 (of the video) and poster_sha256 |
| checkpoint | step, path, sha256 |
| finding | code, severity, field, message, fix, optional step (the step it was found at), optional order (id of the
command that it refuses) |
| changed | field, old, new, step (optimizer steps done: it counts from the next one on), optional order (id of the
command that it applies) |
| replanned | why, old, new |
| log | level (info, warning), text, optional order (id of the command that was applied), optional rollback (the step
that the next attempt goes back to) and with it folder (where what came after it moves, relative to the run folder) |
| stopped | step, path (of the checkpoint, "" when none), why |
| failed | cause, next (what to do next) |
| done | step, files [path], seconds |

Paths in events are relative to the run folder. An attempt that resumes from step S leaves behind the events of later
steps; what was set by `changed` is written again when its step comes (presets.runs.history).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from presets.files import open_regular

EventKind = Literal[
    "started",
    "phase",
    "step",
    "sample",
    "checkpoint",
    "finding",
    "changed",
    "replanned",
    "log",
    "stopped",
    "failed",
    "done",
]
TERMINAL_KINDS = frozenset({"stopped", "failed", "done"})
EVENTS_FILE = "events.jsonl"
COMMAND_ID = "order"  # the key in an event's data that names the command which it applies or refuses


class Event(Struct, kw_only=True):
    v: int = 1
    seq: int
    time: float  # wall clock, seconds since 1970
    run: str
    attempt: int
    kind: EventKind
    data: dict[str, Any]


_decoder = msgspec.json.Decoder(Event)


class DamagedLine(ValueError):
    """A complete line of events.jsonl that holds no event."""

    def __init__(self, path: Path, begin: int, end: int, why: str) -> None:
        self.begin, self.end, self.why = begin, end, why  # byte offsets of its start and just behind it
        super().__init__(f"{path}: damaged event at byte {begin}: {why}")


def decode_event(line: bytes) -> Event:
    """One line of events.jsonl. Raises ValueError (msgspec's are such) or RecursionError."""
    return _decoder.decode(line)


def read_events(
    path: Path,
    *,
    offset: int = 0,
    report: Callable[[DamagedLine], None] | None = None,
    decode: Callable[[bytes], Event] = decode_event,
) -> Iterator[tuple[Event, int]]:
    """Events of a file from a byte offset, each with the offset just behind it.

    A last line without its newline is torn (a writer died, or is still writing): it is left for the next read. A
    complete line that does not decode is passed over and given to `report`; without that its DamagedLine is raised.
    Raises OSError.
    """
    with open_regular(path) as f:
        f.seek(offset)
        for line in f:
            if not line.endswith(b"\n"):
                return
            begin, offset = offset, offset + len(line)
            try:
                event = decode(line)
            except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as e:
                damage = DamagedLine(path, begin, offset, f"{type(e).__name__} {e}")
                if report is None:
                    raise damage from None
                report(damage)
            else:
                yield event, offset
