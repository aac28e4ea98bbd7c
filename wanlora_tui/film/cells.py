"""A frame as characters of a terminal: two pixels in each cell, by the colours it has; without colour, brightness."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.color_triplet import ColorTriplet
from rich.style import Style
from textual.app import App

from wanlora_tui.film.decoding import Frame

Depth = Literal["true", "256", "none"]
Codes = NDArray[np.int32]  # colours of a row

HALF = "▀"
RAMP = " .:-=+*#%@"  # from nothing to most ink
SHADES = 0xFC  # of 8 bits of a colour 6 are kept: nobody sees it, and neighbours are often the same
CUBE = np.array([0, 95, 135, 175, 215, 255])  # of xterm's colours 16 to 231
GREYS = np.arange(8, 248, 10)  # 232 to 255
# between the levels of the cube, from less to more: https://en.wikipedia.org/wiki/Ordered_dithering
BAYER = (np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) - 7.5) * 2
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def depth_of(app: App[Any]) -> Depth:
    """What colours this terminal has. One that speaks of 16 (TERM=screen, TERM=xterm) gets 256: there is none that does
    not know them, and with 16 no picture can be made out."""
    if app.no_color:
        return "none"
    return "true" if app.is_headless or app.console.color_system == "truecolor" else "256"


def pairs(frame: Frame, depth: Depth) -> list[tuple[Codes, Codes]]:
    """The colours of the upper and the lower half of each cell, a pair for each row of cells, from two rows of pixels
    (an even number of them): 24 bits, or numbers of xterm's 256."""
    codes = _true(frame) if depth == "true" else _palette(frame)
    return list(zip(codes[::2], codes[1::2], strict=True))


def runs(upper: Codes, lower: Codes) -> Iterable[tuple[int, int, int]]:
    """(how many cells, their upper colour, their lower one)."""
    other = np.flatnonzero((upper[1:] != upper[:-1]) | (lower[1:] != lower[:-1])) + 1
    begins = np.concatenate(([0], other)) if len(upper) else np.empty(0, int)
    lengths = np.diff(np.append(begins, len(upper))).tolist()
    return zip(lengths, upper[begins].tolist(), lower[begins].tolist(), strict=True)


def style_of(depth: Depth) -> Callable[[int, int], Style]:
    return _true_style if depth == "true" else _palette_style


def inked(frame: Frame, dark: bool) -> list[str]:
    """A line of characters for each row of cells. `dark`: on a dark background, where more ink is brighter."""
    brightness = (frame @ LUMA).reshape(len(frame) // 2, 2, -1).mean(axis=1) / 255
    ink = (brightness if dark else 1 - brightness) * len(RAMP)
    return ["".join(RAMP[i] for i in row) for row in ink.astype(int).clip(0, len(RAMP) - 1)]


def _true(frame: Frame) -> Codes:
    r, g, b = np.moveaxis((frame & SHADES).astype(np.int32), -1, 0)
    return (r << 16) | (g << 8) | b


def _palette(frame: Frame) -> Codes:
    """The nearest of xterm's 216 colours and 24 greys, after a pattern that has neighbours make up what lies between
    (ordered dithering)."""
    height, width, _ = frame.shape
    pattern = np.tile(BAYER, (-(-height // 4), -(-width // 4)))[:height, :width, None]
    wanted = (frame + pattern).clip(0, 255).astype(np.int32)
    level = np.searchsorted((CUBE[1:] + CUBE[:-1]) / 2, wanted)
    grey = np.searchsorted((GREYS[1:] + GREYS[:-1]) / 2, wanted.mean(axis=-1))
    to_cube = ((CUBE[level] - wanted) ** 2).sum(axis=-1)
    to_grey = ((GREYS[grey][..., None] - wanted) ** 2).sum(axis=-1)
    cube = 16 + level @ np.array([36, 6, 1])
    return np.where(to_grey < to_cube, 232 + grey, cube).astype(np.int32)


@lru_cache(2**14)
def _color(code: int) -> Color:
    return Color.from_triplet(ColorTriplet(code >> 16, code >> 8 & 255, code & 255))


@lru_cache(2**14)
def _true_style(upper: int, lower: int) -> Style:
    return Style.from_color(_color(upper), _color(lower))


@lru_cache(2**14)
def _palette_style(upper: int, lower: int) -> Style:
    return Style.from_color(Color.from_ansi(upper), Color.from_ansi(lower))
