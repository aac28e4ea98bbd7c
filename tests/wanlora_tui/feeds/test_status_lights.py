import pytest

from daemon.wire.records import RunBeat
from presets.runs.run_view import Phase, RunView
from presets.runs.spent import Spent
from wanlora_tui.feeds.status_lights import BEAT_LIMIT, Light, answers, is_stalled, link_light
from wanlora_tui.remote.link_state import Kind, LinkState

NOW = 1000.0


def light(kind: Kind, beat_age: float | None = None, **more: str) -> Light | None:
    return link_light("box", LinkState(kind, NOW - 65, **more), beat_age, NOW)


@pytest.mark.parametrize(
    ("kind", "level", "words"),
    [
        ("connecting", "waiting", "connecting to box"),
        ("silent", "waiting", "no answer from box for 1m 05s, dialling anew"),
        ("lost", "bad", "no connection to box for 1m 05s: Connection refused"),
        ("must ask", "bad", "ssh must ask you (key a): Connection refused"),
    ],
)
def test_a_line_that_fails_stands_for_the_daemon(kind: Kind, level: str, words: str):
    assert light(kind, BEAT_LIMIT + 1, words="Connection refused") == Light(level, words)  # type: ignore[arg-type]


def test_a_line_that_works_leaves_the_word_to_the_daemons_light():
    assert light("connected", 0.5) is None and light("connected", None) is None
    assert light("silent", 0.5) is None  # beats come, whatever the line's own questions do


def test_a_daemon_that_ended_there_is_told_while_no_beat_comes():
    assert light("connected", BEAT_LIMIT + 1, daemon="no daemon runs there") == Light(
        "bad", "no daemon runs there (key d)"
    )
    assert light("connected", 0.5, daemon="no daemon runs there") is None


@pytest.mark.parametrize(
    ("beat_age", "problem", "can"),
    [(None, "", True), (None, "nobody there", False), (1.0, "of one job", True), (BEAT_LIMIT + 1, "", False)],
)
def test_a_silent_daemon_cannot_be_asked(beat_age: float | None, problem: str, can: bool):
    assert answers(beat_age, problem) is can


@pytest.mark.parametrize(
    ("phase", "seen", "stalled"), [("training", True, True), ("training", False, False), ("saving", True, False)]
)
def test_a_step_that_takes_far_longer_than_steps_do_stalls_unless_it_compiles(phase: str, seen: bool, stalled: bool):
    view = RunView(step=40, seconds_per_step=2.0, phase=Phase(phase), spent=Spent(seen=["high_noise"] * seen))
    assert is_stalled(view, RunBeat(1, "running", 9, trainer_alive=True, seconds_since_step=61.0)) is stalled
