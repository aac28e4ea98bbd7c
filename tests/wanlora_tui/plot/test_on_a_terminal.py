"""The plot of a recorded run on a real pseudo-terminal of 80x24: keys, mouse, and another run beside it."""

import re
import shutil
import sys
from contextlib import closing

from tests.helpers import ROOT
from tests.helpers.interface.harness import environment, running_daemon, short_dir
from tests.helpers.recorded_run import write_for_daemon
from tests.helpers.terminal import HELD, MOVE, WHEEL_DOWN, WHEEL_UP, Terminal, mouse

AT = 39, 8  # a cell over the plot
READ = re.compile(r"step (\d+)\b")  # at the cursor
STEPS = re.compile(r"log, steps (\d+) to (\d+)")


def zoomed(text: str) -> tuple[int, int] | None:
    """The steps that a title says are shown, of all of them."""
    found = STEPS.search(text)
    return (int(found[1]), int(found[2])) if found else None


def test_a_recorded_run_is_read_zoomed_and_compared():
    folder = short_dir()
    try:
        write_for_daemon(folder, "noisy_v1", "noisy_v2")
        with running_daemon(folder):
            command = [sys.executable, "-m", "wanlora_tui.cli", "attach", "noisy_v1", "--dir", str(folder)]
            with closing(Terminal(command, cwd=ROOT, env=environment(NO_COLOR="1"))) as screen:
                screen.wait(lambda text: "● high noise" in text and "2000" in text and "went back" in text, "the plot")
                assert {"●", "○", "◆", "▣", "↓", "►", "↶", "!"} <= set(screen.text)
                screen.press("m", "m", "m")
                screen.wait("! step 555 not finite, skipped")
                screen.press("+", "+")
                screen.wait("steps 416 to 1016")
                screen.press("0", "g")
                screen.wait("low noise log ──")
                screen.press(mouse(MOVE, *AT))
                here = screen.wait(READ.search)[1]
                screen.press(mouse(MOVE, AT[0] + 20, AT[1]))
                screen.wait(lambda text: (found := READ.search(text)) and int(found[1]) > int(here), "a later step")
                screen.press(*[mouse(WHEEL_UP, *AT)] * 3)
                low, high = screen.wait(lambda text: (z := zoomed(text)) and z[1] - z[0] < 1500 and z, "a part")
                # what is dragged to the right brings earlier steps
                screen.press(mouse(0, *AT), mouse(HELD, AT[0] + 9, AT[1]), mouse(0, AT[0] + 9, AT[1], up=True))
                moved = screen.wait(lambda text: (z := zoomed(text)) and z[0] < low and z, "what came before")
                assert abs((high - low) - (moved[1] - moved[0])) <= 1
                screen.press(mouse(WHEEL_DOWN, *AT))
                screen.wait(lambda text: (z := zoomed(text)) and z[1] - z[0] > high - low, "more of it")
                screen.press(*[mouse(0, *AT), mouse(0, *AT, up=True)] * 2)
                screen.wait(lambda text: "low noise  log ──" in text, "all steps")
                screen.press("A")
                screen.wait("noisy_v2 ✓ done")
                screen.press("enter")
                screen.wait("■□ noisy_v2")
                screen.press("q")
                assert screen.wait_end() == 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
