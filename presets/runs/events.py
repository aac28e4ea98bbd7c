"""Events: what a trainer says about its run, in `events.jsonl` and on the wire, and a reader of that file. The daemon
has one of its own, which follows it: daemon.events.event_tail. What events add up to: presets.runs.run_view for people,
presets.runs.history for the trainer, which writes them in engine.runfolder.event_log.

One JSON object per line; `seq` rises by one from 1 within a run, across attempts. Kinds and their data (all keys always
there unless marked optional):

| kind | data |
|---|---|
| started | name, job (tables, as it counts from here on), plan (text), versions {package: version}, device, steps,
optional starts {expert: {file, sha256, rank, step}} (what its LoRAs started from), optional merges {expert: [{file,
sha256, strength}]} (into the base), resumed_from (step, 0 at first), optional rollback (someone went back to that
step: true), vram_total_gib, ram_total_gib (what the machine has) |
| phase | name (loading, quantizing, caching, training, sampling, validating, saving, paused: the disk is full and the
text says what waits), done, total, text |
| step | step, expert (high_noise or low_noise), loss, parts {term: loss}, lr, grad_norm, timestep, seconds {part: s,
total: s}, vram_gib, ram_gib, clips [id], optional ranks [{rank, seconds, vram_gib}] (of the processes that shared it)
and at_once (experts that train at the same time) |
| sample | step, path, poster, prompt, seed, optional shift (older versions' other noise levels are known by its
absence), sheet (all prompts of the step), compare and compare_video (this prompt across the steps), sha256 (of the
video) and poster_sha256 |
| checkpoint | step, path, sha256, optional oldest (the first step that still has a checkpoint: LoRA files of earlier
ones were removed) and best (an earlier step whose LoRA files stay for their held-out loss) |
| validation | step, of (what can be compared has the same: clips, noise, noise levels), clips [id], experts {expert:
{loss, error (standard error of that mean over the clips), edges [noise level], bins [mean loss between two edges],
clips [loss, in the order of clips], optional first and best: {step, difference, error} (the paired difference to the
first measurement, and to the best one before)}}, seconds; a loss that is not finite is null |
| finding | code, severity, field, message, fix, optional step (the step it was found at), optional order (id of the
command that it refuses), optional cause (what stays the same when it is found again: validation-failed) |
| changed | field, old, new, step (optimizer steps done: it counts from the next one on), optional order (id of the
command that it applies), optional edited (it comes from the job file that the attempt was given: true) |
| replanned | why, old, new |
| log | level (info, warning), text, optional order (id of the command that was applied), optional rollback (the step
that the next attempt goes back to) and with it folder (where what came after it moves, relative to the run folder) |
| stopped | step, path (of the checkpoint, "" when none), why |
| failed | cause, next (what to do next), optional user (whether it is for the user to mend; when it is not, another
attempt may go well) |
| done | step, files [path], seconds, optional why (it ended before its last step), optional best {step, files [path],
previews [path], reason} (the checkpoint with the best held-out loss) |

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
    "validation",
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
EDITED = "edited"  # the key in a `changed` event's data that tells an edit of the job file from what was set live


class Event(Struct, kw_only=True):
    """One thing that a trainer says about its run."""

    v: int = 1  # of this form
    seq: int  # rises by one from 1 within a run, across attempts
    time: float  # wall clock, seconds since 1970
    run: str  # id of the run
    attempt: int  # which one of the run says it, from 1
    kind: EventKind  # what is said
    data: dict[str, Any]  # by the kind: see presets/runs/events.py


_decoder = msgspec.json.Decoder(Event)


class DamagedLine(ValueError):
    """A complete line of events.jsonl that holds no event."""

    def __init__(self, path: Path, begin: int, end: int, why: str) -> None:
        self.begin, self.end, self.why = begin, end, why  # byte offsets of its start and just behind it
        super().__init__(f"{path}: damaged event at byte {begin}: {why}")


decode_events = _decoder.decode_lines  # of whole lines that follow each other; raises ValueError or RecursionError


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
