"""When each job will start and end, as far as that can be told: the queue's own order played through, with GPUs as the
resources and the time that each run still takes, which is presets.runs.time_left's. Pure; who decides what really
starts is daemon.queue.job_queue."""

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from daemon.queue.entry import Entry, Left, held
from daemon.queue.places import Places, may_start
from daemon.wire.protocol import RUNNING_STATES
from presets.runs import time_left
from presets.runs.run_view import RunView
from presets.runs.time_left import planned_left

LEAST_MOVE = 60.0  # seconds; what an estimate moves by less than this, or this part of what is left, nobody is told
LEAST_PART = 0.05


class Load(NamedTuple):
    """What one job takes."""

    job: int
    gpus: frozenset[str]
    seconds: float | None  # that it has left to run; None: nobody knows
    held: bool = False  # it does not start at all
    after: frozenset[int] = frozenset()  # jobs that must have ended before


class Span(NamedTuple):
    starts: float | None  # seconds since 1970; None: not known
    ends: float | None


def estimate(running: Iterable[Load], queued: Sequence[Load], now: float) -> dict[int, Span]:
    """Of every job. `queued`: in the queue's order. What waits for something of unknown length has no start."""
    spans: dict[int, Span] = {}
    at_work: dict[int, frozenset[str]] = {}
    ends: list[tuple[float, int]] = []

    def begin(load: Load, at: float) -> None:
        end = None if load.seconds is None else at + load.seconds
        spans[load.job] = Span(at, end)
        at_work[load.job] = load.gpus
        if end is not None:
            heappush(ends, (end, load.job))

    for load in running:
        begin(load, now)
    every_gpu = frozenset().union(*(load.gpus for load in queued))
    unfinished = {*at_work, *(load.job for load in queued)}
    waiting, at = [load for load in queued if not load.held], now
    while True:
        taken = set().union(*at_work.values())
        still: list[Load] = []
        for place, load in enumerate(waiting):
            if every_gpu <= taken:
                still += waiting[place:]
                break
            if not unfinished.isdisjoint(load.after):
                still.append(load)
                continue
            if taken.isdisjoint(load.gpus):
                begin(load, at)
            else:
                still.append(load)
            taken |= load.gpus
        waiting = still
        if not waiting or not ends:
            return {**dict.fromkeys((load.job for load in queued), Span(None, None)), **spans}
        at = ends[0][0]
        while ends and ends[0][0] <= at:
            over = heappop(ends)[1]
            del at_work[over]
            unfinished.discard(over)


def seconds_left(entry: Entry) -> float | None:
    """By the run's own events, else by its pace and the plan it was submitted with; None when there is neither, or
    it is paused."""
    record, told = entry.record, entry.left
    if record.state == "stopping":
        return 0.0
    if record.doing == "paused":  # for as long as its disk is full
        return None
    done = entry.from_step if record.state == "queued" and entry.from_step is not None else record.step
    if told is None:
        return planned_left(entry.planned, entry.pace, record.steps, done)
    each = entry.pace or (entry.planned.step if entry.planned else 0.0)
    return max(0.0, told.seconds + (told.step - done + record.steps - told.steps) * each)


def measure(entry: Entry, view: RunView, quiet: float) -> None:
    """Let the run's own events say what is left. `quiet`: seconds since the last of them."""
    if view.steps and (seconds := time_left.seconds_left(view, entry.planned, quiet=quiet)) is not None:
        entry.left = Left(seconds, view.step, view.steps)


def refresh(queue: Places, now: float) -> list[int]:
    """Bring the estimates in all records up to date. Gives the jobs whose estimates have moved so far that clients
    should be told; the others keep what was told."""

    def load(entry: Entry) -> Load:
        record = entry.record
        return Load(
            record.id,
            held(record),
            seconds_left(entry),
            held=bool(entry.paused or record.held),
            after=frozenset(record.after),
        )

    queued = queue.queued()
    # these have their GPUs, though they do not run yet
    waits = [e for e in queued if may_start(e) and (e.busy or e.restart_due)]
    spans = estimate(
        [*map(load, queue.running()), *(_waiting(load(e), e, now) for e in waits)],
        [load(e) for e in queued if e not in waits],
        now,
    )
    for entry in waits:
        job = entry.record.id
        spans[job] = Span(None, None) if entry.busy else Span(max(now, entry.record.restart_at), spans[job].ends)
    moved = []
    for entry in queue.entries.values():
        record = entry.record
        starts, ends = spans.get(record.id, Span(None, None))
        if record.state in RUNNING_STATES and entry.trainer is not None:
            starts = record.started_at
        if _far(record.starts_at, starts, now) or _far(record.ends_at, ends, now):
            record.starts_at, record.ends_at = starts, ends
            moved.append(record.id)
    return moved


def _waiting(load: Load, entry: Entry, now: float) -> Load:
    """With the time until it starts; nobody knows when a GPU that others use is free."""
    if entry.busy or load.seconds is None:
        return load._replace(seconds=None)
    return load._replace(seconds=load.seconds + max(0.0, entry.record.restart_at - now))


def _far(told: float | None, true: float | None, now: float) -> bool:
    if told is None or true is None:
        return told is not true
    return abs(told - true) > max(LEAST_MOVE, LEAST_PART * abs(true - now))
