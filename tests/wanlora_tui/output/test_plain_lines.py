"""Plain lines: one per event, stable words."""

import re
import time

from daemon.settings import CostSettings
from presets.runs.run_view import RunView, apply_event
from presets.text import setting_text
from tests.helpers.interface.runs import Tape, usual
from wanlora_tui.feeds.last_seen import since_you_left
from wanlora_tui.output.formatting import duration
from wanlora_tui.output.plain_lines import plain_line
from wanlora_tui.screens.change import as_typed

_NOT_FINITE = {"loss": None, "error": None, "edges": [0, 0.9], "bins": [None], "clips": [None, 0.1]}
_FINITE = {
    "loss": 0.1234,
    "error": 0.01,
    "edges": [0.9, 1],
    "bins": [0.1],
    "clips": [0.1, 0.1468],
    "first": {"step": 0, "difference": -0.02, "error": 0.005},
}
HELD_OUT = {
    "step": 60,
    "of": "x",
    "clips": ["a", "b"],
    "experts": {"high_noise": _FINITE, "low_noise": _NOT_FINITE},
    "seconds": 1.0,
}


def lines_of(tape: Tape) -> list[str]:
    view, lines = RunView(), []
    for event in tape.events:
        apply_event(view, event)
        lines.append(plain_line(view, event))
    return lines


def test_every_kind_is_one_line_that_says_it():
    tape = usual(until=60, steps=60)
    tape.add("changed", field="training.lr", old=1e-4, new=5e-5)
    tape.add("replanned", why="out of memory", old="a", new="b")
    tape.add("log", level="info", text="two\nlines")
    tape.add("validation", **HELD_OUT)
    tape.add("stopped", step=60, path="", why="asked to stop")
    tape.add("failed", cause="out of memory", next="Lower the resolution")
    lines = lines_of(tape)
    assert len(lines) == len(tape.events)
    assert all(re.match(r"\d\d:\d\d:\d\d [a-z]+ \S", line) and "\n" not in line for line in lines)
    kinds = {line.split()[1]: line for line in lines}
    assert set(kinds) == {
        "started",
        "phase",
        "step",
        "sample",
        "checkpoint",
        "validation",
        "finding",
        "changed",
        "replanned",
        "log",
        "stopped",
        "failed",
        "done",
    }
    assert re.search(
        r"step 60/60 low noise, loss 0\.\d{4}, lr 1e-4, grad norm 0\.420, 0\.31 s, ETA 0s, VRAM 18\.2 GiB,"
        r" ends \d\d:\d\d, \d+s so far$",
        kinds["step"],
    )
    assert kinds["log"].endswith("info two lines")
    assert kinds["validation"].endswith(
        "step 60 held-out loss high noise 0.1234 ±0.01 (-0.02, 4.0 standard errors), low noise not finite"
    )
    assert kinds["failed"].endswith("out of memory. Lower the resolution.")
    assert kinds["done"].endswith("orbit_v1_high_noise.safetensors orbit_v1_low_noise.safetensors")


def test_the_end_of_a_run_says_which_checkpoint_is_best():
    tape = Tape(steps=10)
    tape.start()
    best = {
        "step": 5,
        "files": ["t_5.safetensors"],
        "reason": "later ones overfit (step 10: +0.1, 7.0 standard errors)",
    }
    tape.add("done", step=10, files=["t.safetensors"], seconds=1.0, best=best)
    assert lines_of(tape)[-1].endswith(
        "t.safetensors best: step 5; later ones overfit (step 10: +0.1, 7.0 standard errors)."
    )


def test_a_step_knows_how_long_is_left():
    tape = Tape(steps=1000)
    tape.start()
    tape.step(100)
    line = lines_of(tape)[-1]
    assert "100/1000 " in line and "ETA 4m 39s" in line  # 900 steps of 0.31 s
    view = RunView()
    for event in tape.events:
        apply_event(view, event)
    ends = time.strftime("%H:%M", time.localtime(tape.events[-1].time + 279))
    assert line.endswith(f", ends {ends}, {duration(view.spent.worked)} so far")
    costly = plain_line(view, tape.events[-1], cost=CostSettings(rate=36.0, currency="EUR"))
    so_far, whole = view.spent.worked / 100, (view.spent.worked + 279) / 100
    assert costly.endswith(f" so far, EUR {so_far:.2f}/EUR {whole:.2f}")


def test_since_you_left_counts_what_was_missed():
    tape = usual(until=120)
    view = RunView()
    for event in tape.events:
        apply_event(view, event)
    assert since_you_left(tape.events, view) == "Since you left: 120 steps, 3 previews, 1 warning"
    assert since_you_left([], view) == ""
    tape.done()
    for event in tape.events:
        apply_event(view, event)
    assert since_you_left(tape.events[-2:], view).endswith("; done")


def test_a_download_counts_in_bytes_a_person_reads():
    tape = Tape(steps=10)
    tape.add("phase", name="loading", done=3 * 2**30, total=68 * 2**30, text="downloading, 85.0 MiB/s")
    assert lines_of(tape)[-1].endswith("phase loading 3.0 GiB of 68.0 GiB downloading, 85.0 MiB/s")


def test_a_rate_has_one_notation_everywhere():
    tape = Tape(steps=10)
    tape.start()
    tape.add("changed", field="training.lr", old=0.0009, new=0.00012345, step=1)
    tape.add("changed", field="training.steps", old=300, new=250, step=1)
    tape.add("changed", field="multistage.low.lr", old=None, new=2e-05, step=1)
    view = RunView()
    for event in tape.events:
        apply_event(view, event)
    told = [line.text for line in view.log if line.kind == "changed"]
    assert told == [
        "training.lr changed from 9e-4 to 1.2345e-4",
        "training.steps changed from 300 to 250",
        "multistage.low.lr changed from left out to 2e-5",
    ]
    assert "changed training.lr from 9e-4 to 1.2345e-4 after step 1" in lines_of(tape)[1]
    assert as_typed("training.lr", 0.0009) == "9e-4" and as_typed("multistage.low.lr", None) == ""
    assert setting_text("sample.shift", 5.0) == "5" and setting_text("training.lr", 0.0) == "0"


def test_since_you_left_counts_all_that_matters_and_nothing_twice():
    tape = usual(until=60, steps=100)
    tape.add("changed", field="training.lr", old=1e-4, new=5e-5, step=60)
    tape.add("failed", cause="out of memory", next="")
    tape.attempt = 2
    tape.start(resumed_from=50)
    tape.add("changed", field="training.lr", old=1e-4, new=5e-5, step=60)  # set again at its step
    for step in range(51, 71):
        tape.step(step)
    view = RunView()
    for event in tape.events:
        apply_event(view, event)
    told = since_you_left(tape.events, view)
    assert told == "Since you left: 70 steps, 2 previews, 1 change, 1 warning, 1 failure, 1 restart"
    assert since_you_left([e for e in tape.events if e.kind == "phase"], view) == ""
    tape.add("stopped", step=70, path="", why="asked")
    apply_event(view, tape.events[-1])
    assert since_you_left(tape.events[-1:], view) == "Since you left: stopped"
