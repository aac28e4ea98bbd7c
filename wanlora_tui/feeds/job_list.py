"""All jobs as the jobs screen sees them: a pure fold of the daemon's feed.

One run in full is wanlora_tui.feeds.run_feed's.
"""

import re
import time
from collections.abc import Callable

from daemon.errors import DaemonError
from daemon.wire.client import Client
from daemon.wire.protocol import (
    ENDED_STATES,
    RUNNING_STATES,
    Beat,
    Feed,
    JobChanged,
    JobRecord,
    JobState,
    RunBeat,
    RunEvent,
    Welcome,
)
from presets.runs.run_view import RunView, apply_event

ORDERS = ("queue", "newest", "name", "state")  # that the list can have
# what goes on, what comes, what went wrong, what is well
STATES: tuple[JobState, ...] = ("running", "stopping", "starting", "queued", "failed", "stopped", "cancelled", "done")


def matches(record: JobRecord, words: str) -> bool:
    """Whether all of `words` are in its name or state, whatever their case."""
    text = f"{record.name} {record.state}{' held' if record.held else ''}".lower()
    return all(word in text for word in words.lower().split())


class JobList:
    """Job records, and for those that run the fold of their events."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.records: dict[int, JobRecord] = {}
        self.views: dict[int, RunView] = {}
        self.problem = ""
        self.idle_in: float | None = None  # seconds until the daemon runs its idle command; None: it will not
        self.paused = ""  # why the jobs that were queued before a restart of the machine wait
        self.troubles: list[str] = []  # what the daemon suffers from, and serves in spite of
        self._clock = clock
        self.heard: float | None = None  # when, by the clock

    @property
    def beat_age(self) -> float | None:
        return None if self.heard is None else self._clock() - self.heard

    @property
    def paused_jobs(self) -> int:
        """How many wait for that reason: those queued since do not."""
        return sum(r.state == "queued" and r.waiting == self.paused != "" for r in self.records.values())

    def load(self, records: list[JobRecord]) -> None:
        """Replace all records, as after a new daemon's welcome."""
        self.records = {r.id: r for r in records}
        self.views = {i: v for i, v in self.views.items() if i in self.records}
        self.problem, self.heard = "", self._clock()

    def load_view(self, record: JobRecord, view: RunView) -> None:
        self.records[record.id], self.views[record.id] = record, view

    def apply(self, message: Feed) -> list[int]:
        """Apply one message; gives the jobs whose fold has a gap, or is of a run that has begun anew, and must be
        fetched whole."""
        self.heard, self.problem = self._clock(), ""
        match message:
            case JobChanged(job=job):
                if job.id not in self.records or job.revision >= self.records[job.id].revision:
                    self.records[job.id] = job
                return [job.id] if job.state in RUNNING_STATES and job.id not in self.views else []
            case RunEvent(job=job_id, event=event):
                view = self.views.get(job_id)
                if view is None or event.seq > view.last_seq + 1 or view.run not in ("", event.run):
                    return [job_id]
                apply_event(view, event)
            case Beat(runs=runs, paused=paused, idle_in=idle_in):
                self.paused, self.idle_in = paused, idle_in
                return [b.job for b in runs if self._is_behind(b)]
        return []

    def _is_behind(self, beat: RunBeat) -> bool:
        """Whether something was missed of a job: a change of its record, an event, also the last ones of its run."""
        record, view = self.records.get(beat.job), self.views.get(beat.job)
        if record is None or record.state != beat.state:
            return True
        if beat.trainer_alive:
            return view is None or beat.last_seq != view.last_seq
        return view is not None and beat.last_seq > view.last_seq

    def ordered(self) -> list[JobRecord]:
        """Running first, then the queue in its order, then what is over, newest first."""

        def key(r: JobRecord) -> tuple[int, ...]:
            if r.state == "queued":
                return 1, not r.first, -r.priority, r.order, r.position, r.id
            return (2, -r.id) if r.state in ENDED_STATES else (0, r.id)

        return sorted(self.records.values(), key=key)

    def arranged(self, order: str, words: str = "") -> list[JobRecord]:
        """In one of ORDERS, those alone that have all of `words` in their name or state, whatever their case."""
        records = self.ordered()
        match order:
            case "newest":
                records.sort(key=lambda r: -r.id)
            case "name":
                records.sort(key=lambda r: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", r.name.lower())])
            case "state":  # within one the order stays
                records.sort(key=lambda r: STATES.index(r.state))
        return [r for r in records if matches(r, words)]

    async def follow(self, client: Client, changed: Callable[[], None]) -> None:
        """Keep up with the daemon until cancelled or until it cannot be reached (raises DaemonError)."""
        async for message in client.feed():
            if isinstance(message, Welcome):
                overview = await client.queue()
                self.load(overview.jobs)
                self.troubles = overview.troubles
                for r in self.ordered():
                    if r.state in RUNNING_STATES:
                        self.load_view(*await client.snapshot(r.id))
            for job_id in self.apply(message):
                try:
                    self.load_view(*await client.snapshot(job_id))
                except DaemonError as e:
                    self.problem = str(e)
            changed()
