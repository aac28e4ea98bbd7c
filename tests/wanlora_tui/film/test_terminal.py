"""Films on a real pseudo-terminal: in their place, on the whole screen, on a sheet and beside each other."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.interface.films import FRAMES, filmed
from tests.helpers.interface.harness import environment
from tests.helpers.terminal import Terminal
from tests.helpers.waiting import until

# as patient as the tests: a busy machine may answer for the terminal later than the program waits
PROGRAM = """
import sys, time
from pathlib import Path
from tests.helpers.waiting import PATIENCE
from wanlora_tui.screenshot import RecordedApp, load_run
from wanlora_tui.terminal.conversation import Conversation
from wanlora_tui.terminal.driver import driver_on
from wanlora_tui.terminal.pictures import picture_class
with Conversation(sys.stdin.fileno(), sys.stdout.fileno()) as terminal:
    terminal.ask()
    terminal.listen(time.monotonic() + PATIENCE)
    app = RecordedApp(load_run(Path(sys.argv[1])), picture_class(terminal.pictures, terminal.cell))
    app.driver_class = driver_on(terminal)
    app.run()
"""


def bars(terminal: Terminal) -> frozenset[tuple[int, int]]:
    """The cells of the bar that crosses the picture: bright, for a film's white is hardly ever all white."""
    cells = ((x, y, cell) for y in range(24) for x, cell in terminal._screen.buffer[y].items() if cell.data == "▀")
    return frozenset((x, y) for x, y, cell in cells if len(cell.bg) == 6 and min(bytes.fromhex(cell.bg)) > 0xC0)


def plays(terminal: Terminal) -> None:
    """Different frames of the film are seen, one after the other."""
    seen: set[frozenset[tuple[int, int]]] = set()
    until(lambda: seen.add(bars(terminal)) or len(seen) > 3, "different frames")  # type: ignore[func-returns-value]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """The dashboard of a run with two prompts and two steps of previews."""
    filmed(tmp_path / "orbit_v1", prompts=2, steps=(0, 1), until=1)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "orbit_v1/events.jsonl")]
    terminal = Terminal(command, cwd=ROOT, env=environment(COLORTERM="truecolor", TERM="xterm"))
    try:
        terminal.wait("trainer progressing")
        yield terminal
    finally:
        terminal.close()


def test_a_film_plays_in_its_place_and_on_the_whole_screen(terminal: Terminal):
    terminal.press(" ")  # from the loss: it goes to the preview
    terminal.wait("preview at step 1, prompt 2 of 2")
    plays(terminal)
    terminal.press(" ")
    terminal.wait(f"/{FRAMES}")
    terminal.press("escape")
    terminal.wait("space plays")  # the poster
    terminal.press("z")
    terminal.wait("seed 43")
    until(lambda: bars(terminal), "the poster")
    terminal.press(" ")
    plays(terminal)
    terminal.press(" ")
    terminal.wait(f"/{FRAMES}")
    terminal.press("q")
    terminal.wait("trainer progressing")


def test_a_sheet_and_steps_beside_each_other_are_walked_through(terminal: Terminal):
    terminal.press("t")
    terminal.wait("▸ step 1")
    assert terminal.text.count("step 0") == terminal.text.count("step 1") == 2  # of either prompt
    terminal.press("up", "left")
    terminal.wait(lambda text: 0 < text.find("▸ step 0") < text.find("dolly in"), "the first of all")
    terminal.press(" ")
    plays(terminal)
    terminal.press("c")
    terminal.wait("prompt 1 of 2, step 0")
    plays(terminal)  # it goes on there
    terminal.press(" ", "p", "right")
    terminal.wait(lambda text: "⊢ step 0" in text and "▸ step 1" in text, "the one that was kept, and the other")
    terminal.press("enter")
    terminal.wait(lambda text: "step 1  seed 42" in text and "step 0" not in text, "one alone")
    terminal.press("escape")
    terminal.wait("⊢ step 0")
    terminal.press("escape")
    terminal.wait(lambda text: 0 < text.find("▸ step 1") < text.find("dolly in"), "the sheet, at the same one")
    terminal.press("t")
    terminal.wait("trainer progressing")
    terminal.press("p")
    terminal.wait("preview at step 1, prompt 1 of 2")
