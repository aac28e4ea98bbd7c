"""What keeps a job waiting for more than its turn: a restart of the machine, an attempt that failed for a reason that
may pass, GPUs that somebody else uses. Pure, as the queue itself (daemon.queue.job_queue), on which it works.

What has happened is found out in daemon.jobs.restore, daemon.jobs.attempt_result and daemon.machine.gpu_wait.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from daemon.queue.entry import AttemptResult, Changed, Entry, Instruction
from daemon.wire.protocol import ENDED_STATES, RUNNING_STATES
from presets.text import to_type

if TYPE_CHECKING:
    from daemon.queue.job_queue import Queue

MACHINE = "The machine restarted"
LONGEST_DELAY = 600.0  # seconds


class Progress(NamedTuple):
    """How far an attempt came."""

    stepped: bool = False  # beyond where it began
    saved: bool = False  # a checkpoint, so that the next attempt begins further on
    resumable: bool = False  # there is a checkpoint, by whichever attempt


# --- a failed attempt -----------------------------------------------------------------------------------------


def restart_delay(entry: Entry, result: AttemptResult, progress: Progress, *, most: int, delay: float) -> float | None:
    """Seconds after which a job whose attempt has failed starts again by itself, twice as many each time; None when it
    does not. It does when the reason may pass and the attempt came further than it began, or has lost a GPU and
    others can go on; and, that once having been so, `most` times without a new checkpoint."""
    made = 0 if progress.saved else entry.restarts
    if not result.may_pass or entry.ending or entry.no_restart or not progress.resumable or made >= most:
        return None
    if not (result.lost or progress.stepped or progress.saved or made):
        return None
    return min(delay * 2**made, LONGEST_DELAY)


def back_off(
    queue: "Queue",
    job: int,
    result: AttemptResult,
    now: float,
    *,
    delay: float,
    most: int,
    saved: bool,
) -> list[Instruction]:
    """All processes of a job's trainer have ended, and it starts again by itself in `delay` seconds. Until then it has
    its GPUs. `saved`: it has come to a new checkpoint."""
    entry = queue.entries[job]
    record = entry.record
    assert record.state in RUNNING_STATES, record.state
    entry.order = queue.first_place()
    requeue(entry, first=True)
    entry.restarts = 1 if saved else entry.restarts + 1
    entry.restart_due = now + delay
    record.restart_at, record.restarts, record.most_restarts = now + delay + queue.wall, entry.restarts, most
    record.outcome = record.waiting = f"{result.cause} It continues from its last checkpoint by itself."
    return [Changed(job), *queue.fill(now)]


def due(queue: "Queue", now: float) -> list[Instruction]:
    """Jobs whose delay is over take their turn again."""
    out: list[Instruction] = []
    for entry in queue.queued():
        if entry.restart_due and now >= entry.restart_due:
            go_on(entry)
            out.append(Changed(entry.record.id))
    return out


# --- GPUs that somebody else uses -----------------------------------------------------------------------------


def cannot_start(queue: "Queue", job: int, why: str, now: float) -> list[Instruction]:
    """It was the job's turn, or still is, but somebody else uses its GPUs: it keeps its place until they are free."""
    entry = queue.entries[job]
    record = entry.record
    if record.state in RUNNING_STATES:
        record.state, record.attempt = "queued", record.attempt - 1
    elif record.state != "queued" or entry.busy in ("", why):
        return []
    entry.busy = record.outcome = record.waiting = why
    return [Changed(job), *queue.fill(now)]


def can_start(queue: "Queue", job: int, now: float) -> list[Instruction]:
    """Nobody else uses the GPUs of a job any more that waited for that."""
    entry = queue.entries[job]
    if not entry.busy:
        return []
    go_on(entry)
    return [Changed(job), *queue.fill(now)]


# --- a restart of the machine ---------------------------------------------------------------------------------


def broken_off(
    queue: "Queue",
    now: float,
    finished: Mapping[int, AttemptResult],
    *,
    what: str = MACHINE,
    most: int | None = None,
    gained: frozenset[int] = frozenset(),
) -> list[Instruction]:
    """Nothing runs any more, because of `what`. What that broke off waits for the user, and so does the queue.

    With `most` the jobs go on by themselves instead, before all others; but not one that was broken off, or restarted,
    more often than that since it last came to a checkpoint (`gained`: those that did in this attempt). `finished`: what
    became of the jobs that had come to their end before.
    """
    out: list[Instruction] = []
    stopped: list[Entry] = []
    waited = [e for e in queue.queued() if e.restart_due]
    for entry in [*sorted(queue.running(), key=lambda e: e.order), *waited]:
        job, record = entry.record.id, entry.record
        where = f" at step {record.step}" if record.step else ""
        broken = f"{what} while this job {'ran' if record.state in RUNNING_STATES else 'was to be restarted'}{where}."
        way = f"Resume from the last checkpoint with: {to_type('resume', record.name)}"
        ending, result = entry.ending, finished.get(job, AttemptResult("stopped", f"{broken} {way}"))
        out += queue.finish(entry, result, now)
        if job in finished or ending:
            continue
        entry.interrupted = True
        entry.restarts = 1 if job in gained else entry.restarts + 1
        if most is not None and entry.restarts > most:
            entry.interrupted = False
            record.outcome = f"{broken} That was so {entry.restarts} times, and it got no further. {way}"
        stopped.append(entry)
    if most is not None:
        return [*out, *_requeue_interrupted(queue), *queue.fill(now)]
    for entry in queue.queued():
        entry.paused, entry.busy = True, ""
        entry.record.outcome = entry.record.waiting = queue.paused = (
            f"{what}. What was queued then waits until you say: wanlora resume --all, or wanlora resume JOB for one"
            " alone. Jobs that you submit now do not wait for it."
        )
        out.append(Changed(entry.record.id))
    return out + queue.fill(now)


def resume_all(queue: "Queue", now: float) -> list[Instruction]:
    """Everything goes on that a restart of the machine has left waiting: first what it broke off, then the queue."""
    again = _requeue_interrupted(queue)
    for one in again:
        queue.entries[one.job].restarts = 0
    waited = [e for e in queue.queued() if e.paused]
    for entry in waited:
        go_on(entry)
    return [*again, *(Changed(e.record.id) for e in waited), *queue.fill(now)]


def _requeue_interrupted(queue: "Queue") -> list[Changed]:
    """Before all others, in the order that they had; but for one whose run folder another live job uses by now."""
    out: list[Changed] = []
    broken = [e for e in queue.entries.values() if e.interrupted and e.record.state in ENDED_STATES]
    for entry in sorted(broken, key=lambda e: e.order, reverse=True):
        if queue.is_free(entry.record):
            entry.order = queue.first_place()
            requeue(entry, first=True, hold=entry.hold)
            out.append(Changed(entry.record.id))
    return out


# --- all of these ---------------------------------------------------------------------------------------------


def requeue(entry: Entry, *, first: bool = False, hold: str = "") -> None:
    """Queue a job again, to go on from its last checkpoint if it was ever begun. Its order is the caller's matter.
    `first`: before all others, whatever their priorities."""
    record = entry.record
    record.first, entry.hold = first, hold
    entry.resume = entry.resume or record.attempt > 0
    record.state, record.outcome, record.finished_at, record.pid = "queued", "", 0.0, 0
    entry.ending, entry.trainer, entry.due = "", None, 0.0
    go_on(entry)


def go_on(entry: Entry, *, outcome: str = "") -> None:
    """A job waits for nothing but its turn any more, or for nothing at all."""
    entry.interrupted = entry.paused = False
    entry.restart_due, entry.busy = 0.0, ""
    entry.record.restart_at, entry.record.outcome, entry.record.waiting = 0.0, outcome, ""
