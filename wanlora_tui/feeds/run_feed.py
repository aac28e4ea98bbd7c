"""One run as the dashboard sees it: the job record, the fold of its events, the last beat. No widget knows more.

All jobs are wanlora_tui.feeds.job_list's; how events fold is presets.runs.run_view's.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from daemon.errors import DaemonError
from daemon.wire.client import BegunAnew, Client
from daemon.wire.protocol import Beat, JobRecord, RunBeat
from presets.runs.event_data import QuickLine
from presets.runs.events import Event
from presets.runs.run_view import RunView, apply_all, apply_event
from wanlora_tui.feeds.folder_events import FolderEvents, HerePieces, Pieces
from wanlora_tui.feeds.last_seen import LastSeenFile, since_you_left
from wanlora_tui.feeds.status_lights import answers

RETRY_SECONDS = 1.0


class ShownRun(Protocol):
    """What the dashboard renders."""

    record: JobRecord
    view: RunView
    beat: RunBeat | None
    away: str  # "Since you left: ...", "" when there is nothing to say
    problem: str  # why the daemon cannot be followed at present
    anew: int  # how often it has begun again from nothing while it was looked at

    @property
    def beat_age(self) -> float | None: ...
    async def follow(self, changed: Callable[[], None]) -> None: ...
    def take(self, record: JobRecord) -> None:
        """An answer of the daemon about this job: the feed may have told of something newer meanwhile."""


class RunFeed:
    """A run followed through the daemon, over the daemon's own end and the next one's start.

    `heard`: when the daemon last gave a sign of life, by `clock`. `pieces`: of the run folder's
    files, which are read while the daemon does not answer; None where it is on this machine.
    """

    def __init__(
        self,
        client: Client,
        record: JobRecord,
        last_seen: LastSeenFile,
        *,
        heard: float | None = None,
        pieces: Pieces | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.record, self.view = record, RunView(name=record.name, steps=record.steps, step=record.step)
        self.beat: RunBeat | None = None
        self.away, self.problem, self.anew = "", "", 0
        self._client, self._last_seen, self._clock = client, last_seen, clock
        self._heard, self._folder = heard, FolderEvents(pieces or HerePieces())

    @property
    def beat_age(self) -> float | None:
        return None if self._heard is None else self._clock() - self._heard

    async def follow(self, changed: Callable[[], None]) -> None:
        """Load the run, then apply whatever comes; `changed` is called after each. Ends only when cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_daemon(changed))
            tasks.create_task(self._follow_folder(self._folder, changed))

    async def _follow_folder(self, folder: FolderEvents, changed: Callable[[], None]) -> None:
        """The trainer goes on without the daemon, and its folder is not behind."""
        is_read = False
        try:
            while True:
                try:
                    while (
                        not answers(self.beat_age, self.problem)
                        and (events := await asyncio.to_thread(folder.more, Path(self.record.run_dir))) is not None
                    ):
                        self._apply_all(events)
                        changed()
                except (FileNotFoundError, ConnectionError):  # it has not begun; its machine is away, which is shown
                    pass
                except OSError as e:
                    self.problem = f"The run folder cannot be read: {e.strerror or e}"
                    changed()
                was_read, is_read = is_read, not answers(self.beat_age, self.problem)
                if was_read and not is_read:
                    await asyncio.to_thread(folder.close)
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            await asyncio.to_thread(folder.close)  # it may wait for a program's end

    def _apply_all(self, events: Sequence[Event | QuickLine]) -> None:
        if events and self.view.run not in ("", events[0].run):
            self._begin_anew()
        apply_all(self.view, events)
        self._last_seen.saw(self.view.run, self.view.last_seq)

    async def _follow_daemon(self, changed: Callable[[], None]) -> None:
        while True:
            try:
                await self._load(changed)
                changed()
                async for item in self._client.follow(self.record.id, self.view.last_seq, self.view.run):
                    self.apply(item)
                    changed()
            except DaemonError as e:
                self.problem = str(e)
                changed()
            await asyncio.sleep(RETRY_SECONDS)

    async def _load(self, changed: Callable[[], None]) -> None:
        def reading(done: int, total: int) -> None:
            self.problem = f"The daemon reads what this run has told so far: {100 * done // max(1, total)}%"
            self._heard = self._clock()
            changed()

        self.record, self.view = await self._client.snapshot(self.record.id, reading)
        self.problem, self._heard = "", self._clock()
        seen = self._last_seen.seq_of(self.view.run)
        if not self.away and 0 < seen < self.view.last_seq:
            missed = await self._client.replay(self.record.id, seen)
            self.away = since_you_left(missed, self.view)
        self._last_seen.saw(self.view.run, self.view.last_seq)

    def take(self, record: JobRecord) -> None:
        if record.revision >= self.record.revision:
            self.record = record

    def apply(self, item: Event | Beat | JobRecord | BegunAnew) -> None:
        """One message of the daemon."""
        self._heard, self.problem = self._clock(), ""
        match item:
            case Event():
                apply_event(self.view, item)
                self._last_seen.saw(self.view.run, self.view.last_seq)
            case Beat():
                self.beat = next((b for b in item.runs if b.job == self.record.id), None)
            case JobRecord():
                self.take(item)
            case BegunAnew():
                self._begin_anew()

    def _begin_anew(self) -> None:
        self.view, self.anew = RunView(name=self.record.name, steps=self.record.steps), self.anew + 1


class RecordedRun:
    """A run folder without its daemon: what `events.jsonl` says, up to its end. For screenshots and tests."""

    def __init__(self, record: JobRecord, events: list[Event]) -> None:
        self.record, self.view, self.away, self.problem = record, RunView(), "", ""
        self.anew = 0
        for event in events:
            apply_event(self.view, event)
        self.beat: RunBeat | None = RunBeat(
            record.id, record.state, self.view.last_seq, trainer_alive=record.state == "running", seconds_since_step=0.0
        )

    @property
    def beat_age(self) -> float | None:
        return 0.0

    async def follow(self, changed: Callable[[], None]) -> None:
        """Nothing more will come."""
        changed()

    def take(self, record: JobRecord) -> None:
        self.record = record
