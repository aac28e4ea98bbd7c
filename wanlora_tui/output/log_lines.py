"""A run's log as lines with days: for the pane of the dashboard and the log on the whole screen.

One line per event, for pipes, is wanlora_tui.output.plain_lines's.
"""

import time
from collections.abc import Iterable, Iterator

from presets.runs.run_view import LogLine
from presets.text import escaped
from wanlora_tui.output.far_words import advised
from wanlora_tui.output.formatting import clock

GLYPHS = {
    "started": "►",
    "sample": "▣",
    "checkpoint": "◆",
    "validation": "○",
    "finding": "!",
    "changed": "~",
    "replanned": "~",
    "stopped": "■",
    "failed": "✗",
    "done": "✓",
}
# what a reader may want to see alone; the first is everything
KINDS: dict[str, frozenset[str]] = {
    "all": frozenset(),
    "problems": frozenset({"finding", "failed"}),
    "results": frozenset({"sample", "checkpoint", "validation", "done"}),
    "changes": frozenset({"changed", "replanned"}),
    "course": frozenset({"started", "phase", "stopped", "failed", "done", "log"}),
}
LABEL = len("12:34:56 ► ")  # columns before the words of an event
DAY = "── "  # how the line above a day's first begins
LOUD = ("failed", "finding", "done", "stopped")  # kinds that stand out


def day_of(wall: float) -> str:
    """`Thu 26 Nov 2026`, local."""
    return time.strftime("%a %d %b %Y", time.localtime(wall))


def zone_of(wall: float) -> str:
    """The local zone at that time: `CET, UTC+01:00`."""
    local = time.localtime(wall)
    offset = time.strftime("%z", local)
    named = local.tm_zone.lstrip("+-").isalpha()
    return f"{local.tm_zone + ', ' if named and local.tm_zone != 'UTC' else ''}UTC{offset[:3]}:{offset[3:]}"


def day_line(wall: float, *, zone: bool) -> str:
    """What stands above the first event of a day; the zone is said once."""
    return f"{DAY}{day_of(wall)} ──{f' local time, {zone_of(wall)}' if zone else ''}"


def text_lines(lines: Iterable[LogLine], kind: str) -> Iterator[str]:
    """The lines of one of KINDS, each day under its name; texts of several lines go on below their time."""
    day = ""
    for line in lines:
        if KINDS[kind] and line.kind not in KINDS[kind]:
            continue
        if (now := day_of(line.time)) != day:
            yield day_line(line.time, zone=not day)
            day = now
        first, *rest = advised(line.text).split("\n")
        yield f"{clock(line.time)} {GLYPHS.get(line.kind, ' ')} {escaped(first)}"
        yield from (f"{'':{LABEL}}{escaped(more)}" for more in rest)
