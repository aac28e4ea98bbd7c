"""All jobs of one daemon: what the queue decides is committed, announced and carried out, and trainers are watched.

Sockets are in daemon.server, clients' requests in daemon.jobs.requests. What clients should hear is left in `outbox`.
All that must survive is committed before anything is done about it.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from daemon.background_io import BackgroundIO
from daemon.events.event_tail import Tail
from daemon.events.live_reader import LiveReader
from daemon.followup.facts import session_here
from daemon.followup.follow_ups import FollowUps
from daemon.followup.idle import Idle
from daemon.jobs.attempt_result import last_word, progress_of, result_of, with_reasons
from daemon.jobs.restore import restore
from daemon.jobs.runner import Runner
from daemon.jobs.settings_file import SettingsFile
from daemon.machine.lost_gpus import LostGpus, after_loss
from daemon.machine.machine_watch import MachineWatch
from daemon.processes.proc import age
from daemon.queue import restarts
from daemon.queue.entry import AskStop, AttemptResult, Changed, Entry, Instruction, Kill, Launch, Removed, Terminate
from daemon.queue.estimates import measure, refresh
from daemon.queue.job_queue import Queue
from daemon.queue.places import may_start
from daemon.settings import settings_file
from daemon.table.job_copies import tidy
from daemon.table.job_store import Store
from daemon.table.state_disk import mend, refusal, why_not_writable
from daemon.wire import protocol as wire
from daemon.wire.paths import DaemonPaths, make_private
from presets.runs.event_data import StepLine
from presets.runs.events import TERMINAL_KINDS, Event

log = logging.getLogger("daemon")

ESTIMATE_EVERY = 10.0  # seconds
LOOK_AT_SETTINGS = 1.0  # seconds between two looks whether they have changed
TURNING_POINTS = TERMINAL_KINDS | {"started"}  # events that change what a job is doing
WRITE_AGAIN = 2.0  # seconds between two attempts to bring a table in memory to the disk
BEAT_REST = 16  # jobs without a trainer in one beat
BEAT_AFTER_END = 600.0  # seconds for which an ended job stays in the beat


class Service:
    """All jobs. The queue says what is to be done, `apply` does it."""

    def __init__(
        self, paths: DaemonPaths, trainer_command: list[str], *, epoch: str, settings: Path | None = None
    ) -> None:
        """Open the job table, adopt the trainers that still run, and continue where the last daemon ended. To be made
        in a running loop. `settings`: the file; the user's own by default.

        Raises UserError when the table cannot be opened.
        """
        self.paths, self.epoch = paths, epoch
        self.settings = SettingsFile(settings or settings_file())
        self.sign_of_life = paths.state / "alive"  # its time tells the next daemon when this one ended
        self.outbox: list[wire.Feed] = []
        self.background = BackgroundIO()
        self.machine = MachineWatch(self.background)
        self._complaints: set[str] = set()
        self._unsaved: set[int] = set()
        self._beats = 0
        self._unwritable = ""
        self._next_try = 0.0  # when a table in memory is written back, as time.monotonic counts
        self._last_words: dict[int, Event | None] = {}  # those that the queue knows of
        make_private(paths.state)
        make_private(paths.state / "jobs")
        tidy(paths.state / "jobs")
        self._next_estimates = self._next_look = 0.0
        self._settings_look: asyncio.Task[None] | None = None
        self.store = Store(paths.database)
        self.queue = Queue(self.store.entries(), paused=self.store.fact("paused"))
        for trouble in self._table_troubles():
            log.error("%s", trouble)
        self.hurry = asyncio.Event()  # set when a tick has something to notice
        self.runner = Runner(
            paths, trainer_command, self.queue, self.background, self.apply, lambda: not self.unwritable, self.hurry.set
        )
        self._trainers, self.tails = self.runner.trainers, self.runner.tails
        self._lost = LostGpus(self.background, paths.job_file, self.hurry.set)
        # called when there is something in the outbox that did not come of a request or tick
        self.on_news: Callable[[], None] = lambda: None
        self._live = LiveReader(self.tails, self._take, lambda: self.on_news())
        self.follow_ups = FollowUps(
            paths.state,
            self.settings.path,
            self.queue.entries,
            lambda job: self._save([job]),
            lambda job: self.apply([Changed(job)]),
            last_session=self.store.fact("follow_ups"),
        )
        self.remember("follow_ups", session_here())
        self.idle = Idle(paths.state, self.settings.path, self.store.fact("idle"), partial(self.remember, "idle"))
        self._heard: dict[int, float] = {}  # when a trainer last wrote an event, by time.monotonic
        self._ended: dict[int, float] = {}  # when a job ended, by the same
        self.queue.wall = time.time() - time.monotonic()
        restore(self)

    def close(self) -> None:
        """Let go of everything. Trainers keep running."""
        self._live.close()
        with suppress(sqlite3.Error), self.store as store:
            store.set_fact("closed", "1")
        self.store.close()

    def show_life(self) -> None:
        """Leave a sign for the next daemon that this one lives."""
        with suppress(OSError):  # a full disk, perhaps
            self.sign_of_life.touch(mode=0o600)

    # --- carrying out -----------------------------------------------------------------------------------------

    def apply(self, instructions: list[Instruction], *, answered: tuple[str, Entry] | None = None) -> None:
        """Commit and announce every change, then do the rest; it may lead to more."""
        for instruction in instructions:
            if isinstance(instruction, Launch):  # before it is launched: it is found by this if the daemon dies then
                self.queue.entries[instruction.job].marker = self.runner.new_marker(instruction.job)
        changed = list(dict.fromkeys(i.job for i in instructions if isinstance(i, Changed)))
        for job in changed:
            self.queue.entries[job].record.revision += 1
            self.record(self.queue.entries[job])
        removed = [i.job for i in instructions if isinstance(i, Removed)]
        moved = self._estimate() if changed or removed else []
        for job in changed:
            tail = self.tails.get(job)
            self.follow_ups.note(self.queue.entries[job], tail.view if tail else None)
        self._save([*changed, *removed], answered)
        self._announce(dict.fromkeys([*changed, *moved]))
        if removed:
            self.outbox.append(wire.Welcome(self.epoch))
        for instruction in instructions:
            if isinstance(instruction, Removed):
                self._forget(instruction.job)
                continue
            entry = self.queue.entries[instruction.job]
            match instruction:
                case Launch():
                    self.runner.launch(entry)
                case _ if self.runner.is_launching(instruction.job):
                    pass  # it ends before it starts
                case AskStop():
                    self.runner.ask_stop(entry)
                case Terminate():
                    self._trainers[instruction.job].terminate()
                case Kill():
                    log.info("job %d: killing its trainer", instruction.job)
                    self._trainers[instruction.job].kill()

    def _save(self, jobs: list[int], answered: tuple[str, Entry] | None = None) -> None:
        """Commit. What a full disk refuses is kept and tried again at every tick: training must not suffer from it."""
        entries = self.queue.entries
        self._unsaved = {j for j in self._unsaved.union(jobs) if j not in entries or not self.store.holds(entries[j])}
        if not self._unsaved and not answered and not self._unwritable:
            return
        try:
            with self.store as store:
                for job in self._unsaved:
                    if entry := self.queue.entries.get(job):
                        store.save(entry)
                    else:
                        store.forget(job)
                if store.fact("paused") != self.queue.paused:
                    store.set_fact("paused", self.queue.paused)
                if answered:
                    store.remember(answered[0], wire.encode(wire.JobReply(answered[1].record)))
            self._unsaved.clear()
            self._unwritable = ""
        except sqlite3.Error as e:
            self._unwritable = self._unwritable or why_not_writable(self.paths.state) or str(e)
            self._complain(f"the job table cannot be written: {e}; {self._unwritable}")

    @property
    def unwritable(self) -> str:
        """Why the job table is behind what is so, or lies in memory alone; "" when it does not."""
        return self.store.unwritable or self._unwritable

    def require_writable(self) -> None:
        """Raises UserError: what is accepted must be on the disk. Looked at anew."""
        self._write_back(0.0)
        self._save([])
        if self.unwritable and (why := why_not_writable(self.paths.state)):
            raise refusal(why, self.paths.state)

    def _write_back(self, now: float) -> None:
        self.store.notice_removal()
        if not self.store.unwritable or 0 < now < self._next_try:
            return
        self._next_try = now + WRITE_AGAIN
        self.store.write_back()
        if not self.store.unwritable:
            log.info("the job table is on the disk again")

    def _announce(self, jobs: Iterable[int]) -> None:
        self.outbox += [wire.JobChanged(msgspec.structs.replace(self.queue.entries[job].record)) for job in jobs]

    def _forget(self, job: int) -> None:
        """What else there is of a job that was removed."""
        self.runner.secrets.pop(job, None)
        self.tails.forget(job)
        try:
            self.paths.job_file(job).unlink(missing_ok=True)
        except OSError as e:
            self._complain(f"the copy of job {job}'s file cannot be removed: {e}")
        log.info("job %d: removed", job)

    # --- watching ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Read what trainers wrote, notice those that ended, send signals that fell due."""
        now = time.monotonic()
        self.queue.wall = time.time() - now
        self._write_back(now)
        self._save([])
        if time.monotonic() >= self._next_estimates:
            self._next_estimates = time.monotonic() + ESTIMATE_EVERY
            for entry in self.queue.running():
                self.record(entry)
            self._announce(self._estimate())
        for entry in self.queue.running():
            job = entry.record.id
            if self.runner.is_launching(job):
                continue
            trainer = self._trainers[job]
            alive = trainer.poll()
            self._live.follow(entry.record)
            tail = self.tails.get(job)
            if tail is None:  # it is still being read for the first time
                continue
            if entry.record.state == "starting" and tail.started is not None and tail.started.seq > entry.first_seq:
                self.apply(self.queue.started(job))
            if last_word(entry, tail) and self._last_words.get(job) != tail.last_word:
                self._last_words[job] = tail.last_word
                self.apply(self.queue.said_last_word(job, now))
            # of a trainer that has ended, everything is there to be read
            if not alive and self._live.is_settled(job):
                end = result_of(entry, tail, exit_code=trainer.exit_code, log=self.runner.log_of(entry.record))
                if (left := self._lost.after(entry, end)) is None:
                    continue
                self.runner.let_go(job)
                self._live.leave(job)
                measure(entry, tail.view, 0.0)
                end = after_loss(end, left) if left.gone else end
                log.info("job %d: %s %s", job, end.state, end.outcome)
                self.apply(self._after(entry, tail, end, now))
        self.runner.look(now)
        self.apply(
            self.queue.tick(
                now,
                {
                    e.record.id: self.last_event(e)
                    for e in self.queue.running()
                    if e.due and e.record.id in self._trainers
                },
            )
        )
        if self._settings_look is None or (now >= self._next_look and self._settings_look.done()):
            self._next_look = now + LOOK_AT_SETTINGS
            self._settings_look = asyncio.create_task(self.settings.look(self.background))
        self.follow_ups.tick()
        waits = any(may_start(entry) for entry in self.queue.queued())
        self.idle.tick(busy=bool(self.queue.running()) or waits or self.follow_ups.hold_up())

    def _after(self, entry: Entry, tail: Tail, end: AttemptResult, now: float) -> list[Instruction]:
        """What an attempt's end leads to."""
        job, settings = entry.record.id, self.settings.value.daemon
        progress = progress_of(entry, tail)
        delay = restarts.restart_delay(entry, end, progress, most=settings.restarts, delay=settings.restart_delay)
        if delay is not None:
            return restarts.back_off(
                self.queue, job, end, now, delay=delay, most=settings.restarts, saved=progress.saved
            )
        return self.queue.ended(job, with_reasons(entry, end), now)

    def _take(self, job: int, events: Sequence[Event | StepLine]) -> None:
        """New events, which have come into the tail."""
        if events:
            self._heard[job] = time.monotonic()
        # a line is encoded as its event would be
        self.outbox += [wire.RunEvent(job, event) for event in events]  # type: ignore[arg-type]
        if not events or [e for e in events if type(e) is Event and e.kind in TURNING_POINTS]:
            self.hurry.set()

    def last_event(self, entry: Entry) -> float:
        """By time.monotonic; that its trainer started counts as one."""
        job, now = entry.record.id, time.monotonic()
        began, tail = now - age(self._trainers[job].launcher), self.tails.get(entry.record.id)
        if tail is None or job in self._heard:
            return max(began, self._heard.get(job, began))
        # before this daemon has heard it: by the clock of the wall, which may have been set since
        return max(began, now - max(0.0, time.time() - tail.view.updated_at))

    def record(self, entry: Entry) -> wire.JobRecord:
        """The record with the progress of now."""
        if tail := self.tails.get(entry.record.id):
            entry.record.step, entry.record.on_cpu = tail.view.step, tail.view.device == "CPU"
            # what is queued to be resumed may have been given other steps
            if entry.record.state != "queued" and tail.view.attempt >= entry.record.attempt:
                entry.record.steps = tail.view.steps or entry.record.steps
            entry.pace = tail.view.seconds_per_step or entry.pace
        entry.record.doing, entry.record.interrupted = self._doing(entry, tail), entry.interrupted
        entry.record.planned = entry.planned
        return entry.record

    def _doing(self, entry: Entry, tail: Tail | None) -> str:
        """What the trainer of this attempt has said that it does: what an earlier one said last is over."""
        alive = entry.record.id in self._trainers
        return tail.view.phase.name if alive and tail is not None and tail.last_seq > entry.first_seq else ""

    def _estimate(self) -> list[int]:
        """Bring the estimates up to date; the jobs whose estimates have moved."""
        for entry in self.queue.entries.values():
            job, tail = entry.record.id, self.tails.get(entry.record.id)
            if tail is not None and (job in self._trainers or entry.left is None):
                measure(entry, tail.view, time.monotonic() - self.last_event(entry) if job in self._trainers else 0.0)
        return refresh(self.queue, time.time())

    def beat(self, *, looked_at: bool = False) -> wire.Beat:
        """Every job with a trainer, and of the others a few each time, in turn: a beat stays small. `looked_at`: a
        client gets it."""
        if looked_at:
            self.machine.look((e.record, e.record.id in self._trainers) for e in self.queue.running())
        now = time.monotonic()
        live, rest = [], []
        for entry in self.queue.entries.values():
            record, job = entry.record, entry.record.id
            if job in self._trainers:
                live.append(entry)
                self._ended.pop(job, None)
            elif record.state not in wire.ENDED_STATES:
                rest.append(entry)
                self._ended.pop(job, None)
            else:
                since = max(0.0, time.time() - record.finished_at)  # of one that ended under an earlier daemon
                if now - self._ended.setdefault(job, now - since) <= BEAT_AFTER_END:
                    rest.append(entry)
        begin = self._beats * BEAT_REST % max(1, len(rest)) if len(rest) > BEAT_REST else 0
        self._beats += 1
        shown = live + (rest + rest)[begin : begin + min(BEAT_REST, len(rest))]
        return wire.Beat(self.epoch, [self._run_beat(e, now) for e in shown], self.queue.paused, self.idle.left)

    def _run_beat(self, entry: Entry, now: float) -> wire.RunBeat:
        job, tail = entry.record.id, self.tails.get(entry.record.id)
        trainer = job in self._trainers
        quiet = max(0.0, now - self.last_event(entry)) if trainer else 0.0
        last, machine = tail.last_seq if tail else 0, self.machine.of(entry.record)
        return wire.RunBeat(job, entry.record.state, last, trainer, quiet, machine)

    def remember(self, fact: str, value: str) -> None:
        try:
            with self.store as store:
                store.set_fact(fact, value)
        except sqlite3.Error as e:
            self._complain(f"the job table cannot be written: {e}")

    def troubles(self) -> list[str]:
        """What the daemon suffers from, for its users: one line each."""
        return (
            self._table_troubles()
            + self.settings.troubles
            + [
                f"job {record.id} ({record.name}): its events cannot be read: {why}"
                for record, why in self._live.troubles()
            ]
        )

    def _table_troubles(self) -> list[str]:
        found = []
        if self.unwritable:
            found.append(
                f"the job table cannot be written, for {self.unwritable}: changes are kept in memory until it can."
                f" No job is accepted and none starts; what runs goes on. {mend(self.unwritable, self.paths.state)}"
            )
        found += [
            f"job {job} {what}. Its row is left as it is in {self.paths.database}, its run folder too: go on with"
            " `wanlora submit JOB --resume`, or with the version of wanlora that wrote it"
            for job, what in self.store.unreadable.items()
        ]
        return found + [
            f"a damaged job table was set aside, and what could be found in it taken over: {path}. Remove that file"
            " when no job is missing"
            for path in self.store.damaged_files()
        ]

    def _complain(self, text: str) -> None:
        """Log what would otherwise be logged ten times a second."""
        if text not in self._complaints:
            self._complaints.add(text)
            log.error("%s", text)
