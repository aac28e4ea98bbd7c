"""The state of every job, as a pure machine: events in, instructions out. No clock, no files, no processes: those are
in daemon.jobs.service and daemon.jobs.runner, which carry the instructions out.

Each GPU has its own queue, higher priorities first and equal ones in the order of submission: a job runs when it is at
the head of the queue of each of its GPUs and all of them are free, so a job for several GPUs is never overtaken by
small ones of its priority or a lower one. The order is kept in daemon.queue.places; what users ask about it is in
daemon.queue.list_requests.
What a failed attempt or a restarted machine leads to is in daemon.queue.restarts.
"""

from collections.abc import Mapping, Sequence

from daemon.processes.proc import ProcessId
from daemon.queue import restarts
from daemon.queue.entry import AskStop, AttemptResult, Changed, Entry, Instruction, Kill, Launch, Terminate, held
from daemon.queue.list_requests import ON_HOLD, ListRequests, require_priority
from daemon.queue.places import may_start
from daemon.wire.protocol import ENDED_STATES, RUNNING_STATES, JobRecord, PlannedTime
from presets.errors import UserError
from presets.machine.shell import Shell
from presets.text import to_type

CANCEL_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
STOP_GRACE = 900.0  # seconds without any event after which a stop request is repeated as SIGTERM
LINGER_GRACE = 120.0  # seconds a trainer may take to go after it said its last word


class Queue(ListRequests):
    """All jobs. Every method that lets something happen returns what is to be done about it, in order.

    `now` is a clock that nobody sets (time.monotonic); a record's stamps are it plus `wall`.
    """

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
        hold: bool = False,
        planned: PlannedTime | None = None,
        commands: Mapping[str, str] | None = None,
        no_restart: bool = False,
        anyway: bool = False,
    ) -> list[Instruction]:
        """Take in a new job, whose run folder must be free. `resume`: it continues a run that lies there. What a
        restart of the machine has left waiting stays as it is, and holds up no job that comes later."""
        assert record.id not in self.entries
        self.require_free(record)
        require_priority(record.priority)
        self.entries[record.id] = Entry(
            record=record,
            order=self.last_place(),
            resume=resume,
            from_step=from_step,
            accept_changes=accept_changes,
            shell=shell,
            secrets=list(secrets),
            planned=planned,
            commands=dict(commands or {}),
            no_restart=no_restart,
            anyway=anyway,
        )
        restarts.requeue(self.entries[record.id], hold=ON_HOLD if hold else "")
        return [Changed(record.id), *self.fill(now)]

    def require_resumable(self, entry: Entry, *, further: bool = False) -> None:
        """Raises UserError unless the job can be queued again, or is queued and waits for more than its turn.
        `further`: there is something to do even when it is done."""
        record = entry.record
        if record.state == "queued" and (entry.paused or entry.restart_due or entry.busy):
            return
        if record.state == "done" and not further:
            raise UserError(
                "is done, there is nothing to resume",
                where=record.name,
                fix=(
                    f"For more steps raise training.steps in {record.job_path} and resume; to go back, resume from a"
                    f" checkpoint (see: {to_type('checkpoints', record.name)})"
                ),
            )
        if record.state not in ENDED_STATES:
            raise UserError(
                f"is {record.state}, there is nothing to resume",
                where=record.name,
                fix=(
                    f"It is held; let it go with: {to_type('release', record.name)}"
                    if record.held
                    else "Only a job that has ended can be resumed"
                ),
            )
        self.require_free(record)

    def resume(
        self,
        job: int,
        now: float,
        *,
        from_step: int | None = None,
        accept_changes: bool = False,
        further: bool = False,
        hold: bool = False,
        anyway: bool = False,
    ) -> list[Instruction]:
        """Put an ended job back into the queue, to continue from its last checkpoint or that of `from_step`; before all
        others when the machine's restart had broken it off. One that waits for a user's word, or to be restarted, goes
        on, and no other does. Raises UserError."""
        entry = self.entries[job]
        self.require_resumable(entry, further=further)
        record = entry.record
        entry.anyway, entry.restarts = anyway, 0
        if record.state == "queued":
            if from_step is not None or accept_changes:
                entry.from_step, entry.accept_changes = from_step, accept_changes
            entry.hold = ON_HOLD if hold else entry.hold
            restarts.go_on(entry)
            return [Changed(job), *self.fill(now)]
        entry.order = self.first_place() if entry.interrupted else self.last_place()
        entry.from_step, entry.accept_changes = from_step, accept_changes
        restarts.requeue(entry, first=entry.interrupted, hold=ON_HOLD if hold else "")
        return [Changed(job), *self.fill(now)]

    def stop(self, job: int, now: float) -> list[Instruction]:
        """Have a job saved and stopped; one that is already stopping or stopped stays as it is. Raises UserError."""
        entry = self.entries[job]
        match entry.record.state:
            case "queued":
                return self._end(
                    entry,
                    AttemptResult(
                        "stopped", f"Taken from the queue. Queue it again with: {to_type('resume', entry.record.name)}"
                    ),
                    now,
                )
            case "starting" | "running":
                entry.record.state, entry.ending = "stopping", "stop"
                entry.due, entry.due_signal = now + STOP_GRACE, "terminate"
                return [Changed(job), AskStop(job)]
            case "stopping" | "stopped":
                was, entry.interrupted = entry.interrupted, False
                return [Changed(job)] if was else []
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
            case "stopped" if entry.interrupted:
                # a restart of the machine broke it off: its user does not want it back
                entry.ending = "cancel"
                return self._end(entry, AttemptResult("stopped"), now)
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
        entry.trainer, entry.record.pid, entry.record.started_at = trainer, trainer.pid, now + self.wall
        entry.first_seq, entry.oom_kills, entry.record.first = first_seq, oom_kills, False
        return [Changed(job)]

    def started(self, job: int) -> list[Instruction]:
        """The trainer wrote its `started` event: it has read the job and found the machine good."""
        entry = self.entries[job]
        entry.from_step = None  # it has gone back there: another attempt goes on from what this one saves
        if entry.record.state != "starting":
            return []
        entry.record.state = "running"
        return [Changed(job)]

    def said_last_word(self, job: int, now: float) -> list[Instruction]:
        """The trainer wrote done, stopped or failed: it should end soon."""
        entry = self.entries[job]
        waits = entry.due and entry.due_signal == "kill"
        if entry.record.state in RUNNING_STATES and entry.ending != "cancel" and not waits:
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
        entry.due = 0.0  # it may be from another clock
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
        if due := restarts.due(self, now):
            out += due + self.fill(now)
        return out

    def fill(self, now: float) -> list[Instruction]:
        """Start every job whose turn it is."""
        out = self._look_at_predecessors()
        taken = {gpu for e in self.running() for gpu in held(e.record)}
        for entry in self.queued():
            record = entry.record
            if not may_start(entry):  # others may overtake it
                continue
            if taken.isdisjoint(held(record)) and not entry.restart_due and not entry.busy:
                record.state, record.outcome, record.pid = "starting", "", 0
                record.attempt += 1
                entry.trainer = None
                out += [Changed(record.id), Launch(record.id)]
            taken.update(held(record))
        return out + self._renumber()

    # --- inside -----------------------------------------------------------------------------------------------

    def _terminate(self, entry: Entry, now: float) -> list[Instruction]:
        if entry.ending == "cancel":
            entry.due, entry.due_signal = now + CANCEL_GRACE, "kill"
        else:
            entry.due = now + STOP_GRACE
        return [Terminate(entry.record.id)]

    def _end(self, entry: Entry, result: AttemptResult, now: float) -> list[Instruction]:
        return self.finish(entry, result, now) + self.fill(now)

    def finish(self, entry: Entry, result: AttemptResult, now: float) -> list[Instruction]:
        record = entry.record
        record.state, record.outcome = result.state, result.outcome
        if entry.ending == "cancel" and result.state != "done":
            begun = record.attempt > 0 or entry.resume
            record.state, record.outcome = (
                "cancelled",
                ("Cancelled. Its checkpoints stay in the run folder." if begun else "Cancelled before it began."),
            )
        record.finished_at, record.pid, record.position = now + self.wall, 0, 0
        entry.trainer, entry.ending, entry.due = None, "", 0.0
        restarts.go_on(entry, outcome=record.outcome)
        return [Changed(record.id)]
