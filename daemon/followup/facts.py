"""What a command or a message is told of a job that has ended, and which endings there are."""

import re
import uuid
from typing import Literal, NamedTuple

from daemon.processes.proc import boot_id, session_id
from daemon.queue.entry import Entry, FollowUp
from daemon.wire.protocol import RUNNING_STATES, JobState
from presets.runs.run_view import RunView

MOST_OUTCOME = 4000  # characters: an environment has limits
Ended = Literal["done", "failed", "stopped", "restarted"]
_KEY, _COUNT = re.compile(r"[A-Za-z0-9-]{1,100}"), re.compile(r"[0-9]{1,15}")
_COUNTS = ("WANLORA_ID", "WANLORA_ATTEMPT", "WANLORA_STEP", "WANLORA_STEPS", "WANLORA_SECONDS")
_EVENTS: dict[str, Ended] = {"done": "done", "failed": "failed", "stopped": "stopped", "cancelled": "stopped"}


def session_here() -> str:
    """Another one after each start of the machine, or of the container."""
    return f"{boot_id()} {session_id()}"


class Standing(NamedTuple):
    """Of a job, as far as its endings go."""

    state: JobState
    attempt: int


def ended_so(before: Standing | None, now: Standing) -> Ended | None:
    """What a change of a job means to its user; None when nothing of its training ended by it. A job that is only taken
    from the queue has not trained."""
    if before is None or before.state not in RUNNING_STATES or now == before:
        return None
    if now.attempt < before.attempt:  # it was never launched
        return None
    if now.state == "queued" or now.attempt > before.attempt:  # no request leads there: the daemon did it by itself
        return "restarted"
    return _EVENTS.get(now.state)


def follow_up(entry: Entry, event: Ended, view: RunView | None, *, running: int, queued: int) -> FollowUp:
    """`running`, `queued`: how many jobs do so by now."""
    return FollowUp(
        key=_new_key(entry, event),
        event=event,
        session=session_here(),
        facts=environment_of(entry, event, view, running=running, queued=queued),
        command_due=event != "restarted",
    )


def _new_key(entry: Entry, event: str) -> str:
    return f"{entry.record.id}-{entry.record.attempt}-{event}-{uuid.uuid4().hex[:8]}"


def mend(entry: Entry, due: FollowUp) -> str:
    """Bring one that was read from a damaged job table into a form that can be used, and say what that changes; "" for
    one that is as it should be. Its key is the name of a folder that is removed in the end, its attempt is part of the
    name of a log."""
    found = []
    if not _KEY.fullmatch(due.key):
        due.key, due.command_due = _new_key(entry, due.event), False
        found.append("whether its command has begun is not known, so it is not run")
    true = environment_of(entry, due.event, None, running=0, queued=0)
    lacking = [name for name in true if name not in due.facts]
    lacking += [name for name in _COUNTS if name in due.facts and not _COUNT.fullmatch(due.facts[name])]
    if lacking:
        found.append(f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} what the job says by now")
    for name in lacking:
        due.facts[name] = true[name]
    for name in [name for name, value in due.facts.items() if name not in true or "\0" in value]:
        del due.facts[name]
        found.append(f"{name[:40]!r} is left out")
    return "; ".join(found)


def environment_of(entry: Entry, event: Ended, view: RunView | None, *, running: int, queued: int) -> dict[str, str]:
    """The variables that a command gets beside the daemon's own."""
    record = entry.record
    files = [f"{record.run_dir}/{name}" for name in view.files] if view is not None and event == "done" else []
    facts = {
        "WANLORA_JOB": record.name,
        "WANLORA_ID": record.id,
        "WANLORA_EVENT": event,  # done, failed, stopped
        "WANLORA_STATE": record.state,  # the same, or cancelled
        "WANLORA_OUTCOME": record.outcome[:MOST_OUTCOME],  # why; when done: the best checkpoint, if one was measured
        "WANLORA_RUN_DIR": record.run_dir,
        "WANLORA_JOB_FILE": record.job_path,
        "WANLORA_STEP": record.step,
        "WANLORA_STEPS": record.steps,
        "WANLORA_ATTEMPT": record.attempt,
        "WANLORA_SECONDS": round(max(0.0, record.finished_at - record.started_at)) if record.finished_at else 0,
        "WANLORA_FILES": "\n".join(files),  # of the LoRA, when done, a line each
        "WANLORA_RUNNING": running,  # other jobs that run by now
        "WANLORA_QUEUED": queued,  # and that wait
    }
    return {name: str(value).replace("\0", "") for name, value in facts.items()}
