"""Whether a Slurm job goes into the queue again, asked by its batch script where an attempt has ended on nodes that are
still its own: `python -m wanlora_tui.commands.jobs.slurm_again EVENTS OFFSET RESTARTS`. Exits with 0 when it does.

The rule is that of daemon.queue.restarts: a failure that may pass is tried again, so often without a new checkpoint. A
stop by a warning, too, counts where it came to none: loading may take longer than the time that Slurm gives.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from presets.runs.events import DamagedLine, Event, read_events
from presets.text import escape_output


def why_not(events: Iterable[Event], restarts: int) -> str | None:
    """Why a job is not queued again; None: it is. `events`: of all its attempts. Checkpoints only count beyond those
    before, so there is an end to it whatever befalls them."""
    attempt = tried = furthest = began = 0  # tried: attempts since the newest checkpoint, with the one that made it
    got_on, last = False, None
    for event in events:
        if event.attempt != attempt:
            attempt, tried, got_on = event.attempt, tried + 1, False
        if event.kind == "started":
            began = event.data["resumed_from"]
            furthest = max(furthest, began)
        elif event.kind == "step":
            got_on = got_on or event.data["step"] > began
        elif event.kind in ("checkpoint", "stopped") and event.data["path"] and event.data["step"] > furthest:
            furthest, tried, got_on = event.data["step"], 1, True
        last = event
    if last is None or last.kind == "done":
        return "there is nothing to go on with"
    if last.kind == "stopped":
        if "SIGTERM" not in last.data["why"]:
            return "somebody has stopped the run"
        restarts, got_on = max(1, restarts), True
    elif last.kind == "failed" and last.data.get("user") is not False:
        return "what has failed is for you to mend"
    if not (got_on or tried > 1):
        return "it has failed before its first step"
    if tried > restarts:
        return f"{tried} attempts have come to no new checkpoint" if tried > 1 else "settings.toml allows no restarts"
    return None


def main(path: str, offset: str, restarts: str) -> int:
    damaged: list[DamagedLine] = []
    found = read_events(Path(path), offset=int(offset), report=damaged.append)
    why = why_not((event for event, _ in found), int(restarts))
    print(f"wanlora: {f'not in the queue again: {why}' if why else 'into the queue again'}", file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    escape_output()
    sys.exit(main(*sys.argv[1:]))
