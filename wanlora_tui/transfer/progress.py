"""How a transfer gets on: one line that is written over on a terminal, else a line now and then."""

import sys
import time
from collections import deque
from collections.abc import Callable

from presets.text import human
from wanlora_tui.output.formatting import duration, shorten
from wanlora_tui.terminal.streams import is_dumb, is_terminal, terminal_width

WINDOW = 5.0  # seconds that the rate is the mean of
LINE_SECONDS = 0.2  # between two lines that are written over
PLAIN_SECONDS = 10.0  # between two plain lines


class Progress:
    """Counts bytes of `total`; `show` gets a line when one is due, every `every` seconds."""

    def __init__(
        self, total: int, show: Callable[[str], None], every: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done = total, 0
        self._show, self._every, self._clock = show, every, clock
        self._name, self._before = "", 0
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])  # when, and how many bytes had moved then
        self._moved, self._shown_at = 0, clock()

    def begin(self, name: str) -> None:
        """The next file."""
        self._name, self._before = name, self.done

    def had(self, size: int) -> None:
        """So much of the file is here already."""
        self.done = self._before + size

    def end(self, size: int) -> None:
        """The file, of this size, is dealt with, however much of it came."""
        self.done = self._before + size

    def moved(self, size: int) -> None:
        self.done += size
        self._moved += size
        now = self._clock()
        self._marks.append((now, self._moved))
        while self._marks[0][0] < now - WINDOW and len(self._marks) > 2:
            self._marks.popleft()
        if now - self._shown_at >= self._every:
            self._shown_at = now
            self._show(self.line)

    @property
    def rate(self) -> float:
        """Bytes per second."""
        (first, at_first), (last, at_last) = self._marks[0], self._marks[-1]
        return (at_last - at_first) / (last - first) if last > first else 0.0

    @property
    def line(self) -> str:
        """`wan_orbit_low_noise.safetensors  83 MiB of 292 MiB  11 MiB/s  ETA 19s`."""
        rate = self.rate
        eta = f"  ETA {duration(max(0, self.total - self.done) / rate)}" if rate else ""
        return f"{shorten(self._name, 40)}  {human(self.done)} of {human(self.total)}  {human(rate)}/s{eta}"


class ProgressLine:
    """Lines of a Progress on stderr. As a context: what follows begins on a line of its own."""

    def __init__(self, *, live: bool, width: int = 80) -> None:
        """`live`: on a terminal, of this width."""
        self._live, self._width, self._open = live, width, False
        self.every = LINE_SECONDS if live else PLAIN_SECONDS

    @classmethod
    def on_stderr(cls) -> "ProgressLine":
        return cls(live=is_terminal(sys.stderr) and not is_dumb(), width=terminal_width(sys.stderr))

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, line: str) -> None:
        if self._live:
            # a line that wraps could not be written over
            print(f"\r\x1b[K{line[: max(1, self._width - 1)]}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = False
