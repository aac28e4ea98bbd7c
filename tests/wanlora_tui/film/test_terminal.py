"""A film on a real pseudo-terminal."""

import sys
from pathlib import Path

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


def test_a_film_plays(tmp_path: Path):
    filmed(tmp_path / "orbit_v1", prompts=1, steps=(0,), until=1)
    events = tmp_path / "orbit_v1/events.jsonl"
    terminal = Terminal(
        [sys.executable, "-c", PROGRAM, str(events)], cwd=ROOT, env=environment(COLORTERM="truecolor", TERM="xterm")
    )

    def bar() -> frozenset[int]:
        """The columns of the bar that crosses the picture: bright, for a film's white is hardly ever all white."""
        row = terminal._screen.buffer[12]
        cells = ((x, row[x].bg) for x in range(80) if row[x].data == "▀")
        return frozenset(x for x, colour in cells if min(bytes.fromhex(colour)) > 0xC0)

    try:
        terminal.wait("trainer progressing")
        terminal.press("z")
        terminal.wait("seed 42")
        until(bar, "the poster")
        terminal.press(" ")
        seen: set[frozenset[int]] = set()
        until(lambda: seen.add(bar()) or len(seen) > 3, "different frames")  # type: ignore[func-returns-value]
        terminal.press(" ")
        terminal.wait(f"/{FRAMES}")
        terminal.press("q")
        terminal.wait("trainer progressing")
    finally:
        terminal.close()
