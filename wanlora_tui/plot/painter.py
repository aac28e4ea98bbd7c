"""Rows of a figure in the colours of a theme. Which inks there are is wanlora_tui.plot.curves's."""

from collections.abc import Mapping, Sequence

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.strip import Strip

from presets.text import escaped
from wanlora_tui.plot.colours import style_of
from wanlora_tui.plot.curves import NOTHING
from wanlora_tui.plot.reading import Piece


class Painter:
    """`theme`: its variables. `ground`: the style of the widget that is painted."""

    def __init__(self, theme: Mapping[str, str], ground: Style) -> None:
        self.ground = ground
        self._theme = theme
        self._styles: dict[int, Style] = {}

    def _style(self, ink: int) -> Style:
        if ink not in self._styles:
            self._styles[ink] = self.ground + style_of(ink, self._theme)
        return self._styles[ink]

    def row(self, signs: list[str], inks: list[int]) -> Strip:
        """A blank is in the ink of what is before it: each change of ink takes as long as many cells."""
        segments, start, held = [], 0, inks[0]
        for at, (sign, ink) in enumerate(zip(signs, inks, strict=True)):
            if ink != held and sign != " ":
                segments.append(Segment("".join(signs[start:at]), self._style(held)))
                start, held = at, ink
        segments.append(Segment("".join(signs[start:]), self._style(held)))
        return Strip(segments, len(signs))

    def with_cursor(self, row: Strip, at: int) -> Strip:
        before, cell, after = row.crop(0, at), row.crop(at, at + 1), row.crop(at + 1)
        sign, style = cell.text, next((s.style for s in cell if s.style), Style())
        if not sign.strip():
            sign, style = "│", self._style(NOTHING)
        style += Style(bold=True, bgcolor=Color.parse(self._theme["panel"]).hex6)
        return Strip.join([before, Strip([Segment(sign, style)], 1), after])

    def line(self, pieces: Sequence[Piece], width: int) -> Strip:
        """Below the figure. What has no room ends in `…`."""
        strip = Strip([Segment(escaped(text), self._style(ink)) for text, ink in pieces])
        if strip.cell_length > width:
            strip = Strip.join([strip.crop(0, width - 1), Strip([Segment("…", self.ground)])])
        return strip.adjust_cell_length(width, self.ground)
