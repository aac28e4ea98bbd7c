"""The widget that a film's frame is drawn with, in cells. The bar below it is wanlora_tui.film.position_bar's."""

import numpy as np
from rich.segment import Segment
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from wanlora_tui.film.cells import depth_of, inked, pairs
from wanlora_tui.film.decoding import Frame
from wanlora_tui.film.film_line import FilmLine, in_the_middle


class FilmView(Widget):
    """One frame at a time, in the middle of its place. Only the rows that differ are drawn again."""

    DEFAULT_CSS = "FilmView { width: 1fr; height: 1fr; }"

    def __init__(self, *, classes: str = "") -> None:
        super().__init__(classes=classes)
        self.frame: Frame | None = None
        self._lines: list[Strip] = []

    def show(self, frame: Frame | None) -> None:
        before, self.frame = self.frame, frame
        if frame is before:
            return
        self._lines = []
        if frame is None or before is None or frame.shape != before.shape:
            self.refresh()
            return
        other = np.flatnonzero((frame != before).any(axis=(1, 2))) // 2
        if len(other):
            top = self._top + int(other[0])
            self.refresh(Region(0, top, self.size.width, int(other[-1] - other[0]) + 1))

    @property
    def _top(self) -> int:
        return 0 if self.frame is None else max(0, (self.size.height - len(self.frame) // 2) // 2)

    def on_resize(self) -> None:
        self._lines = []

    def _drawn(self, frame: Frame) -> list[Strip]:
        if not self._lines:
            depth, width, style = depth_of(self.app), self.size.width, self.rich_style
            if depth == "none":
                dark = self.app.current_theme.dark
                lines = [line.center(width) for line in inked(frame, dark)]
                self._lines = [Strip([Segment(line, style)]).adjust_cell_length(width, style) for line in lines]
            else:
                self._lines = [FilmLine(in_the_middle(pair, width), depth, style) for pair in pairs(frame, depth)]
        return self._lines

    def render_lines(self, crop: Region) -> list[Strip]:
        """Past the filters of texts: there is none in a picture with colours."""
        if depth_of(self.app) == "none":
            return super().render_lines(crop)
        return [self.render_line(y).crop(crop.x, crop.right) for y in crop.line_range]

    def render_line(self, y: int) -> Strip:
        row = y - self._top
        if self.frame is None or not 0 <= row < len(self.frame) // 2:
            return Strip.blank(self.size.width, self.rich_style)
        return self._drawn(self.frame)[row]
