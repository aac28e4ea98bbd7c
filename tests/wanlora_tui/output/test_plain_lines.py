"""Plain lines: one per event, stable words."""

import re

from presets.runs.run_view import RunView, apply_event
from tests.helpers.interface.runs import Tape, usual
from wanlora_tui.feeds.last_seen import since_you_left
from wanlora_tui.output.plain_lines import plain_line


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
        "finding",
        "changed",
        "replanned",
        "log",
        "stopped",
        "failed",
        "done",
    }
    assert re.search(
        r"step 60/60 low noise, loss 0\.\d{4}, lr 1e-4, grad norm 0\.420, 0\.31 s, ETA 0s, VRAM 18\.2 GiB$",
        kinds["step"],
    )
    assert kinds["log"].endswith("info two lines")
    assert kinds["failed"].endswith("out of memory. Lower the resolution.")
    assert kinds["done"].endswith("orbit_v1_high_noise.safetensors orbit_v1_low_noise.safetensors")


def test_a_step_knows_how_long_is_left():
    tape = Tape(steps=1000)
    tape.start()
    tape.step(100)
    assert "100/1000 " in lines_of(tape)[-1] and "ETA 4m 39s" in lines_of(tape)[-1]  # 900 steps of 0.31 s


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
