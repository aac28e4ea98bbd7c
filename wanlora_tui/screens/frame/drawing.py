"""How little of a screen is drawn anew when a few of its widgets have changed, and how seldom.

Textual's compositor draws every widget whose surroundings overlap the box around all that has changed: of a form of 18
fields, all of them for one. This one draws the widgets, and of those the lines, that lie under a changed part, and asks
a widget only for lines that are others by now: where a form moves by a row, none. What comes out is the same, see its
test.

Textual draws as soon as anything has changed, and again when the messages of the same key have changed more.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from textual._compositor import ChopsUpdate, Compositor, ReflowResult
from textual.filter import LineFilter
from textual.geometry import Region, Size
from textual.reactive import Reactive
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget

from wanlora_tui.widgets.key_order import KeysInOrder

HELD = 0.05  # seconds that what has changed waits for the end of a key, or of keys typed ahead


class SparingCompositor(Compositor):
    def __init__(self) -> None:
        super().__init__()
        self._changed: dict[int, tuple[int, int]] | None = None  # row -> its columns, while no more than that is drawn
        self._drawn: dict[Widget, _Drawn] = {}

    def reflow(self, parent: Widget, size: Size) -> ReflowResult:
        result = super().reflow(parent, size)
        self._full_map_invalidated = False  # it has just been made, and would be once more
        # also of what is out of the tree for now, and may be shown again
        self._drawn = {widget: drawn for widget, drawn in self._drawn.items() if widget.is_running}
        return result

    def render_partial_update(self) -> ChopsUpdate | None:
        self._changed = {}
        for part in self._dirty_regions:
            for y in part.line_range:
                left, right = self._changed.get(y, part.column_span)
                self._changed[y] = min(left, part.x), max(right, part.right)
        try:
            return super().render_partial_update()
        finally:
            self._changed = None

    def _get_renders(self, crop: Region | None = None) -> Iterable[tuple[Region, Region, list[Strip]]]:
        changed = self._changed
        if changed is None:
            yield from super()._get_renders(crop)
            return
        for widget, (region, clip) in self.visible_widgets.items():
            left, top, width, height = region.intersection(clip)
            rows = [
                y
                for y in range(top, top + height)
                if y in changed and changed[y][0] < left + width and left < changed[y][1]
            ]
            if rows:
                lines = Region(left, rows[0], width, rows[-1] - rows[0] + 1)
                yield lines, clip, self._strips(widget, region.width, lines.translate((-region.x, -region.y)))

    def _strips(self, widget: Widget, whole: int, lines: Region) -> list[Strip]:
        """What Textual makes of a widget's lines before it looks at colours, borders and filters again."""
        cache, filters = widget._styles_cache, widget.get_line_filters()
        if type(widget).render_lines is not Widget.render_lines or (widget.auto_links and widget.hover_style._link_id):
            return widget.render_lines(lines)
        drawn = self._drawn.get(widget)
        if drawn is None or (drawn.columns, drawn.filters) != (lines.column_span, filters):
            drawn = self._drawn[widget] = _Drawn(lines.column_span, filters)
        if cache._width == whole and cache._dirty_lines.isdisjoint(lines.line_range):
            known = [drawn.lines.get(y) for y in lines.line_range]
            strips = [
                line[1]
                for y, line in zip(lines.line_range, known, strict=True)
                if line is not None and line[0] is cache._cache.get(y)
            ]
            if len(strips) == lines.height:
                return strips
        strips = widget.render_lines(lines)
        for y, strip in zip(lines.line_range, strips, strict=False):
            if (own := cache._cache.get(y)) is not None:
                drawn.lines[y] = own, strip
        return strips


@dataclass
class _Drawn:
    """Lines of a widget as they were drawn last: what Textual keeps of each, and what came of it."""

    columns: tuple[int, int]
    filters: Sequence[LineFilter]
    lines: dict[int, tuple[Strip, Strip]] = field(default_factory=dict)


class SparingScreen(Screen[Any]):
    """A screen that is typed in: of what a key sets off one picture is drawn, once all of it is there."""

    # who loses the focus and who gets it draw themselves; Textual would draw all of the screen anew
    focused: Reactive[Widget | None] = Reactive(None, repaint=False)

    def __init__(self) -> None:
        super().__init__()
        self._compositor = SparingCompositor()
        self._held_since: float | None = None

    def draw(self) -> None:
        """Lay out and draw what is there by now, ahead of the rest of what a key sets off."""
        self._layout_required = True
        super()._on_timer_update()

    def _on_timer_update(self) -> None:
        app = self.app
        if isinstance(app, KeysInOrder) and app.is_taking and self.is_current:
            now = time.monotonic()
            if self._held_since is None:
                self._held_since = now
                app.afterwards(partial(self.call_later, self._on_timer_update))
            if now - self._held_since < HELD:
                return  # the timer that has called this goes on
        self._held_since = None
        super()._on_timer_update()
