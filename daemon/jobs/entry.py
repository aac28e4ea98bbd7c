"""A job as the daemon keeps it, and what the queue wants done about one. Types alone: what happens to them is in
daemon.jobs.job_queue, how they lie on disk in daemon.jobs.job_store."""

from typing import Literal

from msgspec import Struct, field

from daemon.processes.proc import ProcessId
from daemon.wire.protocol import JobRecord
from presets.machine.shell import Shell

Ending = Literal["", "stop", "cancel"]


class Entry(Struct, kw_only=True):
    """One job: what clients see, and what only the daemon needs."""

    record: JobRecord
    order: int  # in the queue: lower runs first
    resume: bool = False  # continue from the last checkpoint
    from_step: int | None = None  # or from the one of this step
    accept_changes: bool = False  # the user has seen how the job file differs from the run that was begun
    ending: Ending = ""  # asked for, and not done yet
    due: float = 0.0  # when the next signal goes out; 0: none will
    due_signal: Literal["terminate", "kill"] = "terminate"
    trainer: ProcessId | None = None
    first_seq: int = 0  # last event before this attempt
    oom_kills: int = 0  # of the machine, when this attempt started
    shell: Shell | None = None  # of the shell that submitted or resumed it, but for secrets
    # the names of those: their values are in the daemon's memory alone
    secrets: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)  # the secrets that this attempt was started without


def held(record: JobRecord) -> frozenset[str]:
    """The GPUs that a job has for itself while it runs, whatever its shell calls them. One without any takes its turn
    by their numbers."""
    return frozenset(record.devices or map(str, record.gpus))


class AttemptResult(Struct, frozen=True):
    """How an attempt ended."""

    state: Literal["done", "stopped", "failed"]
    outcome: str = ""


class Changed(Struct, frozen=True):
    """Save the job and announce it to the clients."""

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


Instruction = Changed | Launch | AskStop | Terminate | Kill
