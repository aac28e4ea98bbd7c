"""Messages between the daemon and its clients: msgpack tagged Structs, never pickle.

Two sockets, both `ipc://` in a 0700 directory. ROUTER takes a `Request` and answers with a `Reply` that carries the
same request id; commands are idempotent under it. XPUB sends a `Welcome` whenever somebody subscribes, then `Feed`
messages.

`Envelope`, `Hello`, `HelloReply`, `Shutdown`, `Done` and `Refused` stay as they are in every protocol version (optional
keys may come), and the daemon answers `Hello` and `Shutdown` of any version in the version of the request. So two
versions can always tell each other apart, say which side to upgrade, and an older or newer daemon can be ended. What is
refused is answered in the daemon's own version.

Answers are in daemon.wire.answers, requests about the list of jobs in daemon.wire.list_messages, a job's record in
daemon.wire.records.
"""

from typing import Any

import msgspec
from msgspec import Struct, field

from daemon.wire.answers import (
    ChangesReply,
    CheckpointsReply,
    Done,
    HealthReply,
    HelloReply,
    JobReply,
    JobsReply,
    NotifyReply,
    Reading,
    Refused,
    ReplayReply,
    SnapshotReply,
)
from daemon.wire.list_messages import Hold, Move, PlannedTime, Release, Remove, Rename, SetPriority
from daemon.wire.records import ENDED_STATES as ENDED_STATES
from daemon.wire.records import LIVE_STATES as LIVE_STATES
from daemon.wire.records import RESUMABLE_STATES as RESUMABLE_STATES
from daemon.wire.records import RUNNING_STATES as RUNNING_STATES
from daemon.wire.records import JobRecord, RunBeat
from daemon.wire.records import JobState as JobState
from presets.machine.shell import Shell
from presets.runs.events import Event

PROTOCOL_VERSION = 4
MAX_REQUEST_BYTES = 2**20  # what the daemon takes from a client
MAX_MESSAGE_BYTES = 8 * 2**20  # what the feed carries
MAX_REPLY_BYTES = 64 * 2**20  # a snapshot has far less: presets.runs.run_view bounds what a view holds
MAX_ID = 200  # characters of a request id
LANE = 16  # requests of one client that may wait for their turn
MAX_EVENT_BYTES = 2**20  # a longer line of events.jsonl counts as damaged
REPLAY_PAGE = 500  # events per reply, fewer when they are large
REPLAY_PAGE_BYTES = 2 * 2**20

# --- requests -------------------------------------------------------------------------------------------------


class Hello(Struct, tag=True):
    """Who is there, and in which version. Answered in every version of the protocol."""

    version: int  # the client's


class Submit(Struct, tag=True):
    """Queue a job file."""

    job_path: str  # absolute
    out: str = ""  # absolute; default: the folder `runs` beside the job file
    resume: bool = False  # continue the run that lies in the run folder, from here on as in Resume
    from_step: int | None = None  # as in Resume
    accepted: str | None = None  # as in Resume
    # what the trainer gets of the shell that submits; None: nothing, as from another machine
    shell: Shell | None = None
    priority: int | None = None  # None: 0, or what it had when a job that the daemon knows is resumed
    hold: bool = False  # it is queued, and does not start before it is released
    after: list[str] = field(default_factory=list)  # jobs, as below, that must be done before it starts
    planned: PlannedTime | None = None  # what its plan expects it to take, for the estimates
    on_done: str | None = None  # run when it is done, in place of the settings' command; None: that one, "": nothing
    on_failed: str | None = None  # the same when it has failed
    on_stopped: str | None = None  # the same when it has stopped or was cancelled
    no_restart: bool = False  # when an attempt fails it never starts again by itself
    anyway: bool = False  # it starts in its turn whoever else uses its GPUs


class Jobs(Struct, tag=True):
    """All jobs."""


class NotifyTest(Struct, tag=True):
    """Send a test message to all whom the settings name, or to one, and say what came back."""

    name: str = ""  # of one of them; "": all


class Health(Struct, tag=True):
    """How the daemon does."""


class Show(Struct, tag=True):
    """One job's record."""

    # a name (of several jobs that have it the newest live one, else the newest), `#7` or `id:7`; a bare number is a
    # name first, and an id when no job is called so; here and below
    job: str


class Snapshot(Struct, tag=True):
    """One job's record and the fold of its events."""

    job: str
    # answered with Reading, after a while, when the events have to be read first: then ask again; else the answer comes
    # when they are read; here and below
    or_reading: bool = False


class Replay(Struct, tag=True):
    """The events of one job, a page at a time."""

    job: str
    since: int  # events with a greater seq, the next page of them; 0: from the first
    or_reading: bool = False  # as in Snapshot


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
    anyway: bool = False  # it starts in its turn whoever else uses its GPUs


class ResumeAll(Struct, tag=True):
    """Have everything go on that waits since the machine restarted: first what that broke off, then the queue. Job
    files are not read anew."""


class Changes(Struct, tag=True):
    """How the job file differs by now from what the last attempt was given."""

    job: str


class Checkpoints(Struct, tag=True):
    """The checkpoints that a job can go back to."""

    job: str
    or_reading: bool = False


class Set(Struct, tag=True):
    """Change one of presets.job.diff.LIVE_FIELDS of a running job, from its next step on."""

    job: str
    field: str  # e.g. training.lr
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
    | ResumeAll
    | Changes
    | Checkpoints
    | Set
    | SaveNow
    | SampleNow
    | Cancel
    | SetPriority
    | Move
    | Hold
    | Release
    | Remove
    | Rename
    | NotifyTest
    | Health
    | Shutdown
)


class Request(Struct, kw_only=True):
    """What a client sends: one command."""

    version: int = PROTOCOL_VERSION  # the client's
    id: str  # made by the client; the same id again gets the same answer and acts once
    command: Command  # one of the requests below


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


Answer = (
    HelloReply
    | JobReply
    | JobsReply
    | SnapshotReply
    | ReplayReply
    | ChangesReply
    | CheckpointsReply
    | NotifyReply
    | HealthReply
    | Reading
    | Done
    | Refused
)


class Reply(Struct, kw_only=True):
    """What the daemon sends back: one answer."""

    version: int = PROTOCOL_VERSION  # the daemon's, or the client's where that is understood in every version
    id: str  # of the request; "" when that could not be read
    answer: Answer  # one of the answers below


class AnyVersionReply(Struct, kw_only=True):
    """The replies that are understood in every version."""

    version: int
    id: str
    answer: HelloReply | Done | Refused


# --- feed -----------------------------------------------------------------------------------------------------


class Welcome(Struct, tag=True):
    """The subscription is established: nothing published after this is missed. Also sent when jobs were removed: what a
    client knows of them all is to be asked for anew."""

    epoch: str  # of the daemon


class Beat(Struct, tag=True):
    """Once a second: the daemon lives; `last_seq` and `state` betray a lost message, `epoch` a new daemon. Every job
    that has a trainer is in each beat; where there are many others, each of them is in one of the next beats."""

    epoch: str  # of the daemon
    runs: list[RunBeat]  # live jobs, and those that ended a short while ago
    paused: str = ""  # as in JobsReply
    idle_in: float | None = None  # as in JobsReply


class RunEvent(Struct, tag=True):
    """A trainer has written an event."""

    job: int  # its id
    event: Event  # as in events.jsonl


class JobChanged(Struct, tag=True):
    """A job has another record by now. That of an ended job comes after its last event."""

    job: JobRecord  # its record


class TurnedAway(Struct, tag=True):
    """In place of all others: there are too many subscribers, and the connection ends."""

    what: str  # why
    fix: str  # what to do


Feed = Welcome | Beat | RunEvent | JobChanged | TurnedAway

FEED_KINDS = frozenset(kind.__name__ for kind in (Welcome, Beat, RunEvent, JobChanged, TurnedAway))


class FeedKind(Struct):
    """What is read of a feed message that is no Feed."""

    type: str


_encoder = msgspec.msgpack.Encoder()
_kind_decoder = msgspec.msgpack.Decoder(FeedKind)


def encode(message: Any) -> bytes:
    return _encoder.encode(message)


envelope_decoder = msgspec.msgpack.Decoder(Envelope)
request_decoder = msgspec.msgpack.Decoder(Request)
any_version_decoder = msgspec.msgpack.Decoder(AnyVersionRequest)
reply_decoder = msgspec.msgpack.Decoder(Reply)
feed_decoder = msgspec.msgpack.Decoder(Feed)


def is_newer_kind(data: bytes) -> bool:
    """Whether a feed message is of a kind that this version does not know: clients pass it over."""
    try:
        return _kind_decoder.decode(data).type not in FEED_KINDS
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
