"""The plot of a recorded run on a real pseudo-terminal of 80x24: keys, mouse, and another run beside it."""

import shutil
import sys
from contextlib import closing

from tests.helpers import ROOT
from tests.helpers.interface.harness import environment, running_daemon, short_dir
from tests.helpers.recorded_run import write_for_daemon
from tests.helpers.terminal import Terminal

WHEEL_UP, HOVER = "\x1b[<64;40;9M", "\x1b[<35;40;9M"  # as terminals tell of the mouse (SGR), over the plot


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
                screen.press(HOVER)
                screen.wait("step 11")
                screen.press(WHEEL_UP)
                screen.wait("log, steps")
                screen.press("A")
                screen.wait("noisy_v2 ✓ done")
                screen.press("enter")
                screen.wait("■□ noisy_v2")
                screen.press("q")
                assert screen.wait_end() == 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
