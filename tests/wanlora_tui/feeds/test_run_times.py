"""The words about a run's time and money."""

import time
from pathlib import Path

import pytest

from daemon.settings import CostSettings
from daemon.wire.protocol import JobRecord, RunBeat
from presets.runs.run_view import Phase, RunView, apply_event
from tests.helpers.interface.runs import Tape
from wanlora_tui.feeds.run_times import RunTimes, cost_settings, left_text, run_times

NOW = time.mktime((2026, 11, 26, 14, 0, 0, 0, 0, -1))
COST = CostSettings(rate=3.6)


def record(state: str = "running", **more) -> JobRecord:
    return JobRecord(id=1, name="a", job_path="/j", out="/r", gpus=[0], state=state, pid=7, started_at=1.0, **more)


def beat(quiet: float = 0.0, *, alive: bool = True) -> RunBeat:
    return RunBeat(1, "running", 1, alive, quiet)


def trained(steps: int = 1000, done: int = 100) -> RunView:
    """At 0.31 s a step."""
    tape, view = Tape(steps=steps), RunView()
    tape.start()
    for n in range(1, done + 1):
        tape.step(n)
    for event in tape.events:
        apply_event(view, event)
    return view


def test_a_run_that_trains():
    found = run_times(record(), trained(), beat(), 0.0, cost=COST, now=NOW)
    assert found == RunTimes("4m 39s", "14:04", "31s", "$0.03/$0.31")
    longer = run_times(record(), trained(steps=600_000), beat(), 0.0, now=NOW)
    assert (longer.ends, longer.cost) == ("Sat 17:39", "")


def test_between_two_events_the_clock_goes_on():
    found = run_times(record(), trained(), beat(20.0), 1.0, now=NOW)
    assert (found.left, found.worked) == ("4m 39s", "52s")


@pytest.mark.parametrize(
    ("of", "seen", "heard", "word"),
    [
        (record(), "paused", beat(), "paused"),
        (record(), "training", beat(3600.0), "stalled"),
        (record(), "sampling", beat(3600.0), "4m 39s"),
        (record(), "training", beat(alive=False), "-"),
        (record("stopping"), "training", beat(), "-"),
        (record("queued"), "training", None, "-"),
    ],
)
def test_why_nobody_can_tell(of: JobRecord, seen: str, heard: RunBeat | None, word: str):
    view = trained()
    view.phase = Phase(seen)
    assert run_times(of, view, heard, 0.0).left == word


def test_a_run_that_is_over_has_ended_at_a_time_and_cost_so_much():
    found = run_times(record("done", finished_at=NOW - 86400), trained(), None, cost=COST, now=NOW)
    assert found == RunTimes("-", "Wed 14:00", "31s", "$0.03", over=True)


def test_nothing_is_known_of_a_run_that_starts():
    assert run_times(record("starting"), RunView(), beat(), 0.0) == RunTimes("-", "", "", "")
    assert left_text(record(), trained()) == "4m 39s"


def test_what_an_hour_costs_is_set_or_given(tmp_path: Path):
    (tmp_path / "settings.toml").write_text('[cost]\nrate = 2.5\ncurrency = "EUR"\n')
    assert cost_settings(tmp_path) == (CostSettings(rate=2.5, currency="EUR"), "")
    assert cost_settings(tmp_path, 4.0)[0] == CostSettings(rate=4.0, currency="EUR")
    (tmp_path / "settings.toml").write_text("[cost]\nrate = -1\n")
    assert cost_settings(tmp_path)[0] == CostSettings() and "rate" in cost_settings(tmp_path)[1]
