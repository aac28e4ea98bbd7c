"""Two lights: does the daemon answer, and does the trainer get on. They fail apart, so they are shown apart."""

from typing import Literal, NamedTuple

from daemon.wire.protocol import ENDED_STATES, JobRecord, RunBeat
from presets.runs.run_view import RunView
from wanlora_tui.output.formatting import duration

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


def daemon_light(beat_age: float | None) -> Light:
    """`beat_age`: seconds since the last sign of life, None before the first."""
    if beat_age is None:
        return Light("waiting", "daemon: connecting")
    if beat_age > BEAT_LIMIT:
        return Light("bad", "daemon not answering, training continues")
    return Light("good", "daemon alive")


def trainer_light(record: JobRecord, view: RunView, beat: RunBeat | None, beat_age: float | None) -> Light:
    """What the trainer of this job is doing, from the last beat and the fold. Without beats nobody here can know."""
    if record.state in ENDED_STATES:
        return Light("off", f"trainer {'finished' if record.state == 'done' else record.state}")
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
    if view.phase.name == "paused":
        return Light("waiting", "trainer paused: it continues by itself")
    if view.phase.name != "training":
        return Light("good", f"trainer {view.phase.name}")
    limit = max(LEAST_PATIENCE, PATIENCE * view.seconds_per_step)
    if view.step and beat.seconds_since_step > limit:
        return Light("bad", f"trainer stalled: no step for {duration(beat.seconds_since_step)}")
    return Light("good", "trainer stopping" if record.state == "stopping" else "trainer progressing")
