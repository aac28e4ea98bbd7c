"""How a job stands in the queue, in words: its state, when it starts and ends. The states themselves are
wanlora_tui.output.formatting's."""

import time

from daemon.wire.protocol import RUNNING_STATES, JobRecord
from presets.runs.run_view import RunView
from wanlora_tui.output.formatting import count, state_text


def standing(record: JobRecord) -> str:
    """`… queued (2)`, `‖ held`, `… queued, after #3`, `► running, paused`."""
    if record.held:
        return "‖ held"
    if record.after and record.state == "queued":
        return f"{state_text(record.state)}, after {', '.join(f'#{job}' for job in record.after)}"
    if record.position:
        return f"{state_text(record.state)} ({record.position})"
    return state_text(record.state) + (", paused" if record.doing == "paused" else "")


def speaks(record: JobRecord, view: RunView) -> bool:
    """Whether the trainer of the present attempt has said anything yet: what an earlier one did last is over."""
    launched = record.state in RUNNING_STATES and (record.state != "starting" or record.pid != 0)
    return launched and view.updated_at >= record.started_at


def expected(record: JobRecord, now: float) -> str:
    """`starts in ~2 h, ends 18:30`; "" when nothing is known, and when it is over."""
    words = []
    if record.starts_at is not None and record.state not in RUNNING_STATES:
        words.append(f"starts {from_now(record.starts_at - now)}")
    if record.ends_at is not None:
        words.append(f"ends {clock_time(max(record.ends_at, now), now)}")
    return ", ".join(words)


def from_now(seconds: float) -> str:
    """Roughly, as an estimate is: `soon`, `in ~25 min`, `in ~2 h`, `in ~3 days`."""
    if seconds < 90:
        return "soon"
    if seconds < 90 * 60:
        return f"in ~{round(seconds / 60)} min"
    if seconds < 48 * 3600:
        return f"in ~{round(seconds / 3600)} h"
    return f"in ~{count(round(seconds / 86400), 'day')}"


def clock_time(at: float, now: float) -> str:
    """`14:30` today, `Thu 14:30` within six days, else `3 Dec 14:30`; local time."""
    then, today = time.localtime(at), time.localtime(now)
    hour = time.strftime("%H:%M", then)
    if then[:3] == today[:3]:
        return hour
    if abs(at - now) < 6 * 86400:
        return f"{time.strftime('%a', then)} {hour}"
    return f"{then.tm_mday} {time.strftime('%b', then)} {hour}"
