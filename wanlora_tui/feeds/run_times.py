"""What is said of a run's time and money: how long it still takes, when it ends, how long it has worked, what that
costs. Reckoned in presets.runs.time_left.
"""

import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from daemon.settings import CostSettings, load_settings, settings_file
from daemon.wire.protocol import ENDED_STATES, JobRecord, RunBeat
from presets.errors import UserError
from presets.runs.run_view import RunView
from presets.runs.time_left import seconds_left
from wanlora_tui.feeds.offers import as_told
from wanlora_tui.feeds.status_lights import BEAT_LIMIT, is_stalled
from wanlora_tui.output.formatting import duration, price
from wanlora_tui.output.queue_words import clock_time, speaks

FREE = CostSettings()


class RunTimes(NamedTuple):
    """Each "" where there is nothing to say."""

    left: str  # `1h 12m`, or why nobody can tell: `paused`, `stalled`
    ends: str  # or when it ended: `14:30`, `Fri 14:30`
    worked: str  # of all attempts, without the time between them
    cost: str  # `$3.10`, of a run that goes on `$3.10/$8.40`, so far and in all
    over: bool = False


def cost_settings(dir: Path | None, rate: float | None = None) -> tuple[CostSettings, str]:
    """What the user has set of costs, with `rate` in place of what is set; and what is wrong with the settings, which
    are the usual ones then."""
    found, problem = FREE, ""
    try:
        found = load_settings(settings_file(dir)).cost
    except UserError as e:
        problem = str(e)
    return found if rate is None else msgspec.structs.replace(found, rate=rate), problem


def run_times(
    record: JobRecord,
    view: RunView,
    beat: RunBeat | None = None,
    beat_age: float | None = None,
    *,
    cost: CostSettings = FREE,
    now: float | None = None,
) -> RunTimes:
    """Of a run as it stands. `now`: wall clock, by which it ends."""
    told, now = as_told(record, view), time.time() if now is None else now
    live = told.state in ("starting", "running", "stopping") and (beat is None or beat.trainer_alive)
    quiet = beat.seconds_since_step + min(beat_age or 0.0, BEAT_LIMIT) if beat is not None and live else 0.0
    worked = view.spent.worked + (quiet if speaks(told, view) else 0.0)
    why = _why_unknown(told, view, beat, live=live)
    left = None if why else seconds_left(view, told.planned, quiet=quiet)
    so_far, whole = (price(s, cost.rate, cost.currency) for s in (worked, worked + (left or 0.0)))
    so_far = so_far if view.last_seq else ""  # nothing is known yet of what it has worked
    ended = told.finished_at if told.state in ENDED_STATES else 0.0
    return RunTimes(
        why if left is None else duration(left),
        clock_time(ended, now) if ended else "" if left is None else clock_time(now + left, now),
        duration(worked) if worked else "",
        so_far if left is None or not so_far else f"{so_far}/{whole}",
        told.state in ENDED_STATES,
    )


def left_text(record: JobRecord, view: RunView) -> str:
    """How long a run still takes, for a cell of a table; "" when there is nothing to say."""
    return run_times(record, view).left


def _why_unknown(record: JobRecord, view: RunView, beat: RunBeat | None, *, live: bool) -> str:
    """Why nobody can say how long it takes, in one word; "" when one can. A run that is over takes no time."""
    if record.state not in ("starting", "running") or not live or not speaks(record, view):
        return "-"
    if view.phase.name == "paused":
        return "paused"
    if beat is not None and is_stalled(view, beat):
        return "stalled"
    return ""
