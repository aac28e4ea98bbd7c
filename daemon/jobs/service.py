"""All jobs of one daemon: what the queue decides is committed, announced and carried out, and trainers are watched.

Sockets are in daemon.server, clients' requests in daemon.jobs.requests. What clients should hear is left in `outbox`.
All that must survive is committed before anything is done about it.
"""

import logging
import sqlite3
import time

import msgspec

from daemon.jobs.attempt_result import last_word, result_of
from daemon.jobs.background_io import BackgroundIO
from daemon.jobs.entry import AskStop, AttemptResult, Changed, Entry, Instruction, Kill, Launch, Terminate
from daemon.jobs.job_queue import Queue
from daemon.jobs.job_store import Store
from daemon.jobs.runner import Runner
from daemon.processes.proc import boot_id, is_alive, marked, oom_kills
from daemon.processes.trainer_process import Trainer
from daemon.wire import protocol as wire
from daemon.wire.paths import DaemonPaths, make_private
from presets.machine.gpus import visible_gpus
from presets.machine.visible_gpus import pick

log = logging.getLogger("daemon")

BEAT_AFTER_END = 600.0  # seconds for which an ended job stays in the beat


class Service:
    """All jobs. The queue says what is to be done, `apply` does it."""

    def __init__(self, paths: DaemonPaths, trainer_command: list[str], *, epoch: str) -> None:
        """Open the job table, adopt the trainers that still run, and continue where the last daemon ended. To be made
        in a running loop.

        Raises UserError when the table cannot be opened.
        """
        self.paths, self.epoch = paths, epoch
        self.outbox: list[wire.Feed] = []
        self.background = BackgroundIO()
        self._complaints: set[str] = set()
        self._unsaved: set[int] = set()
        make_private(paths.state)
        make_private(paths.state / "jobs")
        self.store = Store(paths.database)
        self.queue = Queue(self.store.entries(), paused=self.store.fact("paused"))
        self.runner = Runner(paths, trainer_command, self.queue, self.background, self.apply)
        self._trainers, self.tails = self.runner.trainers, self.runner.tails
        self._restore()

    def close(self) -> None:
        """Let go of everything. Trainers keep running."""
        self.store.close()

    # --- coming back ------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        now = time.time()
        nameless = [
            e
            for e in self.queue.entries.values()
            if e.record.state in wire.LIVE_STATES and e.shell is None and not e.record.devices
        ]
        visible = visible_gpus() if nameless else None
        for entry in nameless:  # from before the table held the names
            entry.record.devices = pick(entry.record.gpus, visible, all_of_them=True)
        for entry in self.queue.running():
            self._read(entry, publish=False)
        boot, last_boot = boot_id(), self.store.fact("boot")
        with self.store as store:
            store.set_fact("boot", boot)
        if last_boot and last_boot != boot:
            log.info("the machine restarted")
            said = {e.record.id: last_word(e, self.tails[e.record.id]) for e in self.queue.running()}
            self.apply(
                self.queue.rebooted(
                    now, {job: word for job, word in said.items() if word is not None and word.state != "stopped"}
                )
            )
            return
        for entry in self.queue.running():
            job, marker = entry.record.id, self.runner.marker(entry.record.id)
            process = entry.trainer
            if process is None and (found := marked(marker)):  # the old daemon died right after launching it
                process = found[0]
                self.apply(self.queue.launched(job, process, now, first_seq=entry.first_seq, oom_kills=oom_kills()))
            if process is None:
                log.info("job %d had not been launched yet", job)
                self.apply(self.queue.never_launched(job, now))
            else:
                self._trainers[job] = Trainer(process, marker)
                log.info("job %d: %s trainer %d", job, "adopted" if is_alive(process) else "lost", process.pid)
                self.apply(self.queue.adopted(job, now))
        self.apply(self.queue.fill(now))

    # --- carrying out -----------------------------------------------------------------------------------------

    def apply(self, instructions: list[Instruction], *, answered: tuple[str, Entry] | None = None) -> None:
        """Commit and announce every change, then do the rest; it may lead to more."""
        changed = list(dict.fromkeys(i.job for i in instructions if isinstance(i, Changed)))
        for job in changed:
            self.queue.entries[job].record.revision += 1
            self.record(self.queue.entries[job])
        self._save(changed, answered)
        self.outbox += [wire.JobChanged(msgspec.structs.replace(self.queue.entries[job].record)) for job in changed]
        for instruction in instructions:
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
        self._unsaved.update(jobs)
        if not self._unsaved and not answered:
            return
        try:
            with self.store as store:
                for job in self._unsaved:
                    store.save(self.queue.entries[job])
                if store.fact("paused") != self.queue.paused:
                    store.set_fact("paused", self.queue.paused)
                if answered:
                    store.remember(answered[0], wire.encode(wire.JobReply(answered[1].record)))
            self._unsaved.clear()
        except sqlite3.Error as e:
            self._complain(f"the job table cannot be written: {e}")

    # --- watching ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Read what trainers wrote, notice those that ended, send signals that fell due."""
        now = time.time()
        self._save([])
        for entry in self.queue.running():
            job = entry.record.id
            if self.runner.is_launching(job):
                continue
            trainer, tail = self._trainers[job], self.tails[job]
            alive = trainer.poll()  # before reading: of a trainer that has ended, everything is there to be read
            more = self._read(entry, publish=True)
            if tail.started is not None and tail.started.seq > entry.first_seq:
                self.apply(self.queue.started(job))
            if last_word(entry, tail) and not more:
                self.apply(self.queue.said_last_word(job, now))
            if not alive and not more:
                del self._trainers[job]
                end = result_of(entry, tail, exit_code=trainer.exit_code, log=self.runner.log_of(entry.record))
                if end.state == "failed" and entry.lacking:
                    names = " and ".join(entry.lacking)
                    end = AttemptResult(
                        "failed",
                        f"{end.outcome}\n{names} of the shell that it came from was not at hand: the daemon keeps that"
                        " in memory alone, and was restarted. If it is needed, resume from a shell that has it: wanlora"
                        f" resume {entry.record.name}",
                    )
                log.info("job %d: %s %s", job, end.state, end.outcome)
                self.apply(self.queue.ended(job, end, now))
        self.apply(
            self.queue.tick(
                now, {e.record.id: self._last_event(e) for e in self.queue.running() if e.record.id in self._trainers}
            )
        )

    def _read(self, entry: Entry, *, publish: bool) -> bool:
        """Take in new events; True when there are more to come at once. Without `publish` it reads to the end."""
        job = entry.record.id
        tail = self.tails.open(entry.record)
        try:
            events = tail.poll()
            while events and not publish:
                events = tail.poll()
        except OSError as e:
            self._complain(f"job {job}: {tail.path} cannot be read: {e}")
            return False
        self.outbox += [wire.RunEvent(job, event) for event in events]
        self.record(entry)
        return bool(events)

    def _last_event(self, entry: Entry) -> float:
        return max(self.tails[entry.record.id].view.updated_at, entry.record.started_at)

    def record(self, entry: Entry) -> wire.JobRecord:
        """The record with the progress of now."""
        if tail := self.tails.get(entry.record.id):
            entry.record.step = tail.view.step
            # what is queued to be resumed may have been given other steps
            if entry.record.state != "queued" and tail.view.attempt >= entry.record.attempt:
                entry.record.steps = tail.view.steps or entry.record.steps
            entry.record.doing = tail.view.phase.name if entry.record.id in self._trainers else ""
        return entry.record

    def beat(self) -> wire.Beat:
        now = time.time()
        runs = []
        for entry in self.queue.entries.values():
            record, job = entry.record, entry.record.id
            if record.state in wire.ENDED_STATES and now - record.finished_at > BEAT_AFTER_END:
                continue
            trainer = job in self._trainers
            quiet = max(0.0, now - self._last_event(entry)) if trainer else 0.0
            tail = self.tails.get(job)
            runs.append(wire.RunBeat(job, record.state, tail.last_seq if tail else 0, trainer, quiet))
        return wire.Beat(self.epoch, runs)

    def _complain(self, text: str) -> None:
        """Log what would otherwise be logged ten times a second."""
        if text not in self._complaints:
            self._complaints.add(text)
            log.error("%s", text)
