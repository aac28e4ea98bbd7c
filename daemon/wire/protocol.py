"""Messages between the daemon and its clients: msgpack tagged Structs, never pickle.

Two sockets, both `ipc://` in a 0700 directory. ROUTER takes a `Request` and answers with a `Reply` that carries the
same request id; commands are idempotent under it. XPUB sends a `Welcome` whenever somebody subscribes, then `Feed`
messages.

`Envelope`, `Hello`, `HelloReply`, `Shutdown`, `Done` and `Refused` stay as they are in every protocol version (optional
keys may come), and the daemon answers `Hello` and `Shutdown` of any version in the version of the request. So two
versions can always tell each other apart, say which side to upgrade, and an older or newer daemon can be ended. What is
refused is answered in the daemon's own version.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from presets.findings import Finding
from presets.job.resume_check import ResumeCheck
from presets.machine.shell import Shell
from presets.runs.checkpoints import StoredCheckpoint
from presets.runs.events import Event
from presets.runs.run_view import RunView

PROTOCOL_VERSION = 3
MAX_MESSAGE_BYTES = 8 * 2**20  # what the daemon takes from a client, and what the feed carries
MAX_REPLY_BYTES = 64 * 2**20  # a snapshot has one loss point per step: 15 bytes each, up to a million steps
MAX_EVENT_BYTES = 2**20  # a longer line of events.jsonl counts as damaged
REPLAY_PAGE = 500  # events per reply, fewer when they are large
REPLAY_PAGE_BYTES = 2 * 2**20

JobState = Literal["queued", "starting", "running", "stopping", "stopped", "done", "failed", "cancelled"]
RUNNING_STATES = frozenset({"starting", "running", "stopping"})  # the job holds its GPUs
LIVE_STATES = RUNNING_STATES | {"queued"}
RESUMABLE_STATES = frozenset({"stopped", "failed", "cancelled"})
ENDED_STATES = RESUMABLE_STATES | {"done"}


class JobRecord(Struct, kw_only=True):
    """One submitted job, as the job table holds it."""

    id: int
    revision: int = 0  # rises with every change: of two records the higher one is the newer
    name: str
    job_path: str  # absolute
    out: str  # absolute; the run folder is out/name
    gpus: list[int]
    # the same, by UUID where the driver gives it: what CUDA is shown; [] for none
    devices: list[str] = field(default_factory=list)
    state: JobState
    position: int = 0  # 1 when it is next on its GPUs, counting the queued jobs that share one; 0 when not queued
    submitted_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    attempt: int = 0
    step: int = 0
    steps: int = 0
    pid: int = 0  # of the launcher process, 0 when none runs
    outcome: str = ""  # why it ended and what to do next
    doing: str = ""  # the phase of its trainer (training, sampling, paused ...); "" when none runs

    @property
    def run_dir(self) -> str:
        return f"{self.out}/{self.name}"


# --- requests -------------------------------------------------------------------------------------------------


class Hello(Struct, tag=True):
    version: int


class Submit(Struct, tag=True):
    job_path: str  # absolute
    out: str = ""  # absolute; default: the folder `runs` beside the job file
    resume: bool = False  # continue the run that lies in the run folder, from here on as in Resume
    from_step: int | None = None
    accepted: str | None = None
    # what the trainer gets of the shell that submits; None: nothing, as from another machine
    shell: Shell | None = None


class Jobs(Struct, tag=True):
    pass


class Show(Struct, tag=True):
    """One job's record."""

    job: str  # id or name, here and below; a name means its live job, else the newest one


class Snapshot(Struct, tag=True):
    """One job's record and the fold of its events."""

    job: str


class Replay(Struct, tag=True):
    job: str
    since: int  # events with a greater seq, at most REPLAY_PAGE of them


class Stop(Struct, tag=True):
    """Save, then stop; the job can be resumed."""

    job: str


class Resume(Struct, tag=True):
    """Queue an ended job again. Its job file is read anew; changes that break exactness must be accepted, those that
    were shown and no others."""

    job: str
    from_step: int | None = None  # go back to the checkpoint of this step; default: the newest
    # ResumeCheck.digest of the changes that the user accepts, also of none: clips and captions may have changed too;
    # None: nothing is accepted
    accepted: str | None = None
    shell: Shell | None = None  # in place of the one before; None leaves that


class Changes(Struct, tag=True):
    """How the job file differs by now from what the last attempt was given."""

    job: str


class Checkpoints(Struct, tag=True):
    """The checkpoints that a job can go back to."""

    job: str


class Set(Struct, tag=True):
    """Change one of presets.job.diff.LIVE_FIELDS of a running job, from its next step on."""

    job: str
    field: str
    value: str  # as after --set


class SaveNow(Struct, tag=True):
    """Have a running job write a checkpoint after the step it is at, and continue."""

    job: str


class SampleNow(Struct, tag=True):
    """Have a running job make its previews after the step it is at, and continue."""

    job: str


class Cancel(Struct, tag=True):
    """Take the job from the queue, or end its trainer without saving; checkpoints stay."""

    job: str


class Shutdown(Struct, tag=True):
    """End the daemon. Trainers keep running and are adopted by the next one."""


Command = (
    Hello
    | Submit
    | Jobs
    | Show
    | Snapshot
    | Replay
    | Stop
    | Resume
    | Changes
    | Checkpoints
    | Set
    | SaveNow
    | SampleNow
    | Cancel
    | Shutdown
)


class Request(Struct, kw_only=True):
    version: int = PROTOCOL_VERSION
    id: str  # made by the client; the same id again gets the same answer and acts once
    command: Command


class Envelope(Struct):
    """What is read first of any Request or Reply, whatever its protocol version."""

    version: int = 0
    id: str = ""


class AnyVersionRequest(Struct, kw_only=True):
    """What is understood in every version."""

    version: int
    id: str
    command: Hello | Shutdown


# --- replies --------------------------------------------------------------------------------------------------


class HelloReply(Struct, tag=True):
    version: int
    epoch: str  # another one for each daemon process
    pid: int
    wanlora: str = ""  # the version of its package; "" up to 0.1.0, here and below
    state_dir: str = ""  # may be another than the client's, which finds its way by the runtime directory then


class JobReply(Struct, tag=True):
    job: JobRecord


class JobsReply(Struct, tag=True):
    jobs: list[JobRecord]


class SnapshotReply(Struct, tag=True):
    job: JobRecord
    view: RunView


class ReplayReply(Struct, tag=True):
    events: list[Event]
    more: bool


class ChangesReply(Struct, tag=True):
    job: JobRecord
    resume_check: ResumeCheck = field(name="going_on")  # the key that daemons and clients of this version know


class CheckpointsReply(Struct, tag=True):
    job: JobRecord
    checkpoints: list[StoredCheckpoint]  # oldest first


class Done(Struct, tag=True):
    pass


class Refused(Struct, tag=True):
    """The request was understood and refused: a user's error, with its fix."""

    what: str
    fix: str = ""
    findings: list[Finding] = field(default_factory=list)


Answer = (
    HelloReply | JobReply | JobsReply | SnapshotReply | ReplayReply | ChangesReply | CheckpointsReply | Done | Refused
)


class Reply(Struct, kw_only=True):
    version: int = PROTOCOL_VERSION
    id: str
    answer: Answer


class AnyVersionReply(Struct, kw_only=True):
    """The replies that are understood in every version."""

    version: int
    id: str
    answer: HelloReply | Done | Refused


# --- feed -----------------------------------------------------------------------------------------------------


class Welcome(Struct, tag=True):
    """The subscription is established: nothing published after this is missed."""

    epoch: str


class RunBeat(Struct):
    """A live job, or one that ended a short while ago: the last event of a run can be the one that was lost."""

    job: int
    state: JobState
    last_seq: int
    trainer_alive: bool
    seconds_since_step: float  # or since any later event: loading, sampling and saving are progress too


class Beat(Struct, tag=True):
    """Once a second: the daemon lives; `last_seq` and `state` betray a lost message, `epoch` a new daemon."""

    epoch: str
    runs: list[RunBeat]


class RunEvent(Struct, tag=True):
    job: int
    event: Event


class JobChanged(Struct, tag=True):
    job: JobRecord


Feed = Welcome | Beat | RunEvent | JobChanged

_encoder = msgspec.msgpack.Encoder()


def encode(message: Any) -> bytes:
    return _encoder.encode(message)


envelope_decoder = msgspec.msgpack.Decoder(Envelope)
request_decoder = msgspec.msgpack.Decoder(Request)
any_version_decoder = msgspec.msgpack.Decoder(AnyVersionRequest)
reply_decoder = msgspec.msgpack.Decoder(Reply)
feed_decoder = msgspec.msgpack.Decoder(Feed)
