"""All jobs as the jobs screen sees them: a pure fold of the daemon's feed.

One run in full is wanlora_tui.feeds.run_feed's.
"""

import time
from collections.abc import Callable

from daemon.errors import DaemonError
from daemon.wire.client import Client
from daemon.wire.protocol import ENDED_STATES, RUNNING_STATES, Beat, Feed, JobChanged, JobRecord, RunEvent, Welcome
from presets.runs.run_view import RunView, apply_event


class JobList:
    """Job records, and for those that run the fold of their events."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.records: dict[int, JobRecord] = {}
        self.views: dict[int, RunView] = {}
        self.problem = ""
        self._clock = clock
        self._heard: float | None = None

    @property
    def beat_age(self) -> float | None:
        return None if self._heard is None else self._clock() - self._heard

    def load(self, records: list[JobRecord]) -> None:
        """Replace all records, as after a new daemon's welcome."""
        self.records = {r.id: r for r in records}
        self.views = {i: v for i, v in self.views.items() if i in self.records}
        self.problem, self._heard = "", self._clock()

    def load_view(self, record: JobRecord, view: RunView) -> None:
        self.records[record.id], self.views[record.id] = record, view

    def apply(self, message: Feed) -> list[int]:
        """Apply one message; gives the jobs whose fold has a gap and must be fetched whole."""
        self._heard, self.problem = self._clock(), ""
        match message:
            case JobChanged(job=job):
                if job.id not in self.records or job.revision >= self.records[job.id].revision:
                    self.records[job.id] = job
                return [job.id] if job.state in RUNNING_STATES and job.id not in self.views else []
            case RunEvent(job=job_id, event=event):
                view = self.views.get(job_id)
                if view is None or event.seq > view.last_seq + 1:
                    return [job_id]
                apply_event(view, event)
            case Beat(runs=runs):
                return [
                    b.job
                    for b in runs
                    if b.trainer_alive and (b.job not in self.views or b.last_seq > self.views[b.job].last_seq)
                ]
        return []

    def ordered(self) -> list[JobRecord]:
        """Running first, then the queue in its order, then what is over, newest first."""

        def key(r: JobRecord) -> tuple[int, int, float]:
            if r.state == "queued":
                return 1, r.position, 0.0
            return (2, 0, -r.id) if r.state in ENDED_STATES else (0, 0, r.id)

        return sorted(self.records.values(), key=key)

    async def follow(self, client: Client, changed: Callable[[], None]) -> None:
        """Keep up with the daemon until cancelled or until it cannot be reached (raises DaemonError)."""
        async for message in client.feed():
            if isinstance(message, Welcome):
                self.load(await client.jobs())
                for r in self.ordered():
                    if r.state in RUNNING_STATES:
                        self.load_view(*await client.snapshot(str(r.id)))
            for job_id in self.apply(message):
                try:
                    self.load_view(*await client.snapshot(str(job_id)))
                except DaemonError as e:
                    self.problem = str(e)
            changed()
