"""What the daemon answers: parts of daemon.wire.protocol, which has the requests."""

from msgspec import Struct, field

from daemon.wire.records import JobRecord
from presets.findings import Finding
from presets.job.resume_check import ResumeCheck
from presets.runs.checkpoints import StoredCheckpoint
from presets.runs.events import Event
from presets.runs.run_view import RunView


class NotifyResult(Struct):
    """What became of one test message."""

    name: str  # as in the settings
    kind: str  # as in the settings
    ok: bool  # whether it was taken
    text: str  # what came back


class NotifyReply(Struct, tag=True):
    """What came of the test messages."""

    results: list[NotifyResult]  # in the order of the settings


class DiskRoom(Struct):
    """How much room a folder's disk has."""

    path: str  # of the folder
    free: int  # bytes, as for all who are not root
    total: int  # bytes of the whole disk


class RunHealth(Struct):
    """A job that runs."""

    job: int  # its id
    name: str  # as in JobRecord
    state: str  # as in JobRecord
    doing: str  # as in JobRecord
    step: int  # as in JobRecord
    steps: int  # as in JobRecord
    quiet: float  # seconds since its last event
    trainer_alive: bool  # whether any process of its trainer runs
    held_out: float | None = None  # its newest held-out loss, over both experts; none: not measured
    best_step: int | None = None  # of the best checkpoint that is left: by held-out loss, and by measured previews


class HealthReply(Struct, tag=True, kw_only=True):
    """How the daemon does."""

    problems: list[str]  # for people, the worst first; none: healthy
    uptime: float  # seconds
    queue: dict[str, int]  # state -> jobs
    paused: str  # why queued jobs do not start; "" when they do
    runs: list[RunHealth]  # jobs that run
    disks: list[DiskRoom]  # of the state folder first, then of the folders of those that run
    table_writable: bool  # whether the job table is on its disk as it should be
    follow_ups: int  # commands and messages that are under way or due
    failures: list[str]  # of those, the newest last, with their time
    idle_in: float | None  # as in JobsReply
    rss: int  # bytes of memory of the daemon
    threads: int  # of the daemon
    descriptors: int  # open files and sockets of the daemon
    connections: int  # of clients
    log_bytes: int  # of the daemon's log


class HelloReply(Struct, tag=True):
    """Who answers."""

    version: int  # the protocol that the daemon speaks
    epoch: str  # another one for each daemon process
    pid: int  # of the daemon's process
    wanlora: str = ""  # the version of its package; "" up to 0.1.0, here and below
    state_dir: str = ""  # may be another than the client's, which finds its way by the runtime directory then


class JobReply(Struct, tag=True):
    """The job that was asked for or acted on, as it is now."""

    job: JobRecord  # its record
    note: str = ""  # which job was taken, when the one that was named could have been another


class JobsReply(Struct, tag=True):
    """All jobs."""

    jobs: list[JobRecord]  # oldest first
    paused: str = ""  # why no queued job starts; "" when they do
    idle_in: float | None = None  # seconds until the idle command runs, unless a job comes; None: it will not
    troubles: list[str] = field(default_factory=list)  # what the daemon itself suffers from: one line each


class SnapshotReply(Struct, tag=True):
    """A job and all that its events add up to."""

    job: JobRecord  # its record
    view: RunView  # its last_seq says up to which event
    note: str = ""  # as in JobReply


class ReplayReply(Struct, tag=True):
    """A page of events."""

    events: list[Event]  # in order, without gaps
    more: bool  # whether there are later ones: ask again, since the last of these


class ChangesReply(Struct, tag=True):
    """How a job file differs from the run's job, and whether it may be resumed so."""

    job: JobRecord  # its record
    resume_check: ResumeCheck = field(name="going_on")  # the key that daemons and clients of this version know


class CheckpointsReply(Struct, tag=True):
    """What a job can go back to."""

    job: JobRecord  # its record
    checkpoints: list[StoredCheckpoint]  # oldest first
    note: str = ""  # as in JobReply


class Reading(Struct, tag=True):
    """The job's events are being read; nothing has to be asked for that to go on."""

    done: int  # bytes that have been read
    total: int  # bytes that there are


class Done(Struct, tag=True):
    """It is so."""


class Refused(Struct, tag=True):
    """The request was understood and refused: a user's error, with its fix."""

    what: str  # what is wrong
    fix: str = ""  # what to do about it
    findings: list[Finding] = field(default_factory=list)  # more, where the job itself is at fault
