"""A job as clients see it: a part of many messages (daemon.wire.protocol)."""

from typing import Literal

from msgspec import Struct, field

from presets.machine.gpu_health import GpuHealth
from presets.runs.time_left import PlannedTime

JobState = Literal["queued", "starting", "running", "stopping", "stopped", "done", "failed", "cancelled"]
RUNNING_STATES = frozenset({"starting", "running", "stopping"})  # the job holds its GPUs
LIVE_STATES = RUNNING_STATES | {"queued"}
RESUMABLE_STATES = frozenset({"stopped", "failed", "cancelled"})
ENDED_STATES = RESUMABLE_STATES | {"done"}


class JobRecord(Struct, kw_only=True):
    """One submitted job, as the job table holds it."""

    id: int  # the daemon's number for it
    revision: int = 0  # rises with every change: of two records the higher one is the newer
    name: str  # job.name of its job file, or what the list calls it
    job_path: str  # absolute path of the job file
    out: str  # absolute; the run folder is out/name
    gpus: list[int]  # as job.gpus counts them
    # the same, by UUID where the driver gives it: what CUDA is shown; [] for none
    devices: list[str] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)  # those of `gpus` that its last attempt did without: they were lost
    on_cpu: bool = False  # its trainer, or that of its last attempt, has found no GPU
    state: JobState  # where it stands
    # 1 when it is next on its GPUs, counting the queued jobs that share one and are not held up; of a held or waiting
    # one, what it would have if it were let go; 0 when not queued
    position: int = 0
    priority: int = 0  # the higher one runs first
    order: int = 0  # of two queued jobs of one priority the lower one runs first
    first: bool = False  # it goes before all others, whatever their priorities
    held: str = ""  # why it is queued and does not start before a user lets it go, and what to do; "" when it is not
    after: list[int] = field(default_factory=list)  # ids of the jobs that must be done before it starts
    run_name: str = ""  # of its run folder and files, when the list calls it otherwise
    file_name: str = ""  # what its job file calls it, when it was given another name before it began
    starts_at: float | None = None  # seconds since 1970, as expected, or as it was; None: not known
    ends_at: float | None = None  # the same of its end
    submitted_at: float = 0.0  # wall clock in seconds since 1970, as the next two; 0 before it was so
    started_at: float = 0.0  # its last attempt
    finished_at: float = 0.0  # its last attempt
    attempt: int = 0  # how often it was started
    step: int = 0  # steps done
    steps: int = 0  # steps in all
    pid: int = 0  # of the launcher process, 0 when none runs
    outcome: str = ""  # why it ended and what to do next
    # the phase of its trainer (training, sampling, paused ...); "" before the present attempt has said one, and when no
    # trainer runs
    doing: str = ""
    # the endings (done, failed, stopped) for which it has a command of its own, in place of the one in the settings
    commands: list[str] = field(default_factory=list)
    waiting: str = ""  # why it does not start in its turn, while it is queued; `outcome` says so too
    restart_at: float = 0.0  # wall clock: when it starts again by itself after a failure; 0: it does not
    restarts: int = 0  # how often it did or will have done by then, since it last came to a checkpoint
    most_restarts: int = 0  # how often it does
    interrupted: bool = False  # a restart of the machine broke it off, and it has not been resumed since
    planned: PlannedTime | None = None  # what its plan expects it to take, for estimates; None: it has none

    @property
    def run_dir(self) -> str:
        return f"{self.out}/{self.run_name or self.name}"


class RunMachine(Struct, kw_only=True, omit_defaults=True):
    """How the machine does that a running job is on, seconds ago; None for what is not known."""

    gpus: list[GpuHealth] = field(default_factory=list)  # those of the job that say something
    memory: int | None = None  # bytes that the trainer's processes have
    memory_total: int | None = None  # bytes that the machine has
    disk_free: int | None = None  # bytes, on the disk of its run folder
    disk_used: int | None = None  # bytes of its run folder


class RunBeat(Struct):
    """A live job, or one that ended a short while ago: the last event of a run can be the one that was lost."""

    job: int  # its id
    state: JobState  # where it stands
    last_seq: int  # of its newest event
    trainer_alive: bool  # whether its process lives
    seconds_since_step: float  # or since any later event: loading, sampling and saving are progress too
    machine: RunMachine | None = None  # of a running job, while somebody looks
