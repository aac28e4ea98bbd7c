"""The state of every job, as a pure machine: events in, instructions out. No clock, no files, no processes: those are
in daemon.jobs.service and daemon.jobs.runner, which carry the instructions out.

Each GPU has its own queue, in the order of submission: a job runs when it is at the head of the queue of each of its
GPUs and all of them are free, so a job for several GPUs is never overtaken by small ones.
"""

from collections.abc import Mapping, Sequence

from daemon.jobs.entry import AskStop, AttemptResult, Changed, Entry, Instruction, Kill, Launch, Terminate, held
from daemon.processes.proc import ProcessId
from daemon.wire.protocol import ENDED_STATES, RUNNING_STATES, JobRecord
from presets.errors import UserError
from presets.machine.shell import Shell

CANCEL_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
STOP_GRACE = 900.0  # seconds without any event after which a stop request is repeated as SIGTERM
LINGER_GRACE = 120.0  # seconds a trainer may take to go after it said its last word


class Queue:
    """All jobs. Every method that lets something happen returns what is to be done about it, in order."""

    def __init__(self, entries: list[Entry], *, paused: str = "") -> None:
        self.entries: dict[int, Entry] = {e.record.id: e for e in entries}
        self.paused = paused  # why queued jobs do not start; "" when they do

    # --- reading ----------------------------------------------------------------------------------------------

    def running(self) -> list[Entry]:
        return [e for e in self.entries.values() if e.record.state in RUNNING_STATES]

    def queued(self) -> list[Entry]:
        return sorted((e for e in self.entries.values() if e.record.state == "queued"), key=lambda e: e.order)

    def find(self, key: str) -> Entry:
        """The job of an id or a name; of several with one name the live one, else the newest. Raises UserError."""
        if key.isdecimal() and len(key) < 18 and int(key) in self.entries:
            return self.entries[int(key)]
        named = [e for e in self.entries.values() if e.record.name == key]
        if not named:
            raise UserError("no such job", where=key[:100], fix="See the jobs with: wanlora jobs")
        return max(named, key=lambda e: (e.record.state not in ENDED_STATES, e.record.id))

    def require_free(self, record: JobRecord) -> None:
        """Raises UserError when a live job uses the run folder of this one."""
        for other in self.entries.values():
            if other.record.run_dir == record.run_dir and other.record.state not in ENDED_STATES:
                raise UserError(
                    f"job {other.record.id} ({other.record.state}) already uses the run folder {record.run_dir}",
                    where=record.name,
                    fix="Wait for it or stop it first, or give this job another name",
                )

    def last_place(self) -> int:
        """The order of a job that joins the queue now."""
        return 1 + max((e.order for e in self.entries.values()), default=0)

    def place_for(self, record: JobRecord) -> int:
        """The position of a job that joins the queue now; 0 when it starts at once. To join wakes a paused queue."""
        taken = {gpu for e in self.running() for gpu in held(e.record)}
        waiting: list[frozenset[str]] = []
        for entry in self.queued():
            gpus = held(entry.record)
            if not taken.isdisjoint(gpus):
                waiting.append(gpus)
            taken.update(gpus)
        return 0 if taken.isdisjoint(held(record)) else 1 + sum(not gpus.isdisjoint(held(record)) for gpus in waiting)

    # --- what users ask for -----------------------------------------------------------------------------------

    def submit(
        self,
        record: JobRecord,
        now: float,
        *,
        resume: bool = False,
        from_step: int | None = None,
        accept_changes: bool = False,
        shell: Shell | None = None,
        secrets: Sequence[str] = (),
    ) -> list[Instruction]:
        """Take in a new job, whose run folder must be free. `resume`: it continues a run that lies there."""
        assert record.id not in self.entries
        self.require_free(record)
        self.entries[record.id] = Entry(
            record=record,
            order=self.last_place(),
            resume=resume,
            from_step=from_step,
            accept_changes=accept_changes,
            shell=shell,
            secrets=list(secrets),
        )
        self._enqueue(self.entries[record.id])
        return self._unpause(record.id, now)

    def require_resumable(self, entry: Entry, *, further: bool = False) -> None:
        """Raises UserError unless the job can be queued again. `further`: there is something to do even when it is
        done."""
        record = entry.record
        if record.state == "queued" and self.paused:
            return
        if record.state == "done" and not further:
            raise UserError(
                "is done, there is nothing to resume",
                where=record.name,
                fix=(
                    f"For more steps raise training.steps in {record.job_path} and resume; to go back, resume from a"
                    f" checkpoint (see: wanlora checkpoints {record.name})"
                ),
            )
        if record.state not in ENDED_STATES:
            raise UserError(
                f"is {record.state}, there is nothing to resume",
                where=record.name,
                fix="Only a job that has ended can be resumed",
            )
        self.require_free(record)

    def resume(
        self, job: int, now: float, *, from_step: int | None = None, accept_changes: bool = False, further: bool = False
    ) -> list[Instruction]:
        """Put an ended job back into the queue, to continue from its last checkpoint or that of `from_step`. Raises
        UserError."""
        entry = self.entries[job]
        self.require_resumable(entry, further=further)
        record = entry.record
        if record.state == "queued":
            if from_step is not None or accept_changes:
                entry.from_step, entry.accept_changes = from_step, accept_changes
            return self._unpause(job, now)
        entry.resume, entry.order = entry.resume or record.attempt > 0, self.last_place()
        entry.from_step, entry.accept_changes = from_step, accept_changes
        record.finished_at = 0.0
        self._enqueue(entry)
        return self._unpause(job, now)

    def stop(self, job: int, now: float) -> list[Instruction]:
        """Have a job saved and stopped; one that is already stopping or stopped stays as it is. Raises UserError."""
        entry = self.entries[job]
        match entry.record.state:
            case "queued":
                return self._end(
                    entry,
                    AttemptResult(
                        "stopped", "Taken from the queue. Queue it again with: wanlora resume " + entry.record.name
                    ),
                    now,
                )
            case "starting" | "running":
                entry.record.state, entry.ending = "stopping", "stop"
                entry.due, entry.due_signal = now + STOP_GRACE, "terminate"
                return [Changed(job), AskStop(job)]
            case "stopping" | "stopped":
                return []
        raise UserError(f"is {entry.record.state}, there is nothing to stop", where=entry.record.name)

    def cancel(self, job: int, now: float) -> list[Instruction]:
        """Take a job from the queue, or end its trainer without waiting for a checkpoint. Raises UserError."""
        entry = self.entries[job]
        match entry.record.state:
            case "queued":
                entry.ending = "cancel"
                return self._end(entry, AttemptResult("stopped", "Taken from the queue."), now)
            case "starting" | "running" | "stopping":
                if entry.ending == "cancel":
                    return []
                entry.record.state, entry.ending = "stopping", "cancel"
                return [Changed(job), *self._terminate(entry, now)]
            case "cancelled":
                return []
        raise UserError(f"is {entry.record.state}, there is nothing to cancel", where=entry.record.name)

    # --- what happens to trainers -----------------------------------------------------------------------------

    def launched(
        self, job: int, trainer: ProcessId, now: float, *, first_seq: int, oom_kills: int
    ) -> list[Instruction]:
        """The launcher of the job's trainer runs."""
        entry = self.entries[job]
        assert entry.record.state in RUNNING_STATES, entry.record.state
        entry.trainer, entry.record.pid, entry.record.started_at = trainer, trainer.pid, now
        entry.first_seq, entry.oom_kills = first_seq, oom_kills
        return [Changed(job)]

    def started(self, job: int) -> list[Instruction]:
        """The trainer wrote its `started` event: it has read the job and found the machine good."""
        entry = self.entries[job]
        if entry.record.state != "starting":
            return []
        entry.record.state = "running"
        return [Changed(job)]

    def said_last_word(self, job: int, now: float) -> list[Instruction]:
        """The trainer wrote done, stopped or failed: it should end soon."""
        entry = self.entries[job]
        if entry.record.state in RUNNING_STATES and entry.ending != "cancel":
            entry.due, entry.due_signal = now + LINGER_GRACE, "kill"
        return []

    def ended(self, job: int, result: AttemptResult, now: float) -> list[Instruction]:
        """All processes of the trainer have ended."""
        entry = self.entries[job]
        assert entry.record.state in RUNNING_STATES, entry.record.state
        return self._end(entry, result, now)

    def adopted(self, job: int, now: float) -> list[Instruction]:
        """A new daemon found the trainer alive. A request to end it that the old daemon took still stands."""
        entry = self.entries[job]
        if entry.ending == "cancel":
            return self._terminate(entry, now)
        if entry.ending == "stop":
            entry.due, entry.due_signal = now + STOP_GRACE, "terminate"
            return [AskStop(job)]
        return []

    def never_launched(self, job: int, now: float) -> list[Instruction]:
        """The old daemon died between its decision to launch and the launch: the job is queued as before."""
        entry = self.entries[job]
        record = entry.record
        assert record.state in RUNNING_STATES, record.state
        record.attempt -= 1
        if entry.ending:
            return self._end(entry, AttemptResult("stopped", "Ended before it started."), now)
        record.state = "queued"
        return [Changed(job), *self.fill(now)]

    def rebooted(self, now: float, finished: Mapping[int, AttemptResult]) -> list[Instruction]:
        """The machine restarted: nothing runs any more, and nothing starts before a user has looked.

        `finished`: what became of the jobs that had come to their end before.
        """
        out: list[Instruction] = []
        for entry in self.running():
            where = f" at step {entry.record.step}" if entry.record.step else ""
            broken_off = AttemptResult(
                "stopped",
                f"The machine restarted while this job ran{where}. Resume from the last checkpoint with: wanlora resume"
                f" {entry.record.name}",
            )
            out += self._finish(entry, finished.get(entry.record.id, broken_off), now)
        if queued := self.queued():
            self.paused = "The machine restarted. The queue waits until a job is resumed or submitted."
            for entry in queued:
                entry.record.outcome = self.paused
                out.append(Changed(entry.record.id))
        return out + self._renumber()

    def tick(self, now: float, last_event: Mapping[int, float]) -> list[Instruction]:
        """Send what has fallen due. `last_event`: when each running job last wrote an event, in the same clock."""
        out: list[Instruction] = []
        for entry in self.running():
            job = entry.record.id
            if not entry.due or now < entry.due:
                continue
            if (
                entry.ending == "stop"
                and entry.due_signal == "terminate"
                and now - last_event.get(job, 0.0) < STOP_GRACE
            ):
                entry.due = last_event[job] + STOP_GRACE  # a long step, or a large checkpoint: it makes progress
                continue
            if entry.due_signal == "kill":
                entry.due = now + CANCEL_GRACE  # and again, should a process not have ended by then
                out.append(Kill(job))
            else:
                out += self._terminate(entry, now)
        return out

    def fill(self, now: float) -> list[Instruction]:
        """Start every job whose turn it is."""
        out: list[Instruction] = []
        if not self.paused:
            taken = {gpu for e in self.running() for gpu in held(e.record)}
            for entry in self.queued():
                record = entry.record
                if taken.isdisjoint(held(record)):
                    record.state, record.outcome, record.pid = "starting", "", 0
                    record.attempt += 1
                    entry.trainer = None
                    out += [Changed(record.id), Launch(record.id)]
                taken.update(held(record))
        return out + self._renumber()

    # --- inside -----------------------------------------------------------------------------------------------

    def _enqueue(self, entry: Entry) -> None:
        entry.record.state, entry.record.outcome, entry.ending = "queued", "", ""
        entry.record.pid, entry.trainer, entry.due = 0, None, 0.0

    def _unpause(self, job: int, now: float) -> list[Instruction]:
        out: list[Instruction] = [Changed(job)]
        if self.paused:
            for entry in self.queued():
                if entry.record.outcome == self.paused:
                    entry.record.outcome = ""
                    out.append(Changed(entry.record.id))
            self.paused = ""
        return out + self.fill(now)

    def _terminate(self, entry: Entry, now: float) -> list[Instruction]:
        if entry.ending == "cancel":
            entry.due, entry.due_signal = now + CANCEL_GRACE, "kill"
        else:
            entry.due = now + STOP_GRACE
        return [Terminate(entry.record.id)]

    def _end(self, entry: Entry, result: AttemptResult, now: float) -> list[Instruction]:
        return self._finish(entry, result, now) + self.fill(now)

    def _finish(self, entry: Entry, result: AttemptResult, now: float) -> list[Instruction]:
        record = entry.record
        record.state, record.outcome = result.state, result.outcome
        if entry.ending == "cancel" and result.state != "done":
            begun = record.attempt > 0 or entry.resume
            record.state, record.outcome = (
                "cancelled",
                ("Cancelled. Its checkpoints stay in the run folder." if begun else "Cancelled before it began."),
            )
        record.finished_at, record.pid, record.position = now, 0, 0
        entry.trainer, entry.ending, entry.due = None, "", 0.0
        return [Changed(record.id)]

    def _renumber(self) -> list[Instruction]:
        """Bring every job's place in the queue up to date."""
        out: list[Instruction] = []
        ahead: list[frozenset[str]] = []
        for entry in self.entries.values():
            if entry.record.state != "queued":
                entry.record.position = 0
        for entry in self.queued():
            gpus = held(entry.record)
            position = 1 + sum(not gpus.isdisjoint(other) for other in ahead)
            if position != entry.record.position:
                entry.record.position = position
                out.append(Changed(entry.record.id))
            ahead.append(gpus)
        return out
