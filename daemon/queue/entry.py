"""A job as the daemon keeps it, and what the queue wants done about one. Types alone: what happens to them is in
daemon.queue.job_queue, how they lie on disk in daemon.table.job_store."""

from typing import Literal

from msgspec import Struct, field

from daemon.processes.proc import ProcessId
from daemon.wire.protocol import JobRecord, PlannedTime
from presets.machine.shell import Shell

Ending = Literal["", "stop", "cancel"]


class FollowUp(Struct, kw_only=True):
    """What is still to be done after one ending of a job: its command, and messages. Kept until both are."""

    key: str  # another one for each ending
    event: Literal["done", "failed", "stopped", "restarted"]
    session: str  # of the machine or the container, when it ended
    facts: dict[str, str]  # of the run at that time: the environment of the command
    command_due: bool = True
    delivered: list[str] = field(default_factory=list)  # the names of those that were told, or could not be


class Left(Struct, frozen=True):
    """What a run's own events say of the time that it still takes."""

    seconds: float
    step: int  # from this one on
    steps: int  # of so many


class Entry(Struct, kw_only=True):
    """One job: what clients see, and what only the daemon needs."""

    record: JobRecord
    order: int  # in the queue: of equal priorities the lower runs first
    hold: str = ""  # why it does not start although its turn has come, until a user releases it; "": it does
    planned: PlannedTime | None = None  # what the planner of the client that submitted it reckoned with
    pace: float = 0.0  # seconds per step by its own events; 0: it has made none yet
    left: Left | None = None  # by its own events; None: they have said nothing yet
    resume: bool = False  # continue from the last checkpoint
    from_step: int | None = None  # or from the one of this step
    accept_changes: bool = False  # the user has seen how the job file differs from the run that was begun
    ending: Ending = ""  # asked for, and not done yet
    due: float = 0.0  # when the next signal goes out, here and below by time.monotonic; 0: none will
    due_signal: Literal["terminate", "kill"] = "terminate"
    trainer: ProcessId | None = None
    marker: str = ""  # of its trainer's processes, another one for each attempt; "" from before there were keys in it
    first_seq: int = 0  # last event before this attempt
    oom_kills: int = 0  # of the machine, when this attempt started
    shell: Shell | None = None  # of the shell that submitted or resumed it, but for secrets
    # the names of those: their values are in the daemon's memory alone
    secrets: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)  # the secrets that this attempt was started without
    commands: dict[str, str] = field(default_factory=dict)  # event -> its own command for it; "" for none
    follow_ups: list[FollowUp] = field(default_factory=list)
    interrupted: bool = False  # a restart of the machine broke it off, and it waits for the user
    paused: bool = False  # queued since before such a restart, and waits for the user
    no_restart: bool = False  # by the user's choice: it never starts again by itself
    restarts: int = 0  # by itself, since it last got further
    restart_due: float = 0.0  # when it starts again by itself; 0: it does not wait for that
    busy: str = ""  # why its GPUs cannot be had although it is its turn
    anyway: bool = False  # by the user's choice: it starts whoever uses its GPUs


def held(record: JobRecord) -> frozenset[str]:
    """The GPUs that a job has for itself while it runs, whatever its shell calls them. One without any takes its turn
    by their numbers."""
    return frozenset(record.devices or map(str, record.gpus))


class AttemptResult(Struct, frozen=True):
    """How an attempt ended."""

    state: Literal["done", "stopped", "failed"]
    outcome: str = ""
    cause: str = ""  # the part of the outcome that says what went wrong
    may_pass: bool = False  # it failed, and for no reason that the user must mend: another attempt may go well
    lost: bool = False  # it failed because GPUs were lost, and others of its own can go on


class Changed(Struct, frozen=True):
    """Save the job and announce it to the clients."""

    job: int


class Removed(Struct, frozen=True):
    """Forget the job: it is in the queue no more. Its run folder stays."""

    job: int


class Launch(Struct, frozen=True):
    job: int


class AskStop(Struct, frozen=True):
    """Leave a stop request where the trainer looks for it."""

    job: int


class Terminate(Struct, frozen=True):
    job: int


class Kill(Struct, frozen=True):
    job: int


Instruction = Changed | Removed | Launch | AskStop | Terminate | Kill
