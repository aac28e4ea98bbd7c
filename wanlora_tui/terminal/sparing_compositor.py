"""How little of a screen is drawn anew when a few of its widgets have changed.

Textual's compositor draws every widget whose surroundings overlap the box around all that has changed: of a form of 18
fields, all of them for one. This one draws the widgets, and of those the lines, that lie under a changed part, and asks
a widget only for lines that are others by now: where a form moves by a row, none. What comes out is the same, see its
test.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from textual._compositor import ChopsUpdate, Compositor, ReflowResult
from textual.filter import LineFilter
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

SIXEL = "textual_image.widget.sixel"  # its pictures are one sequence, in their last line: whole, or wrong


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
            right, bottom = left + width, top + height
            rows = [y for y, (begin, end) in changed.items() if top <= y < bottom and begin < right and left < end]
            if rows:
                first = min(rows)
                lines = Region(left, first, width, max(rows) - first + 1)
                if type(widget).__module__ == SIXEL:
                    lines = Region(left, top, width, height)
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
