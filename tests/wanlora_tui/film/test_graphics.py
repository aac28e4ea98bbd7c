"""Posters as real graphics, on a pseudo-terminal that decodes what it is sent: the picture its user would see is the
poster."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT
from tests.helpers.interface.films import HEIGHT, WIDTH, filmed
from tests.helpers.interface.graphics import GraphicsTerminal
from tests.helpers.interface.harness import environment
from tests.helpers.tiers import thorough
from tests.helpers.waiting import until
from tests.wanlora_tui.film.test_terminal import PROGRAM

TOLERANCE = 12.0  # of 255, mean: a sixel has few colours, and both are scaled
NAMES = {"kitty": "xterm-kitty", "sixel": "xterm-256color", "neither": "xterm-256color"}


@pytest.fixture
def events(tmp_path: Path) -> Path:
    filmed(tmp_path / "orbit_v1", prompts=1, steps=(0,), until=1)
    return tmp_path / "orbit_v1/events.jsonl"


@pytest.fixture
def terminal(request: pytest.FixtureRequest, events: Path) -> Iterator[GraphicsTerminal]:
    """Of the kind that the test names, with whatever else it names in the environment; the dashboard is on it."""
    kind, env = request.param
    opened = GraphicsTerminal(
        [sys.executable, "-c", PROGRAM, str(events)],
        kind,
        size=(140, 44),
        cwd=ROOT,
        env=environment(**{"COLORTERM": "truecolor", "TERM": NAMES[kind]} | env),
    )
    yield opened
    opened.close()


def difference(terminal: GraphicsTerminal, events: Path) -> float:
    """Of what is seen and the poster, mean of all pixels; 255 while nothing is seen."""
    seen = terminal.picture
    if seen is None or min(seen.shape[:2]) < 40:
        return 255.0
    poster = Image.open(events.parent / "samples/step_000000000/00.png").convert("RGB")
    wanted = np.asarray(poster.resize((seen.shape[1], seen.shape[0])), np.float32)
    return float(np.abs(seen[:, :, :3] - wanted).mean())


@pytest.mark.parametrize("terminal", [("kitty", {}), ("sixel", {})], indirect=True, ids=["kitty", "sixel"])
def test_what_is_seen_is_the_poster(terminal: GraphicsTerminal, events: Path):
    sizes = []

    def drawn() -> bool:
        """At its own ratio: a first picture may come before the terminal has said how large its cells are."""
        small = terminal.picture
        if small is None or abs(small.shape[1] / small.shape[0] - WIDTH / HEIGHT) >= 0.15:
            return False
        sizes.append(small.size)
        return difference(terminal, events) < TOLERANCE

    until(drawn, "the poster in the dashboard")
    terminal.press("z")
    terminal.wait("seed 42")

    def grown() -> bool:
        large = terminal.picture
        return large is not None and large.size > 2 * sizes[-1] and difference(terminal, events) < TOLERANCE

    until(grown, "the poster on the whole screen")
    terminal.press(" ")  # the film is drawn in cells, and nothing of the poster is left under it
    until(lambda: "▀▀▀▀" in terminal.text and terminal.picture is None, "the film in its place")
    terminal.press("\x11")
    assert terminal.wait_end() == 0
    assert not terminal.images, "the terminal keeps pictures that nobody can see any more"


@pytest.mark.parametrize(
    "terminal",
    [
        ("kitty", {"TERM": "tmux-256color", "TMUX": "/tmp/none,1,0"}),
        ("kitty", {"COLORTERM": ""}),  # the colour of its placeholders would be another one, and name no picture
        *thorough(("kitty", {"NO_COLOR": "1"}), ("neither", {})),
    ],
    indirect=True,
    ids=["tmux", "kitty with fewer colours", "kitty without colour", "neither"],
)
def test_without_a_way_through_it_is_drawn_in_cells(terminal: GraphicsTerminal):
    terminal.wait("trainer progressing")
    terminal.wait(lambda text: "▀▀▀▀" in text or "@" in text, "the poster in cells, or in signs without colour")
    assert b"f=100" not in terminal.raw and b"\x1bP" not in terminal.raw and terminal.picture is None


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "drawn with Kitty graphics"),
        ({"COLORTERM": ""}, "half cells: Kitty graphics need 24-bit colour, which the terminal does not name"),
        ({"NO_COLOR": ""}, "drawn in letters, from dark to bright: colour is off (NO_COLOR)"),
    ],
)
def test_doctor_says_how_pictures_are_drawn_and_why(env: dict[str, str], said: str):
    code = "from wanlora_tui.commands.doctor import _pictures; print(_pictures().text + '|')"
    terminal = GraphicsTerminal(
        [sys.executable, "-c", code],
        "kitty",
        size=(140, 44),
        cwd=ROOT,
        env=environment(**{"COLORTERM": "truecolor", "TERM": "xterm-kitty"} | env),
    )
    terminal.wait(f"{said}|")
    assert terminal.wait_end() == 0
    terminal.close()
