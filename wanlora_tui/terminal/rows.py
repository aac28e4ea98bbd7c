"""Text in rows, of which only those are drawn anew that read otherwise.

Textual's Static draws all of itself with every update, and lays out the whole screen besides.
"""

from collections.abc import Sequence

from textual.content import Content
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.visual import Visual
from textual.widget import Widget


class Rows(Widget):
    """Rows that do not wrap; `put` says what they are. The screen is laid out only when there are more or fewer."""

    DEFAULT_CSS = "Rows { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.auto_links = False  # there are none, and looking for them takes longer than drawing
        self.rows: list[Content] = []

    def put(self, rows: Sequence[Content]) -> None:
        before, self.rows = self.rows, list(rows)
        if len(before) != len(rows):
            self.refresh(layout=True)
            return
        changed = [y for y, row in enumerate(rows) if not row.is_same(before[y])]
        if changed:
            self.refresh(*(Region(0, y, self.size.width, 1) for y in changed))

    def render(self) -> Content:
        """All of it: what can be selected and copied."""
        return Content("\n").join(self.rows)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.rows)

    def render_line(self, y: int) -> Strip:
        if self.text_selection is not None or y >= len(self.rows):
            return super().render_line(y)
        return Visual.to_strips(self, self.rows[y], self.size.width, 1, self.visual_style)[0]
