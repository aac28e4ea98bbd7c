"""How a run stands by its newest word, and what can be asked of it as it stands: pure, of record and view alone.

What an action does is wanlora_tui.screens.dashboard_commands's, what it is called wanlora_tui.actions's.
"""

import msgspec

from daemon.wire.protocol import ENDED_STATES, RESUMABLE_STATES, RUNNING_STATES, JobRecord
from presets.runs.run_view import RunView
from wanlora_tui.output.formatting import waits_for
from wanlora_tui.output.queue_words import speaks

TRAINING = frozenset({"starting", "running"})  # its trainer takes commands
LAST_WORDS = frozenset({"stopped", "failed", "done"})
# what goes to the trainer or the queue
COMMANDS = frozenset({"stop_run", "resume_run", "change_run", "save_now", "sample_now", "go_back"})


def said_end(record: JobRecord, view: RunView) -> bool:
    """Whether the trainer of this attempt has said its last word, while the daemon has it as running: it is closing."""
    ended = view.state in LAST_WORDS and view.phase.name == "ending"  # the next attempt's first word is a phase
    return record.state in RUNNING_STATES and ended and speaks(record, view)


def as_told(record: JobRecord, view: RunView) -> JobRecord:
    """The record as the run's last word makes it: before the daemon has seen the trainer go, and where none has noted
    when the run ended, as of one that was trained without it."""
    if record.state in ENDED_STATES and not record.finished_at:
        return msgspec.structs.replace(record, finished_at=view.updated_at)
    if not said_end(record, view):
        return record
    return msgspec.structs.replace(
        record, state=view.state, outcome=view.outcome, doing="", pid=0, finished_at=view.updated_at
    )


def offer(action: str, record: JobRecord, view: RunView) -> bool | None:
    """Whether an action can work: True; None when it could in a moment, or will when what is under way is over; False
    when it makes no sense for the run as it stands."""
    if action == "compare":
        return bool(view.samples)
    if action not in COMMANDS:
        return True
    told = as_told(record, view)
    waits = None if said_end(record, view) else True  # the daemon takes what is about an end when it has seen it
    match action:
        case "resume_run":
            return waits if told.state in RESUMABLE_STATES else bool(waits_for(record))
        case "go_back":
            return waits if told.state in ENDED_STATES and view.checkpoints else False
        case "stop_run":
            return None if told.state == "stopping" else told.state in RUNNING_STATES
    if told.state not in TRAINING:
        return None if told.state == "stopping" else False
    doing = view.phase.name if speaks(record, view) else ""
    if action == "save_now":
        return None if doing in ("saving", "paused") or view.step == 0 else True
    if action == "sample_now":
        if view.to_come is not None and not view.to_come.prompts:
            return False
        return None if doing in ("sampling", "paused") else True
    return True if view.settings else None  # to change them: the run's first word of an attempt tells them
