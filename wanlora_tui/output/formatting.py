"""Numbers, times, paths and states as short text: the same words in the screens, the plain lines and the tables.

Sizes in bytes are presets.text.human's; whole events are wanlora_tui.output.plain_lines's.
"""

import time
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from presets.text import human, loss_text, rate_text
from presets.text import setting_text as setting_text

if TYPE_CHECKING:
    from daemon.wire.protocol import JobRecord
    from presets.runs.checkpoints import StoredCheckpoint
    from presets.runs.run_view import RunView

DOT = " · "  # between the parts of a line
STATE_GLYPHS = {
    "queued": "…", "starting": "◌", "running": "►", "stopping": "◐",
    "stopped": "■", "done": "✓", "failed": "✗", "cancelled": "⊘",
}  # fmt: skip
VERDICTS = {"best": "best", "alike": "alike", "worse": "worse"}  # of a checkpoint, by its held-out loss
EXPERTS = {"high_noise": "high noise", "low_noise": "low noise"}


def state_text(state: str) -> str:
    """A job's state as glyph and word, so that it reads without colour."""
    return f"{STATE_GLYPHS.get(state, '?')} {state}"


def expert_text(expert: str) -> str:
    return EXPERTS.get(expert, expert)


def waits_for(record: "JobRecord") -> str:
    """What a queued job waits for besides its turn, in a few words: `restarts in 20s (2 of 3)`."""
    if record.held:  # then nothing else matters
        return ""
    if record.restart_at:
        left = max(0.0, record.restart_at - time.time())  # the daemon's clock may be another: it is for people only
        return f"restarts in {duration(left)} ({record.restarts} of {record.most_restarts})"
    return "waits" if record.waiting else ""


def gpus_text(record: "JobRecord", view: "RunView | None" = None) -> str:
    """The GPUs that a job trains on: `0,1`; `CPU` once its trainer has found none."""
    on_cpu = record.on_cpu or (view is not None and view.device == "CPU")
    return "CPU" if on_cpu else ",".join(str(gpu) for gpu in record.gpus if gpu not in record.gone) or "-"


def device_text(record: "JobRecord", view: "RunView | None") -> str:
    """What a job trains on: `GPU 0,1`, or `GPU 0 without 1` where that is gone; `CPU`."""
    gpus = gpus_text(record, view)
    without = f" without {','.join(map(str, record.gone))}" if record.gone else ""
    return f"{gpus if gpus == 'CPU' else f'GPU {gpus}'}{without}"


def ending(name: str, state: str, outcome: str) -> str:
    """How a job ended, with why: `orbit: failed. Out of memory.` An outcome that begins with the state does not get it
    twice."""
    if outcome.lower().startswith(state):
        return f"{name}: {outcome[:1].lower()}{outcome[1:]}"
    return f"{name}: {state}. {outcome}".rstrip()


def held_out_text(c: "StoredCheckpoint") -> str:
    """The held-out loss of a checkpoint, and what it says: `0.1234 best`, `0.1250 worse`, `-`."""
    return "-" if c.held_out is None else f"{loss_text(c.held_out)} {VERDICTS.get(c.verdict, '')}".rstrip()


def duration(seconds: float) -> str:
    """`42s`, `3m 07s`, `1h 12m`, `2d 03h`: at most seven characters below ten days."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m {s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h {s % 3600 // 60:02d}m"
    return f"{s // 86400}d {s % 86400 // 3600:02d}h"


def price(seconds: float, rate: float, currency: str) -> str:
    """What so long costs at `rate` per hour: `$1.24`, `EUR 12.40`; "" at no rate."""
    gap = " " if currency[-1:].isalpha() else ""
    return f"{currency}{gap}{seconds / 3600 * rate:.2f}" if rate else ""


def seconds_each(seconds: float) -> str:
    """Seconds per step with the digits that matter: `0.21`, `1.82`, `16.6`, `120`."""
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


rate = rate_text  # a learning rate: `1e-4`


def so_far(done: int, total: int) -> str:
    """`812/2000`; `1.4 GiB of 68.0 GiB` for what is counted in bytes, as downloads are."""
    return f"{done}/{total}" if total < 10_000_000 else f"{human(done)} of {human(total)}"


def clock(wall: float) -> str:
    """The local time of day of a wall-clock stamp."""
    return time.strftime("%H:%M:%S", time.localtime(wall))


def value_text(value: Any) -> str:
    """A value as a user types or reads it: `512, 768`, `on`, `1e-4`; "" for a field that is left out."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(value_text(v) for v in value)
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        return rate_text(value, 12)  # as the dashboard says it
    return "" if value is None else str(value)


def count(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shorten(text: str, width: int) -> str:
    """The text, cut in the middle when it has more than `width` cells: both ends of a path say the most."""
    head = max(0, (width - 1) // 3)
    if text.isascii():
        if len(text) <= width:
            return text
        return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}" if width > 1 else "…"[:width]
    from rich.cells import cell_len, set_cell_size  # a command that prints no such text need not wait for it

    if cell_len(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    return f"{set_cell_size(text, head)}…{set_cell_size(text[::-1], width - 1 - head)[::-1]}"


def home_path(path: str) -> str:
    """An absolute path with the home folder as `~`."""
    home = str(Path.home())
    return "~" + path[len(home) :] if path == home or path.startswith(home + "/") else path


def fitted(text: str, columns: int, rows: int) -> str:
    """A text of parts between dots, whole parts of it, as many as there is room for. Of the last one what explains it,
    behind a colon, goes first."""
    parts = text.split(DOT)
    while len(parts) > 1 and len(wrap(DOT.join(parts), columns, break_on_hyphens=False)) > rows:
        short, explained, _ = parts[-1].partition(": ")
        parts[-1:] = [short] if explained else []
    return DOT.join(parts)
