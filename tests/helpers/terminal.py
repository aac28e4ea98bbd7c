"""A real pseudo-terminal of a given size, with a program on it and an emulator that says what its screen shows."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pexpect
import pyte
from pyte.screens import wcwidth

from tests.helpers.waiting import PATIENCE, until

KEYS = {
    "enter": "\r",
    "tab": "\t",
    "escape": "\x1b",
    "backspace": "\x7f",
    "ctrl+u": "\x15",
    "ctrl+c": "\x03",
    "ctrl+z": "\x1a",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "right": "\x1b[C",
    "left": "\x1b[D",
    "f1": "\x1bOP",
    "f3": "\x1bOR",
    "f4": "\x1bOS",
    "f5": "\x1b[15~",
    "f6": "\x1b[17~",
    "f7": "\x1b[18~",
    "f8": "\x1b[19~",
    "f9": "\x1b[20~",
}


MOVE, WHEEL_UP, WHEEL_DOWN, HELD = 35, 64, 65, 32  # what terminals tell of the mouse (SGR); HELD: moved with a button


def mouse(what: int, x: int, y: int, *, up: bool = False) -> str:
    """The mouse at a cell, the first of which is (0, 0); 0 is the left button."""
    return f"\x1b[<{what};{x + 1};{y + 1}{'m' if up else 'M'}"


SETTLED = 0.05  # seconds without a byte: what is drawn is drawn whole, for a frame comes in pieces of 4 KiB
LONGEST_SETTLING = 1.0  # seconds: some screens are never still


class Screen(pyte.Screen):
    """An emulated screen that answers what a program asks of its terminal (what are you, where is the cursor)."""

    answer: Callable[[str], Any]

    def __init__(self, columns: int, lines: int) -> None:
        self._rows: list[str] = []
        super().__init__(columns, lines)

    def write_process_input(self, data: str) -> None:
        self.answer(data)

    def rows(self) -> list[str]:
        """Its lines without the blanks at their ends: what `display` gives. Only those are read that were drawn on
        since: whoever waits looks again and again."""
        self._rows = (self._rows + [""] * self.lines)[: self.lines]
        for y in self.dirty:
            if y < self.lines:
                self._rows[y] = "".join(self._cells(y)).rstrip()
        self.dirty.clear()
        return self._rows

    def _cells(self, y: int) -> Iterator[str]:
        behind_a_wide_one = False
        for x in range(self.columns):
            data = self.buffer[y][x].data
            if not behind_a_wide_one:
                yield data
            behind_a_wide_one = not behind_a_wide_one and not data.isascii() and wcwidth(data[0]) == 2


class Terminal:
    """One program on a terminal of its own. Like a real one it is read all the time, whether somebody looks or not."""

    def __init__(
        self, command: Sequence[str], *, size: tuple[int, int] = (80, 24), cwd: Path, env: Mapping[str, str]
    ) -> None:
        columns, rows = size
        self._lock = threading.Lock()
        self.raw = b""  # all that the program has written; words that go by themselves are looked for here
        self._screen = Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.process = pexpect.spawn(
            command[0], list(command[1:]), cwd=str(cwd), env=dict(env), dimensions=(rows, columns)
        )
        self.process.delaybeforesend = None
        self._screen.answer = self.process.send
        self._last_came = time.monotonic()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                if not select.select([self.process.child_fd], [], [], 0.05)[0]:
                    continue
                data = os.read(self.process.child_fd, 65536)
            except (OSError, ValueError):  # the program has ended, and its side of the terminal is closed
                return
            if not data:
                return
            self._last_came = time.monotonic()
            self.raw += data
            self.came(data)
            with self._lock:
                # The emulator would draw the ends of these two questions (cell size, terminal's name), which nobody
                # needs answered.
                self._stream.feed(data.replace(b"\x1b[16t", b"").replace(b"\x1b[>q", b""))

    def came(self, data: bytes) -> None:
        """Called with all that the program writes, before it is drawn."""

    @property
    def text(self) -> str:
        """The screen, one line per row."""
        with self._lock:
            return "\n".join(self._screen.rows())

    @property
    def words(self) -> str:
        """The screen with every run of blanks and line ends as one space: for sentences that may be wrapped."""
        return " ".join(self.text.split())

    def resize(self, columns: int, rows: int) -> None:
        """As when its window is dragged."""
        with self._lock:
            self._screen.resize(rows, columns)
        self.process.setwinsize(rows, columns)

    def press(self, *keys: str) -> None:
        """Keys by name ("f8", "enter"), or text as it is typed."""
        for key in keys:
            self.process.send(KEYS.get(key, key))

    def click(self, words: str) -> None:
        """On the first cell of words that the screen shows once."""
        places = [(row.index(words), y) for y, row in enumerate(self.text.split("\n")) if words in row]
        assert len(places) == 1, f"{words!r} at {places}:\n{self.text}"
        self.press(mouse(0, *places[0]), mouse(0, *places[0], up=True))

    def wait(self, wanted: str | Callable[[str], Any], what: str = "") -> Any:
        """Wait for words on the screen (blanks and line ends do not count), or for a condition on its text; gives the
        condition's value. It still holds when the frame that it was seen in is complete, so what is read next is no
        mixture of two screens."""
        condition = (lambda _: wanted in self.words) if isinstance(wanted, str) else wanted

        def holds() -> Any:
            return condition(self.text) and self._settled() and condition(self.text)

        try:
            return until(holds, what or repr(wanted))
        except AssertionError as e:
            raise AssertionError(f"{e}; the terminal shows:\n{self.text}") from None

    def _settled(self) -> bool:
        """True, once the terminal has been still for a moment, or is never still."""
        until_then = time.monotonic() + LONGEST_SETTLING
        while time.monotonic() < min(self._last_came + SETTLED, until_then):
            time.sleep(0.01)
        return True

    def kill9(self) -> None:
        """End the program without a chance to say anything."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_end(self) -> int:
        """Wait until the program has ended by itself and everything it said is on the screen; gives its exit code."""
        self.wait(lambda _: not self.process.isalive(), "the end of the program")
        self._reader.join(PATIENCE)
        assert self.process.exitstatus is not None, f"killed by signal {self.process.signalstatus}"
        return int(self.process.exitstatus)

    def close(self) -> None:
        """End the program if it still runs. Always called: nothing on a terminal outlives its test."""
        if self.process.isalive():
            self.kill9()
        self._reader.join(PATIENCE)
        self.process.close()
