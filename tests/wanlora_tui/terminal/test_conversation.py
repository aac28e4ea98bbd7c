"""What is made of a terminal's answers, on a real pseudo-terminal whose other side is the test's."""

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest
from rich.console import Console
from textual.app import App

from tests.helpers import ROOT
from tests.helpers.interface.harness import environment
from tests.helpers.waiting import PATIENCE
from wanlora_tui.terminal.conversation import Conversation
from wanlora_tui.terminal.pictures import USUAL_CELL

YES, NO = "\x1b_Gi=31;OK\x1b\\", "\x1b_Gi=31;ENOTSUPPORTED:no\x1b\\"
SIXEL, PLAIN = "\x1b[?62;4;22c", "\x1b[?62;22c"


@pytest.fixture
def tty() -> Iterator[tuple[int, int]]:
    """Both sides: the emulator's and the program's."""
    ours, theirs = os.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def pixels(theirs: int, rows: int, columns: int, width: int, height: int) -> None:
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, width, height))


@pytest.mark.parametrize(
    "answers, size, cell, pictures",
    [
        ("\x1b[6;20;10t" + SIXEL, (24, 80, 0, 0), (10, 20), "Sixel"),
        (SIXEL, (24, 80, 800, 480), (10, 20), "Sixel"),
        (SIXEL, (24, 80, 0, 0), None, "half cells"),  # as large as what?
        ("\x1b[6;20t" + SIXEL, (24, 80, 0, 0), None, "half cells"),
        ("\x1b[6;0;0t" + SIXEL, (0, 0, 0, 0), None, "half cells"),
        ("\x1b[6;20000;10000t" + SIXEL, (24, 80, 65535, 65535), None, "half cells"),
        ("\x1b[6;20;10t" + SIXEL, (24, 80, 65535, 3), (10, 20), "Sixel"),  # of two sizes the one that can be
        ("\x1b[6;20;1t" + SIXEL, (24, 80, 0, 0), None, "half cells"),
        (YES + "\x1b[6;40;20t" + PLAIN, (24, 80, 0, 0), (20, 40), "Kitty graphics"),
        (YES + PLAIN, (24, 80, 0, 0), None, "Kitty graphics"),
        (NO + "\x1b[6;40;20t" + PLAIN, (24, 80, 0, 0), (20, 40), "half cells"),
        ("\x1b[?64;14;44c", (24, 80, 0, 0), None, "half cells"),
        ("\x1b[?c", (24, 80, 0, 0), None, "half cells"),
    ],
)
def test_pictures_are_drawn_as_the_terminal_surely_can(
    tty: tuple[int, int],
    answers: str,
    size: tuple[int, int, int, int],
    cell: tuple[int, int] | None,
    pictures: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = tty
    pixels(theirs, *size)
    with Conversation(theirs, theirs) as terminal:
        terminal.ask()
        os.write(ours, b"typed" + answers.encode())
        terminal.listen()
        assert (terminal.cell, terminal.pictures, terminal.typed) == (cell, pictures, "typed")
        os.write(ours, PLAIN.encode())  # to the question with which it leaves


@pytest.mark.parametrize(
    ("env", "pictures"),
    [
        ({"COLORTERM": "24bit"}, "Kitty graphics"),
        ({"COLORTERM": " TrueColor"}, "Kitty graphics"),
        ({"COLORTERM": ""}, "half cells"),
        ({"COLORTERM": "truecolor", "NO_COLOR": "1"}, "half cells"),
        ({"COLORTERM": "truecolor", "NO_COLOR": ""}, "half cells"),
    ],
)
def test_kitty_s_pictures_need_all_colours_for_their_numbers(
    tty: tuple[int, int], env: dict[str, str], pictures: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    ours, theirs = tty
    with Conversation(theirs, theirs) as terminal:
        terminal.ask()
        os.write(ours, (YES + PLAIN).encode())
        terminal.listen()
        assert terminal.has_kitty and terminal.pictures == pictures
        drawn = Console(force_terminal=True)  # Rich decides the same, and Textual about NO_COLOR
        assert (pictures == "Kitty graphics") == (drawn.color_system == "truecolor" and not App().no_color)
        os.write(ours, PLAIN.encode())


def test_it_echoes_nothing_while_it_lasts_and_gives_the_modes_back(tty: tuple[int, int]):
    ours, theirs = tty
    before = termios.tcgetattr(theirs)
    with Conversation(theirs, theirs):
        assert (
            not termios.tcgetattr(theirs)[3] & (termios.ECHO | termios.ICANON)
            and termios.tcgetattr(theirs)[3] & termios.ISIG
        )
    assert termios.tcgetattr(theirs) == before
    with pytest.raises(RuntimeError), Conversation(theirs, theirs) as terminal:
        terminal.ask()
        os.write(ours, PLAIN.encode() * 2)
        raise RuntimeError
    assert termios.tcgetattr(theirs) == before


def test_signals_mean_afterwards_what_they_meant_before(tty: tuple[int, int]):
    before = signal.getsignal(signal.SIGTERM)
    with Conversation(tty[1], tty[1]):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_textual_image_asks_nothing_and_takes_what_it_is_told(tty: tuple[int, int]):
    ours, theirs = tty
    code = (
        "from wanlora_tui.terminal.pictures import picture_class\nkinds = [picture_class(k, c) for k, c in (('Sixel',"
        " (9, 18)), ('Kitty graphics', None), ('half cells', None))]\nfrom textual_image._terminal import"
        " get_cell_size\nfrom textual_image.widget import HalfcellImage, SixelImage\nfrom"
        " wanlora_tui.terminal.kitty_image import KittyImage\nassert kinds =="
        f" [SixelImage, KittyImage, HalfcellImage] and get_cell_size() == {USUAL_CELL}\npicture_class('Sixel', (9,"
        " 18))\nassert get_cell_size() == (9, 18)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    os.set_blocking(ours, False)
    with pytest.raises(BlockingIOError):
        os.read(ours, 100)
