"""One round of questions to the terminal, and patience for its answers, which may come late, oddly or never.

Every question is followed by one that every terminal answers (primary device attributes), and terminals answer in
order: once its answer is there, nothing else is on its way. While a conversation lasts, the terminal echoes nothing and
holds back no line.
"""

import os
import re
import select
import signal
import termios
import time
from array import array
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable
from fcntl import ioctl
from types import FrameType, TracebackType
from typing import Any, Literal

from wanlora_tui.terminal.answers import TerminalInput
from wanlora_tui.terminal.streams import has_all_colours

Pictures = Literal["Sixel", "Kitty graphics", "half cells"]
Handler = Callable[[int, FrameType | None], Any] | int | None  # as the signal module has it

PATIENCE_SECONDS = 1.0  # for answers before the screens are drawn: a terminal that never answers costs no more
LATEST_SECONDS = 4.0  # after a question no answer to it is waited for
END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

WHAT_ARE_YOU = "\x1b[c"
CELL_SIZE = "\x1b[16t"
KITTY_GRAPHICS = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\"
# multiplexers do not hand pictures on; GNU screen shows the question as its title, old consoles print it
NO_KITTY = ("screen", "tmux", "linux", "vt", "ansi", "cons", "sun")

_ATTRIBUTES = re.compile(r"\x1b\[\??([\d;]*)c")
_CELL = re.compile(r"\x1b\[6;(\d+);(\d+)t")
_KITTY_YES = re.compile(r"\x1b_G[^;]*;OK\x1b\\")


class Conversation:
    """With the terminal on the descriptors `source` and `sink`. As a context: leaves it as it was found, also when a
    signal ends the program."""

    def __init__(self, source: int, sink: int) -> None:
        self.input = TerminalInput()
        self.typed = ""  # what was typed meanwhile
        self._source, self._sink = source, sink
        self._decode = getincrementaldecoder("utf-8")("replace").decode
        self._asked, self._asked_at = 0, 0.0  # 0.0: nothing can be on its way
        self._answers_at_all = False
        self._modes: list[Any] = []
        self._handlers: dict[signal.Signals, Handler] = {}

    # --- being there and leaving -------------------------------------------------------------------------------

    def __enter__(self) -> "Conversation":
        self._modes = termios.tcgetattr(self._source)
        self._handlers = {
            s: signal.signal(s, self.end) for s in END_SIGNALS if signal.getsignal(s) is not signal.SIG_IGN
        }
        self._quiet()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.leave()
        finally:
            for s, handler in self._handlers.items():
                signal.signal(s, handler)

    def on_end_signal(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        """Who gives the terminal back when the program is asked to end: this object, unless somebody else draws on
        it."""
        for s in self._handlers:
            signal.signal(s, handler)

    def _quiet(self) -> None:
        modes = termios.tcgetattr(self._source)
        modes[0] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR)
        modes[3] &= ~(termios.ECHO | termios.ICANON)
        modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._source, termios.TCSANOW, modes)

    def leave(self, say: Callable[[str], Any] | None = None) -> None:
        """Wait until nothing is on its way any more, and give the terminal back as it was: for good, or while the
        program is suspended.

        `say` writes to the terminal after what is still to be written to it.
        """
        try:
            self._quiet()
            self._settle(say or self._write)
            termios.tcflush(self._source, termios.TCIFLUSH)
            termios.tcsetattr(self._source, termios.TCSANOW, self._modes)
        except (termios.error, OSError):  # the terminal has been closed
            return

    def end(self, number: int, frame: FrameType | None = None) -> None:
        """Leave, then end by the signal as if it had never been caught."""
        self.leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    # --- questions and answers ---------------------------------------------------------------------------------

    def ask(self) -> None:
        """What can you draw, and how large is a cell?"""
        kitty = (
            ""
            if os.environ.get("TERM", "").startswith(NO_KITTY) or "TMUX" in os.environ or "STY" in os.environ
            else KITTY_GRAPHICS
        )
        self._write(kitty + CELL_SIZE + WHAT_ARE_YOU)
        self._asked, self._asked_at = 1, time.monotonic()

    def _write(self, questions: str) -> None:
        os.write(self._sink, questions.encode())

    def others_asked(self) -> None:
        """Somebody else (Textual) has just asked something."""
        self._asked_at = time.monotonic()

    @property
    def _answered(self) -> int:
        return sum(_ATTRIBUTES.fullmatch(a) is not None for a in self.input.answers)

    def listen(self, until: float | None = None) -> None:
        """Read until all is answered, at most until then (time.monotonic); as long as a user can be kept waiting when
        left out."""
        until = until or self._asked_at + PATIENCE_SECONDS
        while self._answered < self._asked and (left := until - time.monotonic()) > 0:
            if select.select([self._source], [], [], left)[0]:
                data = os.read(self._source, 4096)
                if not data:  # hung up
                    return
                self.typed += self.keys(data).replace("\n", "\r")  # Enter, as it came while lines were still edited

    def keys(self, data: bytes) -> str:
        """What of the bytes just read is for Textual."""
        return self.input.feed(self._decode(data), time.monotonic())

    def _settle(self, say: Callable[[str], Any]) -> None:
        """Let everything that is on its way arrive, and drop it.

        The terminal is asked once more: what it sent before (movements of the mouse, late answers to others) comes
        first. One that has not answered anything is given its time from the last question on; one that never does is
        not waited for.
        """
        now = time.monotonic()
        self._answers_at_all |= self._answered > 0
        until = (now if self._answers_at_all else self._asked_at) + LATEST_SECONDS
        if self._asked_at and now < until:
            say(WHAT_ARE_YOU)
            self._asked += 1
            self.listen(until)
        self._answers_at_all |= self._answered > 0
        self._asked, self._asked_at, self.typed = 0, 0.0, ""
        self.input.answers.clear()

    # --- what the answers say ----------------------------------------------------------------------------------

    @property
    def cell(self) -> tuple[int, int] | None:
        """Width and height of a cell in pixels; None where it is unknown or cannot be."""
        size = array("H", [0, 0, 0, 0])
        ioctl(self._sink, termios.TIOCGWINSZ, size)
        rows, columns, width, height = size
        answered = [(int(m[2]), int(m[1])) for a in self.input.answers if (m := _CELL.fullmatch(a))]
        return next(
            filter(_credible, [*([(width // columns, height // rows)] if rows and columns else []), *answered]), None
        )

    @property
    def pictures(self) -> Pictures:
        """The best way to draw pictures that the terminal has surely; half cells on any doubt.

        Sixel first: of the terminals that know both, only Kitty's own graphics are what textual-image draws, and Kitty
        has no Sixel. Those are placed by signs whose colour is the picture's number, all 24 bits of it.
        """
        if "4" in _numbers(self.input.answers):
            return "Sixel" if self.cell else "half cells"
        return "Kitty graphics" if self.has_kitty and has_all_colours() else "half cells"

    @property
    def has_kitty(self) -> bool:
        """Whether the terminal has said that it has Kitty's graphics."""
        return any(map(_KITTY_YES.fullmatch, self.input.answers))


def _numbers(answers: Iterable[str]) -> set[str]:
    return {number for a in answers if (m := _ATTRIBUTES.fullmatch(a)) for number in m[1].split(";")}


def _credible(cell: tuple[int, int]) -> bool:
    width, height = cell
    return 3 <= width <= 200 and 5 <= height <= 400 and 1 <= height / width <= 4
