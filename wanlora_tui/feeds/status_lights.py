"""Two lights: does the daemon answer, and does the trainer get on. They fail apart, so they are shown apart."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from daemon.wire.protocol import ENDED_STATES, JobRecord, RunBeat
from presets.runs.run_view import RunView
from wanlora_tui.output.formatting import duration, waits_for
from wanlora_tui.output.queue_words import speaks
from wanlora_tui.remote.link_state import LinkState

BEAT_LIMIT = 3.5  # seconds without a beat (one comes each second) until the daemon counts as silent
PATIENCE = 10.0  # a step may take this many times the usual before the trainer counts as stalled
LEAST_PATIENCE = 60.0  # seconds

Level = Literal["good", "waiting", "bad", "off"]
GLYPHS: dict[Level, str] = {"good": "●", "waiting": "◐", "bad": "✗", "off": "○"}


class Light(NamedTuple):
    level: Level
    text: str

    @property
    def line(self) -> str:
        return f"{GLYPHS[self.level]} {self.text}"


# of the beat's age, what to show of the connection to another machine instead of the daemon's light
Link = Callable[[float | None], Light | None]


def no_link(beat_age: float | None) -> Light | None:
    """For a daemon of this machine."""
    return None


def answers(beat_age: float | None, problem: str) -> bool:
    """Whether the daemon can be asked for something. `problem`: why it cannot be followed, as far as is known: before
    the first sign of life nothing else tells."""
    return not problem if beat_age is None else beat_age <= BEAT_LIMIT


def daemon_light(beat_age: float | None) -> Light:
    """`beat_age`: seconds since the last sign of life, None before the first."""
    if beat_age is None:
        return Light("waiting", "daemon: connecting")
    if beat_age > BEAT_LIMIT:
        return Light("bad", "daemon not answering, training continues")
    return Light("good", "daemon alive")


def link_light(host: str, link: LinkState, beat_age: float | None, now: float) -> Light | None:
    """Instead of the daemon's, while the connection to its machine is what fails; None while that is well. `now`:
    time.monotonic."""
    silent = beat_age is None or beat_age > BEAT_LIMIT
    since = duration(now - link.since)
    match link.kind:
        case "connected":
            return Light("bad", f"{link.daemon} (key d)") if silent and link.daemon else None
        case "connecting":
            return Light("waiting", f"connecting to {host}")
        case "silent":
            return Light("waiting", f"no answer from {host} for {since}, dialling anew") if silent else None
        case "lost":
            return Light("bad", f"no connection to {host} for {since}: {link.words}")
    return Light("bad", f"ssh must ask you (key a): {link.words}")


def trainer_light(record: JobRecord, view: RunView, beat: RunBeat | None, beat_age: float | None) -> Light:
    """What the trainer of this job is doing, from the last beat and the fold. Without beats nobody here can know."""
    if record.state in ENDED_STATES:
        return Light("off", f"trainer {'finished' if record.state == 'done' else record.state}")
    if record.held:
        return Light("off", "held in the queue")
    if record.state == "queued" and record.restart_at:
        return Light("waiting", f"trainer {waits_for(record)}")
    if record.state == "queued":
        return Light(
            "off", f"waiting in the queue, position {record.position}" if record.position else "waiting in the queue"
        )
    if beat_age is not None and beat_age > BEAT_LIMIT:
        return Light("waiting", f"trainer not seen for {duration(beat_age)}")
    if beat is None:
        return Light("waiting", f"trainer {record.state}")
    if not beat.trainer_alive:
        return Light(
            "bad" if record.state == "running" else "waiting",
            "trainer not running" if record.state == "running" else f"trainer {record.state}",
        )
    if not speaks(record, view):
        return Light("waiting", f"trainer {record.state}")
    if view.phase.name == "paused":
        return Light("waiting", "trainer paused: it continues by itself")
    if view.phase.name != "training":
        return Light("good", f"trainer {view.phase.name}")
    if is_stalled(view, beat):
        return Light("bad", f"trainer stalled: no step for {duration(beat.seconds_since_step)}")
    return Light("good", "trainer stopping" if record.state == "stopping" else "trainer progressing")


def is_stalled(view: RunView, beat: RunBeat) -> bool:
    """Whether a step takes far longer than steps do. The first one of an attempt may: it compiles."""
    limit = max(LEAST_PATIENCE, PATIENCE * view.seconds_per_step)
    return view.phase.name == "training" and bool(view.spent.seen) and beat.seconds_since_step > limit
