"""A line of a film on its way to the terminal, without a style for each cell: those take five times as long to make as
all else."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from wanlora_tui.film.cells import HALF, Codes, Depth, runs, style_of

NOTHING = -1  # in place of a colour: the background
Pair = tuple[Codes, Codes]


class FilmLine(Strip):
    """The colours of the upper and the lower half of each cell, with NOTHING in both where there is no picture. Whoever
    cuts it or looks at its parts gets segments as of any other strip."""

    def __init__(self, pair: Pair, depth: Depth, background: Style) -> None:
        super().__init__((), len(pair[0]))
        self._pair, self._depth, self._background = pair, depth, background
        self._made: list[Segment] | None = None

    @property
    def _segments(self) -> list[Segment]:
        if self._made is None:
            style = style_of(self._depth)
            self._made = [
                Segment(" " * n, self._background) if up == NOTHING else Segment(HALF * n, style(up, low))
                for n, up, low in runs(*self._pair)
            ]
        return self._made

    @_segments.setter
    def _segments(self, segments: list[Segment]) -> None:
        """Those that Strip begins with: none."""

    def render(self, console: Console) -> str:
        if self._render_cache is None:
            blank = Strip([Segment(" ", self._background)]).render(console)
            sgr = _true_sgr if self._depth == "true" else _palette_sgr
            self._render_cache = "".join(
                [
                    blank.replace(" ", " " * n) if up == NOTHING else f"{sgr(up, low)}{HALF * n}\x1b[0m"
                    for n, up, low in runs(*self._pair)
                ]
            )
        return self._render_cache


def _true_sgr(up: int, low: int) -> str:
    fore, back = f"{up >> 16};{up >> 8 & 255};{up & 255}", f"{low >> 16};{low >> 8 & 255};{low & 255}"
    return f"\x1b[38;2;{fore};48;2;{back}m"


def _palette_sgr(up: int, low: int) -> str:
    return f"\x1b[38;5;{up};48;5;{low}m"


def in_the_middle(pair: Pair, width: int) -> Pair:
    """With nothing at both sides."""
    left = max(0, (width - len(pair[0])) // 2)
    return joined([(left, None), (width - left, pair)])


def joined(parts: Sequence[tuple[int, Pair | None]]) -> Pair:
    """Parts of so many columns each, side by side; what a picture does not fill is nothing."""
    halves: tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]] = ([], [])
    for width, pair in parts:
        for half, codes in zip(halves, pair or (np.empty(0, np.int32),) * 2, strict=True):
            half += [codes[:width], np.full(max(0, width - len(codes)), NOTHING, np.int32)]
    return np.concatenate(halves[0]), np.concatenate(halves[1])
